"""Rewards that are networks of other kinds than a contrastive one: preference, quality, video, style and safety models."""

from .rows import ROWS

__all__ = ["ROWS"]
