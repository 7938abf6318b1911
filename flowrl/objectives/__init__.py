"""Objectives: where predictions are wanted (queries), what is measured there, and the loss. Values, all pure."""

from . import scales
from .awm import AWM, awm, likelihood
from .clip import Clip, Guard, clip, guard, guarded
from .dppo import DPPO, dppo, outward
from .nft import NFT, nft, nft_terms
from .preference import DPO, dpo, paired
from .ratio import clipped, surrogate_kl
from .renoise import LEVELS, Band, Grid, Levels, LogitNormal, renoised

__all__ = [
    "AWM",
    "DPO",
    "DPPO",
    "LEVELS",
    "NFT",
    "Band",
    "Clip",
    "Grid",
    "Guard",
    "Levels",
    "LogitNormal",
    "awm",
    "clip",
    "clipped",
    "dpo",
    "dppo",
    "guard",
    "guarded",
    "likelihood",
    "nft",
    "nft_terms",
    "outward",
    "paired",
    "renoised",
    "scales",
    "surrogate_kl",
]
