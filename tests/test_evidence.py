"""Evidence: only what passed is written, and the committed file holds what the tests of today claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evidence import FILES, Claim, claims, tables

import flowrl

TESTS = Path(__file__).parent
KNOWN = {"method": ("flow_grpo", "mix_grpo"), "reward": ("clip",)}


def committed() -> dict[str, dict[str, dict[str, list[str]]]]:
    packages = {"method": "flowrl.methods", "reward": "flowrl.rewards"}
    return {subject: json.loads((files(name) / "evidence.json").read_text(encoding="utf-8")) for subject, name in packages.items()}


def item(*marks: Any, own: tuple[Any, ...] = (), **params: str) -> Any:
    """A collected test: marks of its function, marks of its parameter, parameters."""
    return SimpleNamespace(
        nodeid="tests/test_x.py::test_y[z]",
        function=SimpleNamespace(pytestmark=[m.mark for m in marks]),
        iter_markers=lambda name: [m.mark for m in (*marks, *own)],
        callspec=SimpleNamespace(params=params),
    )


def test_the_committed_file_is_what_the_tests_claim() -> None:
    marked = sorted(str(p) for p in TESTS.glob("test_*.py") if "mark.evidence(" in p.read_text() and p != Path(__file__))
    environment = {**os.environ, "PYTHONPATH": str(Path(flowrl.__file__).parents[1])}
    environment.pop("FLOWRL_GOLDEN", None)
    done = subprocess.run(
        [sys.executable, str(TESTS / "evidence.py"), *marked],
        cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    claimed = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    again = "pytest -m evidence --evidence ."
    assert committed() == claimed, f"a marked test came, went or does not pass; run {again}"


def test_a_mark_on_a_function_stands_for_all_its_cases_and_one_on_a_parameter_for_that() -> None:
    golden, learns = pytest.mark.evidence("golden", *KNOWN["method"]), pytest.mark.evidence("learns")
    derived = pytest.mark.evidence("derived", "mix_grpo")
    case, whole = "tests/test_x.py::test_y[z]", "tests/test_x.py::test_y"
    assert claims(item(golden), KNOWN) == [Claim("golden", name, case, whole) for name in KNOWN["method"]]
    assert claims(item(own=(derived,)), KNOWN) == [Claim("derived", "mix_grpo", case, case)]
    assert claims(item(pytest.mark.evidence("real", "clip")), KNOWN) == [Claim("real", "clip", case, whole)]
    assert claims(item(learns, name="flow_grpo"), KNOWN) == [Claim("learns", "flow_grpo", case, case)]


@pytest.mark.parametrize(
    ("marked", "said"),
    [
        (item(pytest.mark.evidence("golden", "mixgrpo")), "evidence for 'mixgrpo', which is no method; did you mean 'mix_grpo'?"),
        (item(pytest.mark.evidence("real", "mix_grpo")), "evidence for 'mix_grpo', which is no reward"),
        (item(pytest.mark.evidence("proof", "mix_grpo")), "claims 'proof' evidence; there are: golden, derived, learns, real"),
        (item(pytest.mark.evidence("learns"), case="a"), "claims evidence of nothing"),
        (item(pytest.mark.evidence()), "claims evidence of nothing"),
    ],
)
def test_a_mark_that_says_nothing_is_refused(marked: Any, said: str) -> None:
    with pytest.raises(pytest.UsageError, match=said.replace("?", r"\?")):
        claims(marked, KNOWN)


def test_one_failed_case_takes_a_kind_away() -> None:
    made = [Claim("golden", "a", f"t[{i}]", "t") for i in range(2)] + [Claim("learns", "a", "u[a]", "u[a]")]
    whole = {"method": {"a": {"golden": ["t"], "learns": ["u[a]"]}}, "reward": {}}
    assert tables(made) == tables(made, {"t[0]", "t[1]", "u[a]"}) == whole
    assert tables(made, {"t[0]", "u[a]"})["method"] == {"a": {"learns": ["u[a]"]}}
    assert tables(made, {"t[0]"})["method"] == {}


def test_only_what_passed_is_written(tmp_path: Path) -> None:
    """A whole run of pytest: one method passes, one is skipped in a case, one fails."""
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "evidence.py").write_text((TESTS / "evidence.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.evidence('learns')\n@pytest.mark.parametrize('name', ['mix_grpo', 'spo', 'awm'])\n"
        "def test_it(name):\n    assert name != 'awm'\n    if name == 'spo': pytest.skip('no')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(flowrl.__file__).parents[1])}
    (tmp_path / FILES["method"]).parent.mkdir(parents=True)
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "evidence", "--evidence", "."]
    subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, timeout=280)
    assert json.loads((tmp_path / FILES["method"]).read_text()) == {"mix_grpo": {"learns": ["test_it.py::test_it[mix_grpo]"]}}
