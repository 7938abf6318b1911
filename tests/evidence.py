"""What tests show of methods and rewards, by the marker evidence(kind, *names), and the tables the evidence.json of each hold.

Without names it is the test's parameter `name`. A mark on a parameter speaks for that case alone.

python tests/evidence.py FILES prints the tables of what these test files claim, as JSON, without running them.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

KINDS = {"golden": "method", "derived": "method", "learns": "method", "real": "reward", "arithmetic": "reward"}
"""What may be claimed, and of what."""
FILES = {"method": "flowrl/methods/evidence.json", "reward": "rewards/evidence.json"}
Table = dict[str, dict[str, list[str]]]


class Claim(NamedTuple):
    """test: the id of one case;  shown: the id that is written, which stands for all cases where the mark does."""

    kind: str
    of: str
    test: str
    shown: str


def claims(item: pytest.Item, known: Mapping[str, Collection[str]]) -> list[Claim]:
    """What one collected test claims. known: the names of methods and of rewards.

    Raises: pytest.UsageError for a kind or a name that does not exist, or a mark without either names or a parameter `name`.
    """
    found = []
    everywhere = list(getattr(getattr(item, "function", None), "pytestmark", ()))
    for mark in item.iter_markers("evidence"):
        kind, *names = mark.args or ("",)
        parameter = getattr(item, "callspec", None)
        if not names and (parameter is None or "name" not in parameter.params):
            raise pytest.UsageError(f"{item.nodeid} claims evidence of nothing; name it, or have a parameter `name`")
        if kind not in KINDS:
            raise pytest.UsageError(f"{item.nodeid} claims {kind!r} evidence; there are: {', '.join(KINDS)}")
        shown = item.nodeid.partition("[")[0] if names and mark in everywhere else item.nodeid
        for name in names or [parameter.params["name"]]:  # pyright: ignore[reportOptionalMemberAccess]
            if name not in known[KINDS[kind]]:
                near = difflib.get_close_matches(name, list(known[KINDS[kind]]), 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise pytest.UsageError(f"{item.nodeid} claims evidence for {name!r}, which is no {KINDS[kind]}{hint}")
            found.append(Claim(kind, name, item.nodeid, shown))
    return found


def gathered(items: Iterable[pytest.Item]) -> list[Claim]:
    """The claims of all items; methods and rewards are only imported where there is one."""
    marked = [item for item in items if item.get_closest_marker("evidence")]
    if not marked:
        return []
    from flowrl.recipes.build import METHODS
    from flowrl.rewards import TABLE

    return [claim for item in marked for claim in claims(item, {"method": METHODS, "reward": TABLE})]


def tables(made: Iterable[Claim], passed: Collection[str] | None = None) -> dict[str, Table]:
    """method, reward -> name -> kind -> tests. A kind of which one test did not pass is not there; passed None: all did."""
    made = list(made)
    fallen = {(c.of, c.kind) for c in made if passed is not None and c.test not in passed}
    out: dict[str, Table] = {subject: {} for subject in FILES}
    for name in sorted({c.of for c in made}):
        for kind, subject in KINDS.items():
            tests = sorted({c.shown for c in made if (c.of, c.kind) == (name, kind)})
            if tests and (name, kind) not in fallen:
                out[subject].setdefault(name, {})[kind] = tests
    return out


class Recorder:
    """Plugin of --evidence FOLDER: notes what passed, and writes the tables at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.passed, self.failed, self.claims = folder, set[str](), set[str](), list[Claim]()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.claims = gathered(session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)
        elif report.when == "call":
            self.passed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        for subject, found in tables(self.claims, self.passed - self.failed).items():
            if found:
                (self.folder / FILES[subject]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


class _Collected:
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        print(json.dumps(tables(gathered(session.items))))


def main(files: Sequence[str]) -> int:
    return int(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", "-m", "evidence", *files], plugins=[_Collected()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
