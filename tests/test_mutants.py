"""The planted faults of mutants.py: each row fits the code, and (slow) each fault turns a test red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS, ROOT


def test_every_row_fits_the_code() -> None:
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS) >= 25
    for mutant in MUTANTS:
        assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, (
            f"{mutant.fault}: {mutant.old!r} is not found once in {mutant.file}"
        )
        assert mutant.old != mutant.new
        for name in mutant.tests.split():
            assert (ROOT / "tests" / name.split("::")[0]).is_file(), f"{mutant.fault}: no tests/{name}"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_fault_is_noticed() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mutants.py"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
