"""VideoAlign (VideoReward): picture, motion and text alignment of videos from Qwen2-VL-2B."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.forms import Detailed
from flowrl.rewards.networks.qwen import Reader, backbone, base, finite, house, merged, parted, sized, template_of
from flowrl.rewards.networks.weights import missing, package, place_of, tensors
from flowrl.rewards.place import Place

REPOSITORY, BASE = "KwaiVGI/VideoReward", "Qwen/Qwen2-VL-2B-Instruct"
PARTS = ("vq", "mq", "ta")
TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
NORMS = {"vq": (3.6757, 2.2476), "mq": (1.1646, 1.3811), "ta": (2.8105, 2.5121)}
LEAST_PIXELS, MOST_PIXELS = 128 * 28 * 28, 256 * 28 * 28
LEAST_FRAMES, MOST_FRAMES = 4, 768


@dataclass(frozen=True)
class VideoAlign:
    """f(videos uint8 [N, T, H, W, 3], prompts, metadata) -> score float32 [N] with the parts vq, mq and ta. Built by `videoalign`.

    part: which of them, or their sum, "overall";  norms: part -> (mean, std);  fps: frames a second that the model sees.
    """

    reader: Reader
    part: str = "overall"
    norms: Mapping[str, tuple[float, float]] = field(default_factory=lambda: NORMS)
    fps: float = 2.0
    pixels: int = MOST_PIXELS

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Detailed:
        if images.ndim != 5 or images.shape[1] < 2:
            raise ValueError(f"videoalign scores videos [N, T, H, W, 3] of 2 frames or more, not images {list(images.shape)}")
        rates = [rate(told) for told in metadata]
        rows = [index for index, known in enumerate(rates) if known is not None]
        if not rows:
            raise ValueError('videoalign needs the frame rate; give metadata {"fps": 16} with each prompt')
        said = torch.full((len(prompts), len(PARTS)), math.nan)
        seen = [self._video(images[row], rates[row] or self.fps) for row in rows]
        said[rows] = finite(self.reader("video", seen, [prompts[row] for row in rows])[:, :, 0])
        parts = {name: (said[:, at] - self.norms[name][0]) / self.norms[name][1] for at, name in enumerate(PARTS)}
        whole = torch.stack(list(parts.values())).sum(0)
        return Detailed(parts.get(self.part, whole), parts)

    def _video(self, video: np.ndarray, fps: float) -> Tensor:
        functional = package("videoalign", "torchvision.transforms.functional", "torchvision")
        some = torch.from_numpy(video[chosen(len(video), fps, self.fps)]).permute(0, 3, 1, 2)
        size = sized(*some.shape[-2:], LEAST_PIXELS, self.pixels)
        return functional.resize(some, list(size), functional.InterpolationMode.BICUBIC, antialias=True)


def rate(told: Mapping[str, Any]) -> float | None:
    """The frames a second that metadata tell of; None where they tell of none."""
    fps = told.get("fps")
    known = isinstance(fps, int | float) and not isinstance(fps, bool) and math.isfinite(fps) and fps > 0
    return float(fps) if known else None  # pyright: ignore[reportArgumentType]


def chosen(total: int, fps: float, wanted: float) -> np.ndarray:
    """Numbers of the frames to show of `total`, evenly spread over all: `wanted` a second, an even count, 4 to 768 where there are
    so many.

    Source: `smart_nframes` of qwen-vl-utils as VideoAlign copies it, sample_type "uniform"; 17 frames at 24 a second give
    0, 5, 11, 16.
    """
    most = min(MOST_FRAMES, total) // 2 * 2
    count = round(min(max(total / fps * wanted, LEAST_FRAMES), most) / 2) * 2
    return np.round(np.linspace(0, total - 1, count)).astype(np.int64)


def head(width: int) -> nn.Linear:
    """Hidden state -> the mark of the token it belongs to."""
    return nn.Linear(width, 1, bias=False)


def videoalign(variant: str | None = None, place: Place | None = None) -> VideoAlign:
    """Marks of a video for its prompt: vq (picture), mq (motion), ta (text alignment) or their sum, overall; each about -3 to 3.

    A question about video and prompt holds three tokens; a bias-free linear head reads the last hidden state at each, and each is
    normalised by its mean and std over the authors' data. Frames go in at 2 a second, of at most 256 * 28^2 pixels.

    variant: vq, mq, ta or overall (None), alone or followed by :FILE.txt, a question of your own with {prompt} and the three tokens
    in it, once each, or by :FOLDER with model_config.json, checkpoint-STEP/model.pth, base/ (configuration and processor of
    Qwen2-VL-2B-Instruct; without it, the hub's) and, if you like, template.txt.
    metadata of each prompt: "fps", frames a second of the video; without it that video is not scored (NaN).

    Raises: FileNotFoundError for missing files; ValueError for images, for an unknown variant, where no video tells its frame rate,
    or if weights or template do not fit; ModuleNotFoundError without transformers.

    Source: VideoAlign (2501.13918); KwaiVGI/VideoAlign@1140ffd `inference.py`; norms of vq and mq as in DanceGRPO, all three
    replaced by those of model_config.json where it has them.
    Differs: THE QUESTION IS NOT THE PUBLISHED ONE, whose wording is not bundled; ours asks for the same three marks in our own
    words. Scores equal to the published ones need its text (`prompt_template.py`, detailed_special) as FILE.txt or
    FOLDER/template.txt. The low-rank update is added to the weights once, where the authors add its effect at every call.
    DanceGRPO gives a video that cannot be read -1; here it has no score.
    """
    part, path = _variant(variant)
    folder = path if path is not None and path.is_dir() else None
    template = template_of("videoalign", "videoalign.txt", path, TOKENS)
    root = folder or _fetched()
    told = json.loads((root / "model_config.json").read_text(encoding="utf-8"))
    config, processor = base("videoalign:overall", BASE, folder, TOKENS)
    body, top = parted(merged(tensors(_checkpoint(root)), _scale(told.get("peft_lora_config") or {})))
    network = backbone("videoalign", config, body)
    housed = house("videoalign", place, network, head(config.text_config.hidden_size), top)
    data = told.get("data_config") or {}
    fps, pixels = data.get("fps") or 2.0, data.get("max_frame_pixels") or MOST_PIXELS
    return VideoAlign(Reader(*housed, processor, TOKENS, template), part, _norms(told), float(fps), int(pixels))


def _variant(variant: str | None) -> tuple[str, Path | None]:
    part, _, where = (variant or "overall").partition(":")
    if part not in (*PARTS, "overall"):
        raise ValueError(
            f"reward videoalign has no variant {part!r}; write vq, mq, ta or overall, alone or with :FILE.txt or :FOLDER after it"
        )
    return part, place_of("videoalign", where)


def _norms(told: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    given = told.get("inference_config") or {}
    return {
        name: (float(given.get(f"{name.upper()}_mean", mean)), float(given.get(f"{name.upper()}_std", std)))
        for name, (mean, std) in NORMS.items()
    }


def _scale(lora: Mapping[str, Any]) -> float:
    """What peft multiplies B A with."""
    rank = float(lora.get("lora_r", 64))
    return float(lora.get("lora_alpha", 128)) / (math.sqrt(rank) if lora.get("use_rslora") else rank)


def _checkpoint(root: Path) -> Path:
    files = sorted(root.glob("checkpoint-*/model.pth"), key=lambda file: int(file.parent.name.rpartition("-")[2]))
    if not files:
        raise FileNotFoundError(f"reward videoalign: {root} holds no checkpoint-STEP/model.pth; it is a file of {REPOSITORY}")
    return files[-1]


def _fetched() -> Path:
    hub = package("videoalign", "huggingface_hub")
    try:
        return Path(hub.snapshot_download(REPOSITORY, allow_patterns=["model_config.json", "checkpoint-*/model.pth"]))
    except Exception as error:
        raise FileNotFoundError(missing("videoalign:overall", REPOSITORY, error)) from error
