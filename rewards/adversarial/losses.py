"""Losses of a discriminator between reference images and generated ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """(mean relu(1 - real) + mean relu(1 + fake)) / 2 of a head's outputs, any shapes -> scalar.

    Source: Adv-GRPO (2511.20256), Adv-GRPO@8287f90 scripts/train_sd3_fast_dino_patch.py `train_dino`: on the class tokens, plus
    0.3 times the same on patches drawn from each image.
    """
    return (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()) / 2


def bce(real: Tensor, fake: Tensor) -> Tensor:
    """(mean -log sigmoid(real) + mean -log sigmoid(-fake)) / 2 of a head's outputs, any shapes -> scalar.

    Source: GAN (1406.2661), the non-saturating form.
    """
    return (functional.softplus(-real).mean() + functional.softplus(fake).mean()) / 2


def pairwise(real: Tensor, fake: Tensor) -> Tensor:
    """Mean over all pairs of -log sigmoid(real - fake), any shapes -> scalar. Says who is better and nothing of where 0 is.

    Source: relativistic GAN (1807.00734); Bradley-Terry.
    """
    return functional.softplus(fake.flatten()[None] - real.flatten()[:, None]).mean()


def two_way(text: Tensor, real: Tensor, fake: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of telling the reference from the generated image by their likeness to the text -> scalar: mean of
    -log softmax(scale [text . real, text . fake])[0].

    text, real, fake: unit features [N, D], a row a pair;  scale: of the likeness, as the model has it.

    Source: Adv-GRPO (2511.20256), Adv-GRPO@8287f90, its PickScore discriminator.
    """
    return functional.softplus(scale * ((text * fake).sum(1) - (text * real).sum(1))).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": hinge, "bce": bce, "pairwise": pairwise}
"""Of a head's outputs for real and generated images."""
