"""Models by name, as everybody but tests loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowrl import models
from flowrl.models.generic import Generic
from flowrl.models.policy import DiffusersPolicy
from flowrl.recipe import PolicySpec

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


def load_policy(
    source: PolicySpec | str | Path | DiffusionPipeline,
    device: str = "cpu",
    *,
    spec: PolicySpec | None = None,
    seed: int = 0,
    token: str | None = None,
) -> DiffusersPolicy:
    """`flowrl.models.load_policy`; a model without a family of its own is verified against its pipeline before it is returned.

    Raises: ValueError as there, and for a model whose conventions were learned and failed a check.
    """
    policy = models.load_policy(source, device, spec=spec, seed=seed, token=token)
    if isinstance(policy.family, Generic):
        from flowrl.conformance import verify

        verify(policy)
    return policy
