"""Pipelines without a family of their own: conventions learned from one run, verified before use."""

from .family import Generic
from .infer import Unknown
from .listen import decoding

__all__ = ["Generic", "Unknown", "decoding"]
