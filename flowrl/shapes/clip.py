"""Stage `clip`: a tiny contrastive image-text model of the world, in open_clip's local-dir form."""

import json
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.shapes.augment import varied
from flowrl.shapes.autoencoder import balanced, to_tensor
from flowrl.shapes.flow import token_ids
from flowrl.shapes.loop import Job, run, warm_cosine
from flowrl.shapes.tokenizer import END, LENGTH, PAD, build, vocabulary
from flowrl.shapes.world import captions, unit

POOL = 16_000
BATCH = 96
RATE = 1e-3


def config() -> dict[str, object]:
    """open_clip's model_cfg; with the schema local-dir the tokenizer is the folder's own, whatever its name."""
    words = vocabulary()
    vision = {"image_size": 64, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8}
    text: dict[str, object] = {"context_length": LENGTH, "vocab_size": len(words), "width": 64, "heads": 2, "layers": 3}
    text |= {"hf_tokenizer_name": "shapes-clip", "pool_type": "eos", "eos_id": words[END], "pad_id": words[PAD]}
    return {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}


def network(seed: int) -> CLIP:
    """The untrained model, 0.6 M parameters."""
    torch.manual_seed(seed + 2)
    cfg = config()
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    assert isinstance(vision, dict) and isinstance(text, dict)
    return CLIP(64, CLIPVisionCfg(**vision), CLIPTextCfg(**text))


def contrastive(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of unit features [B, D]; pairs in `same` [B, B] off the diagonal do not count as negatives."""
    logits = (scale * image @ text.T).masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), float("-inf"))
    at = torch.arange(len(logits))
    return (nn.functional.cross_entropy(logits, at) + nn.functional.cross_entropy(logits.T, at)) / 2


def save(net: CLIP, target: Path) -> None:
    """Writes the folder: configuration, half-precision weights, tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, target / "open_clip_model.safetensors")
    preprocess = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    text = json.dumps({"model_cfg": config(), "preprocess_cfg": preprocess}, indent=2)
    (target / "open_clip_config.json").write_text(text + "\n")
    build().save_pretrained(target)
    path = target / "tokenizer_config.json"
    path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def train(folder: Path, assets: Path, steps: int, seed: int) -> None:
    """Trains on clean captions and writes `assets/shapes-clip`."""
    net = network(seed)
    rows = balanced(captions("train"), POOL, seed + 2)
    images = torch.from_numpy(np.stack([varied(row, np.random.default_rng((seed, 4, i))) for i, row in enumerate(rows)]))
    ids = token_ids([row["prompt"] for row in rows])
    names = {name: i for i, name in enumerate(sorted({unit(row) for row in rows}))}
    units = torch.tensor([names[unit(row)] for row in rows])

    def step_loss(step: int) -> Tensor:
        at = torch.randint(POOL, (BATCH,), generator=torch.Generator().manual_seed(seed * 2**33 + 2**35 + step))
        with torch.autocast("cpu", torch.bfloat16):
            image, text, scale = net(to_tensor(images[at].numpy()), ids[at])
        return contrastive(image.float(), text.float(), scale.clamp(max=100.0), units[at][:, None] == units[at])

    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    run(Job(nn.ModuleDict({"clip": net}), [optimizer], step_loss, warm_cosine(steps), steps), folder, "clip")
    save(net, assets / "shapes-clip")
