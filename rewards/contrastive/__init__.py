"""Rewards by an encoder of images: agreement with the prompt, preference, taste, likeness to references."""

from .rows import ROWS

__all__ = ["ROWS"]
