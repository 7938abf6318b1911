"""Model families: a file each. A pipeline's class name chooses its family through FAMILIES; others are learned (`generic`)."""

from .family import Family
from .loading import EMBEDDED, embedded, load_policy
from .policy import DiffusersPolicy
from .prompts import Cond
from .table import FAMILIES

__all__ = ["EMBEDDED", "FAMILIES", "Cond", "DiffusersPolicy", "Family", "embedded", "load_policy"]
