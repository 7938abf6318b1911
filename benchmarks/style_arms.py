"""The ways to learn a style that are compared, each from the same images for the same processor time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from style_world import latents
from torch import Tensor

from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.loop import Parts, begin, iterate
from flowrl.models import DiffusersPolicy
from flowrl.recipe import Recipe
from flowrl.recipes import build, style
from flowrl.rewards import make
from flowrl.rewards.adversarial import references
from flowrl.rewards.adversarial.extractors import Extractor, extractor
from flowrl.sizes import derive
from flowrl.weights import Weights

TRIGGER = "zorb"
PROMPTS, GROUP = 6, 8
BATCH = 24  # pictures a step of fine-tuning, as many as there are
ADVERSARIAL = "rate:3e-3,steps:12,buffer:128,loss:bce"


@dataclass(frozen=True)
class Arm:
    """What is trained. images: the folder of the style;  seconds: of processor time, everything but looking included."""

    name: str
    images: Path
    rate: float
    seconds: float
    seed: int


class Spent(NamedTuple):
    """steps: of the optimizer or iterations;  seconds: of processor time;  last: metrics of the last iteration."""

    steps: int
    seconds: float
    last: dict[str, float]


def fine_tuned(arm: Arm, policy: DiffusersPolicy, seconds: float) -> Spent:
    """Plain LoRA fine-tuning: flow matching on the images and their captions, levels sigmoid(N(1, 1.4^2)) as the base's own."""
    pictures = np.stack(references.folder(arm.images))
    x0 = latents(policy.pipe.vae, pictures)
    trained, _ = build.prompts(style(str(arm.images), TRIGGER).data)
    cond = policy.encode(trained.text[: len(pictures)])
    weights = Weights(policy, {}).parameters
    optimizer = torch.optim.AdamW(weights, lr=arm.rate, weight_decay=0.0)
    began, step, value = time.process_time(), 0, 0.0
    while time.process_time() - began < seconds:
        draw = torch.Generator().manual_seed(arm.seed * 2**32 + step)
        at = torch.randint(len(x0), (BATCH,), generator=draw)
        sigma = torch.sigmoid(1 + 1.4 * torch.randn(BATCH, generator=draw))
        x1, s = torch.randn(x0[at].shape, generator=draw), sigma.view(-1, 1, 1, 1)
        loss = (policy.velocity((1 - s) * x0[at] + s * x1, sigma, cond.take(at)) - (x1 - x0[at])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step, value = step + 1, float(loss.detach())
    return Spent(step, time.process_time() - began, {"loss": value})


@dataclass(frozen=True)
class Gram:
    """Minus the squared distance of an image's Gram matrix of patch features, G = F^T F / K, to the mean of the references'.

    Source: Gatys et al. (1508.06576), on early features of the embedded CLIP in place of VGG.
    """

    network: Extractor
    goal: Tensor

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[object]) -> list[float]:
        del prompts, metadata
        return (-(self._of(images) - self.goal).square().sum((1, 2))).tolist()

    def _of(self, images: np.ndarray) -> Tensor:
        return gram(self.network, list(images))


def gram(network: Extractor, images: Sequence[np.ndarray]) -> Tensor:
    """[N, D, D]."""
    patches = torch.cat([network(images[i : i + network.batch]).patches for i in range(0, len(images), network.batch)])
    return torch.einsum("nkd,nke->nde", patches, patches) / patches.shape[1] / patches.shape[2]


def recipe(arm: Arm) -> Recipe:
    base = style(str(arm.images), TRIGGER)
    return replace(
        base,
        method=replace(base.method, args={"draws": 2, "kl": 0.0, "average": 0.0}),
        optim=replace(base.optim, lr=arm.rate, warmup=2),
        sizes=replace(base.sizes, prompts=PROMPTS, group=GROUP, batch=PROMPTS * GROUP),
        run=replace(base.run, seed=arm.seed),
    )


def reinforced(arm: Arm, policy: DiffusersPolicy, seconds: float, given: dict[str, tuple[object, float]]) -> Spent:
    """The loop on the style's prompts with these rewards."""
    its = recipe(arm)
    trained, _ = build.prompts(its.data)
    rewards = build.rewards(replace(its, rewards=()), given, "cpu")
    parts = Parts(its, policy, build.method(its.method, GROUP), rewards, trained, World())
    session = begin(parts, derive(its.sizes, PROMPTS * GROUP, parts.method.updates, 1))
    began, took, row = time.process_time(), 0.0, dict[str, float]()
    while time.process_time() - began + took / 2 < seconds:
        start = time.process_time()
        row = iterate(parts, session)
        took = time.process_time() - start
    kept = {n: v for n, v in row.items() if n.startswith(("reward/", "adversarial/"))}
    return Spent(session.iteration, time.process_time() - began, kept)


def adversarial(arm: Arm, policy: DiffusersPolicy, seconds: float) -> Spent:
    reward = make(f"adversarial:{arm.images}?{ADVERSARIAL}")
    return reinforced(arm, policy, seconds, {"adversarial": (reward, 1.0), "caption_clip": (make("caption_clip"), 2.0)})


def by_gram(arm: Arm, policy: DiffusersPolicy, seconds: float) -> Spent:
    network = extractor(layer=0)
    goal = gram(network, list(references.folder(arm.images))).mean(0)
    return reinforced(arm, policy, seconds, {"gram": (Gram(network, goal), 1.0), "caption_clip": (make("caption_clip"), 2.0)})


def both(arm: Arm, policy: DiffusersPolicy, seconds: float) -> Spent:
    """Half the time fine-tuning, half the adversarial reward."""
    first = fine_tuned(replace(arm, rate=1e-3), policy, seconds / 2)
    then = adversarial(arm, policy, seconds - first.seconds)
    return Spent(first.steps + then.steps, first.seconds + then.seconds, then.last)


def nothing(arm: Arm, policy: DiffusersPolicy, seconds: float) -> Spent:
    return Spent(0, 0.0, {})


ARMS: dict[str, tuple[Callable[[Arm, DiffusersPolicy, float], Spent], str]] = {
    "untrained": (nothing, "the embedded model"),
    "sft": (fine_tuned, "plain LoRA fine-tuning"),
    "adversarial": (adversarial, "adversarial reward + CLIP"),
    "gram": (by_gram, "Gram reward + CLIP"),
    "sft_adversarial": (both, "half fine-tuning, then adversarial + CLIP"),
}
"""name -> (how it learns, what it is)."""


def shown(prompts: Prompts, trigger: bool) -> Prompts:
    """Captions with the trigger before each, or as they are."""
    texts = tuple(f"{TRIGGER} {text}" if trigger else text for text in prompts.text)
    return Prompts(texts, prompts.metadata, prompts.images)
