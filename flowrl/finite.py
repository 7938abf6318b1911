"""Weights that are no numbers, named before whatever they spoil."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

REMEDY = "the file is damaged, or was saved from a training that diverged; take another one"


def not_finite(networks: Mapping[str, nn.Module]) -> str | None:
    """A clause that names the first weight with NaN or infinity in it, None where there is none. Quantised ones are not read."""
    for name, network in networks.items():
        for inner, p in network.named_parameters():
            if type(p.data) is not Tensor or not p.is_floating_point():
                continue
            good = torch.isfinite(p.data)
            if not bool(good.all()):
                own = inner.replace(".base_layer.", ".")  # PEFT's, which the file does not have
                which = f"{own!r} of {name}" if name else repr(own)
                return f"the weight {which} is not finite ({int((~good).sum())} of {good.numel()} values are NaN or infinite)"
    return None


def demand(networks: Mapping[str, nn.Module]) -> None:
    """Raises: ValueError naming the first weight that is not finite."""
    if wrong := not_finite(networks):
        raise ValueError(f"{wrong}, so nothing it makes is an image; {REMEDY}")
