"""Which of several images is kept: the best of some finished ones, or the most promising at every step while one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.rewards import Reward

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from flowrl.models import DiffusersPolicy
    from flowrl.recipe import PolicySpec

Draw = Callable[..., "np.ndarray"]
"""draw(prompt, metadata, seed, images of the prompt) -> an image, uint8 [H, W, 3], or a video, [T, H, W, 3]."""


@dataclass(frozen=True)
class Choice:
    """best_of: images drawn a seed; the first is the one that the seed gives alone.  svdd: candidates at every step of an image.

    Raises: ValueError for counts below 1.
    """

    reward: Reward
    best_of: int = 1
    svdd: int = 1

    def __post_init__(self) -> None:
        for name, count in (("best-of", self.best_of), ("svdd", self.svdd)):
            if count < 1:
                raise ValueError(f"{name} is {count}; give at least 1, which chooses nothing")


def values(choice: Choice) -> Callable[[Tensor, str, Mapping[str, Any]], Tensor]:
    """value(pixels uint8 [L, (T,) H, W, 3], prompt, its metadata) -> float64 [L], NaN where the reward has no score."""
    from flowrl.inference import judge

    score = judge(choice.reward)
    return lambda pixels, prompt, metadata: score(pixels[None], [prompt], [metadata])[0]


def kept(draw: Draw, choice: Choice, prompt: str, metadata: Mapping[str, Any], seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The best of the seed's images, and what to note of it; scores are null where there is none."""
    import numpy as np
    import torch

    from flowrl.inference import best_of
    from flowrl.samplers import noise

    value = values(choice)

    def look(images: Sequence[np.ndarray]) -> Tensor:
        return value(torch.from_numpy(np.stack(images)), prompt, metadata)

    def one(i: int) -> np.ndarray:
        return draw(prompt, metadata, seed if i == 0 else noise.key(seed, 0, 0, i, "best of"))

    found = best_of(one, look, choice.best_of)
    scores = [None if score != score else score for score in found.values.tolist()]
    return found.kept, {"reward": choice.reward.name, "best_of": choice.best_of, "svdd": choice.svdd,
                        "score": None if found.index is None else scores[found.index], "scores": scores}  # fmt: skip


def steered(policy: DiffusersPolicy, choice: Choice, steps: int) -> Draw:
    """Images by SVDD with choice.svdd candidates, at the policy's own guidance."""
    from flowrl.inference import svdd
    from flowrl.samplers.noise import Source

    value, sigmas = values(choice), policy.sigmas(steps)

    def draw(prompt: str, metadata: Mapping[str, Any], seed: int, images: Sequence[Path] = ()) -> np.ndarray:
        cond, source = policy.encode([prompt], images=[images]), Source(seed, 0)
        x0 = svdd(
            lambda x, sigma, slot: policy.velocity(x, sigma, cond.take(slot)),
            lambda x, slot: value(policy.decode(x), prompt, metadata),
            sigmas,
            source.normal(policy.latent_shape(), 0, 0)[None].to(policy.device),
            source,
            candidates=choice.svdd,
        )
        return policy.decode(x0)[0].cpu().numpy()

    return draw


def policy(spec: PolicySpec, lora: Path | None, device: str) -> DiffusersPolicy:
    """A model with its adapter as flowrl samples it.

    Raises: ValueError for a family that flowrl has no adapter for; only plain images and best of n need none.
    """
    import torch

    from flowrl.export import load_lora
    from flowrl.loading import load_policy
    from flowrl.models.caller import own
    from flowrl.recipe import LoraSpec

    half = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    # the file brings its own rank
    spec = replace(own(spec), dtype="bfloat16" if half else "float32", lora=LoraSpec(rank=0 if lora is None else 1))
    made = load_policy(spec, device)
    if lora is not None:
        load_lora(made, lora if lora.is_dir() else lora.parent)
    return made
