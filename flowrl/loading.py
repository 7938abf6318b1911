"""Models by name, as everybody but tests loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

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

    Raises: ValueError as there, and for a model whose conventions were learned and failed a check; TypeError for a source or a spec
    that is none.
    """
    _is_source(source)
    if spec is not None and not isinstance(spec, PolicySpec):
        raise TypeError(f"spec is a {type(spec).__name__}; give a flowrl.recipe.PolicySpec")
    policy = models.load_policy(source, device, spec=spec, seed=seed, token=token)
    if isinstance(policy.family, Generic):
        from flowrl.conformance import verify

        verify(policy)
    return policy


def _is_source(source: object) -> None:
    """Raises: TypeError for what is no model."""
    if isinstance(source, PolicySpec | str | Path):
        return
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    if not isinstance(source, DiffusionPipeline):
        hint = "; a network of your own is wrapped in flowrl.models.FieldPolicy" if isinstance(source, nn.Module) else ""
        raise TypeError(
            f"the model is a {type(source).__name__}: give a folder, a hub name, a file, a PolicySpec or a DiffusionPipeline{hint}"
        )
