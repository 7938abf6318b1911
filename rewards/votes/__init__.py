"""People's votes as rewards: the book they are kept in, how strong it says an image is, and a head that learns them."""

from .rows import ROWS

__all__ = ["ROWS"]
