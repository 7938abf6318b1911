"""The wheel, installed without the checkout, does the main job."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "run.iterations=1",
    "sizes.prompts=2",
    "sizes.group=2",
    "evaluate.prompts=6",
    "evaluate.images=1",
    "evaluate.steps=2",
    "policy.steps=6",
    "run.folder=run",
]


def call(place: Path, home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m flowrl ...` in an empty folder where only the unpacked wheel is importable."""
    env = {**os.environ, "PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, *command], cwd=home, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.ci
def test_wheel_trains_and_samples_without_the_checkout(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("flowrl_toolkit-*.whl")
    place, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    where = call(place, home, "-c", "import flowrl; print(flowrl.__file__)").stdout.strip()
    assert where.startswith(str(place)), where
    call(place, home, "-m", "flowrl", "train", "shapes", *(x for s in SMALL for x in ("--set", s)))
    for name in ("run.yaml", "result.json", "metrics.jsonl", "report.html", "lora/pytorch_lora_weights.safetensors"):
        assert (home / "run" / name).is_file(), name
    call(place, home, "-m", "flowrl", "sample", "a red circle", "--lora", "run/lora", "--steps", "4", "--out", "drawn")
    assert list((home / "drawn").glob("*.png"))
