"""Rewards made of comparisons: win rates inside a rival class, and the best of several by its wins."""

from .rows import ROWS

__all__ = ["ROWS"]
