"""Objectives: where predictions are wanted (queries), what is measured there, and the loss. Values, all pure."""

from . import pools, scales
from .awm import AWM, awm, likelihood
from .clip import Clip, Guard, clip, guard, guarded
from .dgpo import DGPO, balanced, dgpo
from .dppo import DPPO, dppo, outward
from .groupwise import Disco, Reg, contrast, disco, hinge, reg, standardised
from .matching import Matching, Mixed, best_leaf, matching, mixed
from .neighbor import Neighbor, chosen_by_distance, neighbor
from .nft import NFT, nft, nft_terms, probability
from .preference import DPO, dpo, paired
from .ratio import clipped, estimated_kl, forward_kl, surrogate_kl, tempered
from .renoise import LEVELS, Band, Grid, Levels, LogitNormal, renoised
from .surrogates import Surrogate, cispo, dynamic_range, geometric, gmpo, gspo, sapo, sequence, soft, truncated

__all__ = [
    "AWM",
    "DGPO",
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
    "Matching",
    "Mixed",
    "Neighbor",
    "Reg",
    "Surrogate",
    "awm",
    "balanced",
    "best_leaf",
    "chosen_by_distance",
    "cispo",
    "clip",
    "clipped",
    "contrast",
    "dgpo",
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
    "matching",
    "mixed",
    "neighbor",
    "nft",
    "nft_terms",
    "outward",
    "paired",
    "pools",
    "probability",
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
