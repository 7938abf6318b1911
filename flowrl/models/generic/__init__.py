"""Pipelines without a family of their own: conventions learned from one run, verified before use."""

from .family import Generic
from .infer import Unknown

__all__ = ["Generic", "Unknown"]
