"""Objectives: where predictions are wanted (queries), what is measured there, and the loss. Values, all pure."""

from . import scales
from .awm import AWM, awm, likelihood
from .clip import Clip, Guard, clip, guard, guarded
from .dgpo import DGPO, balanced, dgpo
from .dppo import DPPO, dppo, outward
from .matching import Matching, Mixed, best_leaf, matching, mixed
from .nft import NFT, nft, nft_terms, probability
from .preference import DPO, dpo, paired
from .ratio import clipped, surrogate_kl
from .renoise import LEVELS, Band, Grid, Levels, LogitNormal, renoised

__all__ = [
    "AWM",
    "DGPO",
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
    "Matching",
    "Mixed",
    "awm",
    "balanced",
    "best_leaf",
    "clip",
    "clipped",
    "dgpo",
    "dpo",
    "dppo",
    "guard",
    "guarded",
    "likelihood",
    "matching",
    "mixed",
    "nft",
    "nft_terms",
    "outward",
    "paired",
    "probability",
    "renoised",
    "scales",
    "surrogate_kl",
]
