"""What tests show of a method, by the marker evidence(kind, *methods), and the table that flowrl/methods/evidence.json holds.

Without names the method is the test's parameter `name`. A mark on a parameter speaks for that case alone.

python tests/evidence.py FILES prints the table of what these test files claim, as JSON, without running them.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

KINDS = ("golden", "derived", "learns")
Table = dict[str, dict[str, list[str]]]


class Claim(NamedTuple):
    """test: the id of one case;  shown: the id that is written, which stands for all cases where the mark does."""

    kind: str
    method: str
    test: str
    shown: str


def claims(item: pytest.Item, known: Collection[str]) -> list[Claim]:
    """What one collected test claims.

    Raises: pytest.UsageError for a kind or a method that does not exist, or a mark without either names or a parameter `name`.
    """
    found = []
    everywhere = list(getattr(getattr(item, "function", None), "pytestmark", ()))
    for mark in item.iter_markers("evidence"):
        kind, *names = mark.args or ("",)
        parameter = getattr(item, "callspec", None)
        if not names and (parameter is None or "name" not in parameter.params):
            raise pytest.UsageError(f"{item.nodeid} claims evidence of no method; name them, or have a parameter `name`")
        if kind not in KINDS:
            raise pytest.UsageError(f"{item.nodeid} claims {kind!r} evidence; there are: {', '.join(KINDS)}")
        shown = item.nodeid.partition("[")[0] if names and mark in everywhere else item.nodeid
        for method in names or [parameter.params["name"]]:  # pyright: ignore[reportOptionalMemberAccess]
            if method not in known:
                near = difflib.get_close_matches(method, list(known), 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise pytest.UsageError(f"{item.nodeid} claims evidence for {method!r}, which is no method{hint}")
            found.append(Claim(kind, method, item.nodeid, shown))
    return found


def gathered(items: Iterable[pytest.Item]) -> list[Claim]:
    """The claims of all items; methods are only imported where there is one."""
    marked = [item for item in items if item.get_closest_marker("evidence")]
    if not marked:
        return []
    from flowrl.recipes.build import METHODS

    return [claim for item in marked for claim in claims(item, METHODS)]


def table(made: Iterable[Claim], passed: Collection[str] | None = None) -> Table:
    """method -> kind -> tests. A kind of which one test did not pass is not there; passed None: all did."""
    made = list(made)
    fallen = {(c.method, c.kind) for c in made if passed is not None and c.test not in passed}
    out: Table = {}
    for method in sorted({c.method for c in made}):
        for kind in KINDS:
            tests = sorted({c.shown for c in made if (c.method, c.kind) == (method, kind)})
            if tests and (method, kind) not in fallen:
                out.setdefault(method, {})[kind] = tests
    return out


class Recorder:
    """Plugin of --evidence FILE: notes what passed, and writes the table at the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.passed, self.failed, self.claims = path, set[str](), set[str](), list[Claim]()

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
        found = table(self.claims, self.passed - self.failed)
        self.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


class _Collected:
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        print(json.dumps(table(gathered(session.items))))


def main(files: Sequence[str]) -> int:
    return int(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", "-m", "evidence", *files], plugins=[_Collected()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
