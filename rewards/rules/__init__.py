"""Rewards that are rules: no taste, no learned preference."""

from .rows import ROWS

__all__ = ["ROWS"]
