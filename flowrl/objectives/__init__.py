"""Objectives: where predictions are wanted (queries), what is measured there, and the loss. Values, all pure."""

from . import scales
from .clip import Clip, Guard, clip, guard, guarded
from .dppo import DPPO, dppo, outward
from .forward import NFT, nft, nft_terms
from .ratio import clipped, surrogate_kl

__all__ = [
    "DPPO",
    "NFT",
    "Clip",
    "Guard",
    "clip",
    "clipped",
    "dppo",
    "guard",
    "guarded",
    "nft",
    "nft_terms",
    "outward",
    "scales",
    "surrogate_kl",
]
