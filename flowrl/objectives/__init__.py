"""Objectives: where predictions are wanted (queries), what is measured there, and the loss. Values, all pure."""

from .forward import NFT, nft, nft_terms
from .ratio import Clip, clip, clipped, surrogate_kl

__all__ = ["NFT", "Clip", "clip", "clipped", "nft", "nft_terms", "surrogate_kl"]
