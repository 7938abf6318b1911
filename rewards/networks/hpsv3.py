"""HPSv3: a preference score from Qwen2-VL-7B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.networks.pixels import framed, over_frames
from flowrl.rewards.networks.qwen import Reader, backbone, base, finite, house, parted, sized, template_of
from flowrl.rewards.networks.weights import found, package, place_of, tensors
from flowrl.rewards.place import Place

REPOSITORY, FILE, BASE = "MizzenAI/HPSv3", "HPSv3.safetensors", "Qwen/Qwen2-VL-7B-Instruct"
TOKENS = ("<|Reward|>",)
PIXELS = 256 * 28 * 28


@dataclass(frozen=True)
class HPSv3:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> float32 [N], NaN where the network said nothing finite. Built by
    `hpsv3`.

    reader: its head gives two numbers, the mean of a Gaussian and how wide it is; the mean is the score.
    """

    reader: Reader
    pixels: int = PIXELS

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        del metadata
        frames = framed(images)
        each = len(frames) // len(prompts)
        said = self.reader("image", [self._picture(frame) for frame in frames], [p for p in prompts for _ in range(each)])
        return over_frames(finite(said[:, 0, 0]), len(prompts)).mean(1)

    def _picture(self, frame: np.ndarray) -> Tensor:
        image = package("hpsv3", "PIL.Image", "pillow")
        height, width = sized(*frame.shape[:2], self.pixels, self.pixels)
        picture = image.fromarray(frame).resize((width, height), image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def head(width: int) -> nn.Sequential:
    """Hidden state -> (mean, width of the Gaussian)."""
    return nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))


def hpsv3(variant: str | None = None, place: Place | None = None) -> HPSv3:
    """How well people would like an image for its prompt, about -2 to 15; of a video the mean over its frames.

    A question about image and prompt ends in the token <|Reward|>; a head reads the last hidden state there and gives two numbers,
    of which the first is the score. Every image is scaled to about 256 * 28^2 pixels, its aspect ratio nearly kept.

    variant: None, downloaded (17 GB); FILE.txt, a question of your own with {prompt} and <|Reward|> in it, once each; or FOLDER
    with HPSv3.safetensors, base/ (configuration and processor of Qwen2-VL-7B-Instruct; without it, the hub's) and, if you like,
    template.txt.

    Raises: FileNotFoundError for missing files; ValueError if weights or template do not fit; ModuleNotFoundError without
    transformers.

    Source: HPSv3 (2508.03789); MizzenAI/HPSv3@72b7eba `hpsv3/inference.py`, @d232ff8 `hpsv3/train.py`, `model/qwen2vl_trainer.py`.
    Differs: THE QUESTION IS NOT THE PUBLISHED ONE, whose wording is not bundled; ours asks for the same thing in our own words.
    Scores equal to the published ones need its text (INSTRUCTION and the line after it in the authors' `data_collator_qwen.py`) as
    FILE.txt or FOLDER/template.txt. Until then orders should agree and numbers will not.
    """
    path = place_of("hpsv3", variant)
    folder = path if path is not None and path.is_dir() else None
    template = template_of("hpsv3", "hpsv3.txt", path, TOKENS)
    config, processor = base("hpsv3", BASE, folder, TOKENS)
    body, top = parted(tensors(found("hpsv3", REPOSITORY, FILE, folder)))
    network = backbone("hpsv3", config, body)
    return HPSv3(Reader(*house("hpsv3", place, network, head(config.text_config.hidden_size), top), processor, TOKENS, template))
