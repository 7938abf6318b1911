"""Rewards that are trained against the policy: how real an image looks beside reference images."""

from .losses import bce, hinge, pairwise, two_way
from .rows import ROWS

__all__ = ["ROWS", "bce", "hinge", "pairwise", "two_way"]
