"""Objectives: where predictions are wanted (queries), what is measured there, and the loss. Values, all pure."""

from . import pools, scales
from .awm import AWM, awm, likelihood
from .clip import Clip, Guard, clip, guard, guarded
from .dppo import DPPO, dppo, outward
from .groupwise import Disco, Reg, contrast, disco, hinge, reg, standardised
from .nft import NFT, nft, nft_terms
from .preference import DPO, dpo, paired
from .ratio import clipped, estimated_kl, forward_kl, surrogate_kl, tempered
from .renoise import LEVELS, Band, Grid, Levels, LogitNormal, renoised
from .surrogates import Surrogate, cispo, dynamic_range, geometric, gmpo, gspo, sapo, sequence, soft, truncated

__all__ = [
    "AWM",
    "DPO",
    "DPPO",
    "LEVELS",
    "NFT",
    "Band",
    "Clip",
    "Disco",
    "Grid",
    "Guard",
    "Levels",
    "LogitNormal",
    "Reg",
    "Surrogate",
    "awm",
    "cispo",
    "clip",
    "clipped",
    "contrast",
    "disco",
    "dpo",
    "dppo",
    "dynamic_range",
    "estimated_kl",
    "forward_kl",
    "geometric",
    "gmpo",
    "gspo",
    "guard",
    "guarded",
    "hinge",
    "likelihood",
    "nft",
    "nft_terms",
    "outward",
    "paired",
    "pools",
    "reg",
    "renoised",
    "sapo",
    "scales",
    "sequence",
    "soft",
    "standardised",
    "surrogate_kl",
    "tempered",
    "truncated",
]
