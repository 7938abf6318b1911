"""The live display: a panel on a terminal, plain lines elsewhere, silence off the main process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from flowrl import display
from flowrl.display import Display

ROW: dict[str, Any] = {
    "iteration": 4,
    "reward/mean": 0.5,
    "reward/std": 0.25,
    "reward/best": 0.9,
    "ratio/first_max_abs": 0.0,
    "heldout/score": 0.31,
    "grad/norm": 0.4,
    "clip/fraction": 0.03,
    "kl/mean": 1.5e-4,
    "seconds/rollout": 4.2,
    "seconds/decode": 0.3,
    "seconds/reward": 0.2,
    "seconds/train": 5.1,
    "seconds/total": 9.9,
}


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(display, "time", made)
    return made


def panel(shown: Display, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(shown.render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return text


def plain(terminal: bool = False) -> Console:
    return Console(width=100, file=io.StringIO(), force_terminal=terminal, color_system=None)


def written(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_panel_shows_what_the_row_says(clock: Clock) -> None:
    shown = Display(100, "mix_grpo on [shapes]", console=plain())
    clock.now += 50
    shown.update({**ROW, "heldout/score": 0.4, "iteration": 3})
    shown.update(ROW)
    text = panel(shown)
    for said in (
        "mix_grpo on [shapes]",
        "5/100",
        "0.5000 ± 0.2500",
        "best 0.9000",
        "0.3100",
        "best 0.4000",
        "exact: rollout and replay agree",
        "kl 1.50e-04",
        "clipped 3.0%",
        "gradient norm 0.4",
        "rollout 4.2",
        "train 5.1",
        "total 9.9",
        "0:50 elapsed",
    ):
        assert said in text, said
    panel(shown, 50)


def test_a_ratio_off_once_stays_in_sight(clock: Clock) -> None:
    shown = Display(100, "t", console=plain())
    for value in (0.0, 3e-3, 0.0):
        shown.update({**ROW, "ratio/first_max_abs": value})
    assert "max |Δ log p| 3.0e-03" in panel(shown)


def test_the_rest_is_estimated_at_the_pace_of_this_session(clock: Clock) -> None:
    shown = Display(100, "t", console=plain())
    assert shown.eta is None
    # Resumed at iteration 90: the 90 before took no time here.
    for i in (90, 91):
        clock.now += 10
        shown.update({"iteration": i})
    assert shown.eta == pytest.approx(80)
    clock.now += 4
    assert shown.eta == pytest.approx(76)


def test_a_budget_of_time_is_shown_and_bounds_the_rest(clock: Clock) -> None:
    shown = Display(100, "t", console=plain())
    clock.now += 60
    shown.update({**ROW, "minutes_budget": 3})
    assert "1:00 of 3:00" in panel(shown) and shown.eta == pytest.approx(120)
    shown.update({**ROW, "minutes_budget": 3, "minutes_elapsed": 2.5})
    assert "2:30 of 3:00" in panel(shown) and shown.eta == pytest.approx(30)
    assert "of 3:00" not in panel(Display(1, "t", console=plain()))
    shown.update({**ROW, "minutes_budget": None})
    assert " of " not in panel(shown)


@pytest.mark.parametrize(
    "row", [{"iteration": 0}, dict.fromkeys(ROW) | {"iteration": 0}, {"iteration": 0, "reward/mean": float("nan")}]
)
def test_what_is_not_there_is_not_shown(row: dict[str, Any]) -> None:
    console = plain()
    shown = Display(10, "t", console=console)
    shown.update(row)
    assert written(console).startswith("[1/10]") and "reward" not in written(console) and "nan" not in panel(shown)


def test_tensors_are_numbers() -> None:
    console = plain()
    Display(10, "t", console=console).update({"iteration": torch.tensor(2), "reward/mean": torch.tensor(0.5)})
    assert "[3/10]  reward 0.5000" in written(console)


def test_a_log_gets_one_plain_line_an_iteration_at_once() -> None:
    code = (
        "import time\nfrom flowrl.display import Display\n"
        "with Display(3, 't') as d:\n for i in range(2):\n  d.update({'iteration': i, 'reward/mean': 0.5})\n  time.sleep(1 - i)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], env=environment) as process:
        assert process.stdout
        first, began = process.stdout.readline(), time.monotonic()
        second = process.stdout.readline()
        # Without a flush both lines would come together when the process ends.
        assert time.monotonic() - began > 0.2
        rest = process.stdout.read()
    assert first.startswith("[1/3]  reward 0.5000") and second.startswith("[2/3]") and rest == "" and "\x1b" not in first


def test_a_terminal_gets_a_panel_and_no_lines() -> None:
    console = plain(terminal=True)
    with Display(10, "t", console=console) as shown:
        shown.update(ROW)
    assert "╭" in written(console) and "[5/10]" not in written(console)


@pytest.mark.parametrize(("quiet", "rank"), [(True, "0"), (False, "3")])
@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_are_silent(monkeypatch: pytest.MonkeyPatch, quiet: bool, rank: str, terminal: bool) -> None:
    monkeypatch.setenv("RANK", rank)
    console = plain(terminal)
    with Display(10, "t", quiet, console) as shown:
        shown.update(ROW)
    assert written(console) == ""
