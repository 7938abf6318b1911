"""Published methods, each a composition of a plan, a law, an advantage and an objective. The one table of names."""

from __future__ import annotations

from collections.abc import Callable

from flowrl.types import Method

from .average import warming
from .flow_grpo import flow_grpo, flow_grpo_fast
from .mix_grpo import mix_grpo
from .nft import diffusion_nft

TABLE: dict[str, Callable[..., Method]] = {
    "flow_grpo": flow_grpo,
    "flow_grpo_fast": flow_grpo_fast,
    "mix_grpo": mix_grpo,
    "diffusion_nft": diffusion_nft,
}

__all__ = ["TABLE", "diffusion_nft", "flow_grpo", "flow_grpo_fast", "mix_grpo", "warming"]
