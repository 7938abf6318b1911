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
from .ported import cispo, dcpo, disco, gspo, mc_grpo, ngrpo, reg_grpo, spo
from .preference import diffusion_dpo, online_dpo
from .rewards import adv_grpo, gardo, gdpo, parrot, pref_grpo
from .single_step import e_grpo, flash_grpo
from .steps import ddpo, flow_cps, hicogen, longcat, neighbor_grpo, precise, sage_grpo
from .trees import branch_grpo, tree_rpo

VISUAL: dict[str, Callable[..., Method]] = {
    "flow_grpo": flow_grpo,
    "flow_grpo_fast": flow_grpo_fast,
    "grpo_guard": grpo_guard,
    "flow_dppo": flow_dppo,
    "flow_noise": flow_noise,
    "flow_cps": flow_cps,
    "precise": precise,
    "sage_grpo": sage_grpo,
    "longcat": longcat,
    "hicogen": hicogen,
    "ddpo": ddpo,
    "dance_grpo": dance_grpo,
    "mix_grpo": mix_grpo,
    "mix_grpo_flash": mix_grpo_flash,
    "branch_grpo": branch_grpo,
    "tree_rpo": tree_rpo,
    "tempflow_grpo": tempflow_grpo,
    "g2rpo": g2rpo,
    "e_grpo": e_grpo,
    "flash_grpo": flash_grpo,
    "neighbor_grpo": neighbor_grpo,
    "pref_grpo": pref_grpo,
    "adv_grpo": adv_grpo,
    "gardo": gardo,
    "parrot": parrot,
    "gdpo": gdpo,
    "diffusion_nft": diffusion_nft,
    "awm": awm,
    "dgpo": dgpo,
    "diffusion_dpo": diffusion_dpo,
    "online_dpo": online_dpo,
    "rwr": rwr,
    "sft": sft,
}
"""Made for images and video."""

PORTED: dict[str, Callable[..., Method]] = {
    "mc_grpo": mc_grpo,
    "ngrpo": ngrpo,
    "dcpo": dcpo,
    "spo": spo,
    "reg_grpo": reg_grpo,
    "disco": disco,
    "gspo": gspo,
    "cispo": cispo,
}
"""Ported from language-model RL."""

TABLE = {**VISUAL, **PORTED}

__all__ = ["PORTED", "TABLE", "VISUAL", "ramp", "warming", *TABLE]
