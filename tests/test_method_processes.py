"""Two processes train every method of the table as one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinyrun
import torch
from method_table import TABLE
from method_worker import trained

from flowrl.dist import World

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes made of every method."""
    out = tmp_path_factory.mktemp("methods") / "two.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = Path(__file__).with_name("method_worker.py")
    done = subprocess.run(
        [*command, str(worker), str(out)], env=tinyrun.environment(), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out)


@pytest.mark.parametrize("name", TABLE)
def test_two_processes_equal_one(together: dict[str, dict[str, Any]], name: str) -> None:
    two, one = together[name], trained(name, World())
    first, other = one["rows"][0], two["rows"][0]
    assert first.keys() == other.keys()
    for key in first:
        if key.startswith(("reward/", "selection/", "ratio/first")):
            assert first[key] == other[key], key
        else:
            # losses nearly cancel: advantages sum to 0
            assert first[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key
    largest = float(one["weights"].abs().max())
    assert float((one["weights"] - two["weights"]).abs().max()) <= 1e-5 * largest
    assert one["rows"][1]["reward/mean"] == pytest.approx(two["rows"][1]["reward/mean"], abs=1e-2)
