"""A vision-language model as a judge: templates as data, two back ends, four ways of asking."""

from .rows import ROWS

__all__ = ["ROWS"]
