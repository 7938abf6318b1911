"""Objectives: where predictions are wanted (queries), what is measured there, and the loss. Values, all pure."""

from . import pools, scales
from .clip import Clip, Guard, clip, guard, guarded
from .dppo import DPPO, dppo, outward
from .forward import NFT, nft, nft_terms
from .groupwise import Disco, Reg, contrast, disco, hinge, reg, standardised
from .ratio import clipped, estimated_kl, forward_kl, surrogate_kl, tempered
from .surrogates import Surrogate, cispo, dynamic_range, geometric, gmpo, gspo, sapo, sequence, soft, truncated

__all__ = [
    "DPPO",
    "NFT",
    "Clip",
    "Disco",
    "Guard",
    "Reg",
    "Surrogate",
    "cispo",
    "clip",
    "clipped",
    "contrast",
    "disco",
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
    "nft",
    "nft_terms",
    "outward",
    "pools",
    "reg",
    "sapo",
    "scales",
    "sequence",
    "soft",
    "standardised",
    "surrogate_kl",
    "tempered",
    "truncated",
]
