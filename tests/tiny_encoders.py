"""Folders of random tiny models of the real classes, as `Shelf` expects them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.\"'"
LENGTH, SIDE, DIM = 24, 32, 8
PROCESSOR = {
    "size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3, "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
SIGLIP = {"size": {"height": SIDE, "width": SIDE}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGHT = {**TOWER, "image_size": SIDE, "patch_size": 8}


def tokenizer(folder: Path) -> Any:
    """A CLIPTokenizer of letters, stored in the folder."""
    vocabulary = {letter: index for index, letter in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS)])}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    made = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    made.save_pretrained(folder)
    return made


def clip(folder: Path, side: int = SIDE, dim: int = DIM) -> transformers.CLIPModel:
    """A CLIPModel with its processor and tokenizer in a folder; weights with a scale of their own."""
    made = tokenizer(folder)
    text = {**TOWER, "vocab_size": len(made), "max_position_embeddings": LENGTH, "eos_token_id": made.eos_token_id}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**SIGHT, "image_size": side}, projection_dim=dim, logit_scale_init_value=3.0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = shaken(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


def siglip(folder: Path) -> transformers.SiglipModel:
    """A SiglipModel, both towers, with its processor in a folder."""
    text = {**TOWER, "vocab_size": 50, "max_position_embeddings": LENGTH}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = shaken(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=SIGHT)))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SIGLIP))
    return model


def dinov2(folder: Path) -> transformers.Dinov2Model:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=518)
        model = shaken(transformers.Dinov2Model(config))
    model.save_pretrained(folder)
    return model


def shaken(model: Any) -> Any:
    """The usual start is so small that all pictures look alike."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pictures(count: int, height: int = 40, width: int = 56) -> np.ndarray:
    """uint8 [count, height, width, 3] with slopes and one hard edge."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (4 + i) + c) * np.cos(y / (5 + c)) for i in range(count) for c in range(3)]
    out = (127.5 + 120 * np.stack(waves).reshape(count, 3, height, width).transpose(0, 2, 3, 1)).astype(np.uint8)
    out[:, height // 3 :, : width // 2] = (250, 10, 40)
    return out


def pixel_values(images: np.ndarray, kind: str = "CLIP") -> torch.Tensor:
    """As the Pillow processor of transformers prepares them."""
    config = PROCESSOR if kind == "CLIP" else SIGLIP
    made = getattr(transformers, f"{kind}ImageProcessorPil")(**config)
    return torch.as_tensor(np.asarray(made([Image.fromarray(i) for i in images], return_tensors="np")["pixel_values"]))
