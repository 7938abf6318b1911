"""Published methods, each a composition of a plan, a law, an advantage and an objective. The one table of names."""

from __future__ import annotations

from collections.abc import Callable

from flowrl.types import Method

from .average import ramp, warming
from .awm import awm
from .combs import g2rpo, tempflow_grpo
from .dance_grpo import dance_grpo
from .dgpo import dgpo
from .flow_grpo import flow_dppo, flow_grpo, flow_grpo_fast, flow_noise, grpo_guard
from .matching import rwr, sft
from .mix_grpo import mix_grpo, mix_grpo_flash
from .nft import diffusion_nft
from .preference import diffusion_dpo, online_dpo
from .single_step import e_grpo, flash_grpo
from .trees import branch_grpo, tree_rpo

TABLE: dict[str, Callable[..., Method]] = {
    "flow_grpo": flow_grpo,
    "flow_grpo_fast": flow_grpo_fast,
    "grpo_guard": grpo_guard,
    "flow_dppo": flow_dppo,
    "flow_noise": flow_noise,
    "dance_grpo": dance_grpo,
    "mix_grpo": mix_grpo,
    "mix_grpo_flash": mix_grpo_flash,
    "branch_grpo": branch_grpo,
    "tree_rpo": tree_rpo,
    "tempflow_grpo": tempflow_grpo,
    "g2rpo": g2rpo,
    "e_grpo": e_grpo,
    "flash_grpo": flash_grpo,
    "diffusion_nft": diffusion_nft,
    "awm": awm,
    "dgpo": dgpo,
    "sft": sft,
    "rwr": rwr,
    "diffusion_dpo": diffusion_dpo,
    "online_dpo": online_dpo,
}

__all__ = [
    "TABLE",
    "awm",
    "branch_grpo",
    "dance_grpo",
    "dgpo",
    "diffusion_dpo",
    "diffusion_nft",
    "e_grpo",
    "flash_grpo",
    "flow_dppo",
    "flow_grpo",
    "flow_grpo_fast",
    "flow_noise",
    "g2rpo",
    "grpo_guard",
    "mix_grpo",
    "mix_grpo_flash",
    "online_dpo",
    "ramp",
    "rwr",
    "sft",
    "tempflow_grpo",
    "tree_rpo",
    "warming",
]
