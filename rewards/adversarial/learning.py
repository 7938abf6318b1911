"""What discriminators share: keyed draws, Adam on plain tensors, a bounded memory of generated images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone."""
    number = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(number) >> 1)


def some(count: int, wanted: int, draw: torch.Generator) -> Tensor:
    """`wanted` of `count` indices without repetition; all of them, in order, where there are no more."""
    return torch.arange(count) if wanted >= count else torch.randperm(count, generator=draw)[:wanted]


class Adam(NamedTuple):
    """Settings of Adam. Source: Adam (1412.6980); betas of Adv-GRPO@8287f90."""

    rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    eps: float = 1e-8


class Learner(NamedTuple):
    """Weights that learn: what they are, Adam's two moments of each, and the steps taken."""

    weights: Weights
    first: Weights
    second: Weights
    taken: int

    def state(self) -> dict[str, Any]:
        """As it is saved."""
        return {"weights": self.weights, "first": self.first, "second": self.second, "taken": self.taken}


def begin(weights: Weights) -> Learner:
    first, second = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    return Learner(weights, first, second, 0)


def restore(state: Mapping[str, Any]) -> Learner:
    """From what `Learner.state` gave."""
    return Learner(state["weights"], state["first"], state["second"], state["taken"])


def learn(it: Learner, loss: Callable[[Weights], Tensor], adam: Adam) -> tuple[Learner, float]:
    """One step down loss(weights): (the learner after it, the loss before it). Nothing of `it` is changed.

    Raises: FloatingPointError where the loss is not finite.
    """
    with torch.enable_grad():
        leaves = {name: w.detach().clone().requires_grad_() for name, w in it.weights.items()}
        value = loss(leaves)
        found = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    if not value.isfinite():
        raise FloatingPointError(f"the discriminator's loss is {value.item()} at its step {it.taken}; lower its rate")
    (b1, b2), taken = adam.betas, it.taken + 1
    first = {n: b1 * m + (1 - b1) * found[n] for n, m in it.first.items()}
    second = {n: b2 * v + (1 - b2) * found[n].square() for n, v in it.second.items()}

    def moved(name: str) -> Tensor:
        size = (second[name] / (1 - b2**taken)).sqrt() + adam.eps
        return it.weights[name] - adam.rate / (1 - b1**taken) * first[name] / size

    return Learner({n: moved(n) for n in it.weights}, first, second, taken), value.item()


SHARE = 8
"""At most one in so many places of a full memory is renewed in an iteration."""


def remembered(buffer: Tensor, images: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """The memory uint8 [n <= size, H, W, 3] after generated images [N, H, W, 3]: filled up first, then a drawn share of it is
    renewed, so that what is forgotten is forgotten by chance and old images fade. Images of another size than those held begin it
    anew."""
    if size < 1 or not len(images):
        return buffer
    if not len(buffer) or buffer.shape[1:] != images.shape[1:]:
        return images[some(len(images), size, draw)].clone()
    room = size - len(buffer)
    chosen = images[some(len(images), room or max(1, size // SHARE), draw)]
    if room:
        return torch.cat([buffer, chosen])
    held = buffer.clone()
    held[torch.randperm(size, generator=draw)[: len(chosen)]] = chosen
    return held
