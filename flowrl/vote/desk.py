"""Who is asked what, and what is made of an answer. Knows nothing of HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from flowrl.rewards.votes.book import Undo, Vote, standing
from flowrl.vote.book import Book
from flowrl.vote.pairs import Question
from flowrl.vote.result import summary


class Refused(ValueError):
    """An answer that cannot be taken. status: as in HTTP."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Desk:
    """The questions of a session and the book of their answers."""

    title: str
    book: Book
    questions: tuple[Question, ...]
    seed: int = 0
    clock: Callable[[], str] = lambda: datetime.now(UTC).isoformat(timespec="milliseconds")

    def state(self, voter: str, first: tuple[str, frozenset[str]] | None = None) -> dict[str, Any]:
        """What a voter's page shows: the question, the one after it, and how far they are.

        first: a question to be asked before all others if it is open.
        """
        votes = standing(self.book.held)
        mine = [vote for vote in votes if vote.voter == voter]
        answered = {vote.question for vote in mine}
        times = Counter(vote.question for vote in votes)
        left = [question for question in self.questions if question.asked not in answered]
        # what nobody answered yet comes first, so several people share the work
        left.sort(key=lambda question: (question.asked != first, times[question.asked]))
        # this order is a function of seed and voter, which is how an answer's ranks are read later
        shown = [self._page(question.turned(self.seed, voter)) for question in left[:2]]
        return {
            "title": self.title,
            "voter": voter,
            "question": shown[0] if shown else None,
            "then": shown[1] if len(shown) > 1 else None,
            "done": len(self.questions) - len(left),
            "total": len(self.questions),
            "undo": mine[-1].id if mine else None,
            "result": None if left else summary(votes),
        }

    def vote(self, voter: str, id: str, question: str, ranks: list[int] | None, seconds: float) -> dict[str, Any]:
        """Write an answer down. The same id again changes nothing.

        Raises: Refused where it fits no question, or this voter answered it otherwise.
        """
        if any(isinstance(entry, Vote) and entry.id == id for entry in self.book.held):
            return self.state(voter)
        if question not in self._by_key:
            raise Refused(404, "this question is not asked here; load the page again")
        turned = self._by_key[question].turned(self.seed, voter)
        if ranks is not None and (len(ranks) != len(turned.images) or not all(0 <= rank < len(ranks) for rank in ranks)):
            raise Refused(422, f"ranks are {ranks} for {len(turned.images)} images; give each one of 0, 1, ..., 0 for the best")
        if any(vote.voter == voter and vote.question == turned.asked for vote in standing(self.book.held)):
            raise Refused(409, "this question is answered already; take the answer back first")
        told = None if ranks is None else tuple(ranks)
        self.book.add(Vote(id, voter, turned.prompt, turned.images, told, round(seconds, 3), self.clock()))
        return self.state(voter)

    def undo(self, voter: str, id: str, of: str) -> dict[str, Any]:
        """Take a voter's last answer back and ask again. The same id again changes nothing.

        Raises: Refused where it is not their last.
        """
        mine = [vote for vote in standing(self.book.held) if vote.voter == voter]
        again = any(isinstance(entry, Undo) and entry.id == id for entry in self.book.held)
        if not again:
            if not mine or mine[-1].id != of:
                raise Refused(409, "only the last answer can be taken back; load the page again")
            self.book.add(Undo(id, of, voter, self.clock()))
        taken = next((e.question for e in self.book.held if isinstance(e, Vote) and e.id == of), None)
        return self.state(voter, taken)

    def file(self, content: str) -> str | None:
        """The file of an image that is asked about, relative to the book's folder."""
        return self._files.get(content)

    @cached_property
    def _by_key(self) -> dict[str, Question]:
        return {question.key(self.seed): question for question in self.questions}

    @cached_property
    def _files(self) -> dict[str, str]:
        return {image.content: image.file for question in self.questions for image in question.images}

    def _page(self, question: Question) -> dict[str, Any]:
        """Nothing in it tells which image is from before and which from after."""
        return {"key": question.key(self.seed), "prompt": question.prompt, "images": [image.content for image in question.images]}
