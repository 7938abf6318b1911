"""Model families: a file each. A pipeline's class name chooses its family through FAMILIES; others are learned (`generic`)."""

from .family import Family
from .field import Digits, FieldPolicy
from .loading import EMBEDDED, embedded, load_policy
from .policy import DiffusersPolicy
from .prompts import Cond
from .table import FAMILIES

__all__ = ["EMBEDDED", "FAMILIES", "Cond", "DiffusersPolicy", "Digits", "Family", "FieldPolicy", "embedded", "load_policy"]
