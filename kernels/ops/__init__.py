"""Fused inner loops behind plain functions. Callers never see how an op is computed."""

from .step import log_density, log_ratio, mean_each, step

__all__ = ["log_density", "log_ratio", "mean_each", "step"]
