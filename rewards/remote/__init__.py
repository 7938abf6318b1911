"""Rewards in another process or on another machine: `flowrl serve` there, "remote:http://host:port/NAME" here."""

from .rows import ROWS

__all__ = ["ROWS"]
