"""What is asked of a judge, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Question:
    """images: uint8 [H, W, 3], shown in this order before the text.  tokens: the longest answer."""

    images: tuple[np.ndarray, ...]
    text: str
    tokens: int


class Backend(Protocol):
    """A model that looks and answers, always with its likeliest words."""

    def write(self, questions: Sequence[Question]) -> list[str | None]:
        """The answers; None where there is none."""
        ...

    def weigh(self, questions: Sequence[Question], words: Sequence[str]) -> list[tuple[float, ...] | None]:
        """Probability of each word (any of its `forms`) as the first token of the answer; None where there is no answer."""
        ...


def forms(word: str) -> tuple[str, ...]:
    """How a tokenizer may write a word as one token: three cases, with and without a blank before it."""
    return tuple(dict.fromkeys(blank + form for blank in ("", " ") for form in (word.lower(), word.capitalize(), word.upper())))
