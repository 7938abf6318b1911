"""DeQA-Score: technical quality of an image from a model whose own code must be run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.base import NotLoaded
from flowrl.rewards.networks.pixels import framed, over_frames
from flowrl.rewards.networks.weights import package, place_of
from flowrl.rewards.place import Housed, Place, batched

REPOSITORY = "zhiyuanyou/DeQA-Score-Mix3"
LEVELS = ("excellent", "good", "fair", "poor", "bad")
MARKS = (5.0, 4.0, 3.0, 2.0, 1.0)
TRUST = "trust"


def expected_mark(logits: Tensor) -> Tensor:
    """Expected mark in [1, 5] of logits [N, 5] of the words excellent, good, fair, poor and bad: sum of mark * softmax, float32."""
    return logits.float().softmax(-1) @ torch.tensor(MARKS, device=logits.device)


@dataclass(frozen=True)
class Deqa:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> float32 [N] in [1, 5]. Built by `deqa`.

    levels: (network, pictures) -> logits [n, 5] of the five words.
    """

    network: Housed[nn.Module]
    levels: Callable[[nn.Module, list[Any]], Tensor]

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        del metadata
        image = package("deqa", "PIL.Image", "pillow")
        frames = framed(images)
        with self.network.ready() as model:

            def call(cut: slice) -> Tensor:
                return expected_mark(self.levels(model, [image.fromarray(frame) for frame in frames[cut]]))

            return over_frames(batched(call, len(frames), self.network.batch), len(prompts)).mean(1).cpu()


def answered(model: nn.Module, pictures: list[Any]) -> Tensor:
    """Logits [n, 5] that the model's own `score` looked at, float32: it returns their expectation in half precision, whose step is
    0.004 at a mark of 4."""
    kept: list[Tensor] = []

    def keep(module: Any, given: Any, said: Any) -> None:
        del given
        kept.append(said["logits"][:, -1, module.preferential_ids_].float())

    handle = model.register_forward_hook(keep)
    try:
        model.score(pictures)  # pyright: ignore[reportCallIssue]
    finally:
        handle.remove()
    return torch.cat(kept)


def deqa(variant: str | None = None, place: Place | None = None) -> Deqa:
    """Technical quality of an image, 1 (bad) to 5 (excellent), blind to the prompt; of a video the mean over its frames.

    sum of mark * softmax over the logits of the words excellent, good, fair, poor, bad. A guard to watch, not a reward to train on:
    it falls where a policy has learnt to cheat another reward (4.07 for SD3.5-M, 2.77 after training on GenEval without a KL term).

    variant: trust, or trust:FOLDER with the repository's files. The word is your consent: the repository brings Python code that
    is run on this machine.

    Raises: ValueError without that word, or for another dtype than float16, which that code casts to; FileNotFoundError for a
    missing folder; NotLoaded where it does not load.

    Source: DeQA-Score (2501.11561); zhiyuanyou/DeQA-Score@4768965 `src/evaluate/scorer.py`; flow_grpo's `deqascore`.
    Differs: flow_grpo divides by 5; the expectation is taken in float32. The repository's code was written for transformers 4 and
    may refuse a current one; run it in an environment of its own behind `flowrl serve` then.
    """
    word, _, where = (variant or "").partition(":")
    if word != TRUST:
        raise ValueError(
            f"reward deqa runs Python code from {REPOSITORY} on this machine; if you trust it, write deqa:{TRUST} "
            f"(or deqa:{TRUST}:FOLDER)"
        )
    place = place or Place()
    if place.dtype not in (None, "float16"):
        raise ValueError(f"reward deqa is asked for {place.dtype}, but its own code casts images to float16; leave dtype out")
    source = str(place_of("deqa", where) or REPOSITORY)
    transformers = package("deqa", "transformers")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=True, attn_implementation="eager", dtype=torch.float16
        )
    except Exception as error:
        raise NotLoaded(
            f"reward deqa could not load {source}: {error}; its code is for transformers 4: run it in an environment of its own "
            f"behind `flowrl serve`, or without network access give a local folder: deqa:{TRUST}:FOLDER"
        ) from error
    return Deqa(place.house(model, dtype="float16", batch=8), answered)
