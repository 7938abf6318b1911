"""The live display of a training run: a panel on a terminal, one line an iteration anywhere else, nothing off the main process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flowrl.folder import plain

STAGES = ("rollout", "decode", "reward", "train")
BLOCKS = "▁▂▃▄▅▆▇█"
QUIET_COLOUR, ACCENT = "bright_black", "cyan"


class Display:
    """Shows rows of metrics as they come. A value that is missing or None is not shown; nothing is written before the first row.

    update(row): keys as in metrics.jsonl; "minutes_budget" adds a bar for the time, "minutes_elapsed" says what of it is spent
    (for a resumed run; without it, this session counts).
    """

    def __init__(self, total: int, title: str, quiet: bool = False, console: Console | None = None) -> None:
        self.total, self.title = total, title
        self.console = console or Console()
        # torchrun and accelerate set RANK; only the first process speaks.
        self.quiet = quiet or os.environ.get("RANK", "0") not in ("", "0")
        self.row: dict[str, float] = {}
        self.rewards: list[float] = []
        self.heldout: list[float] = []
        self.ratio: float | None = None
        self.seen = self.done = 0
        self.started = self.updated = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Display:
        self.started = self.updated = time.monotonic()
        if not self.quiet and self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self.render, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Take in the row of an iteration that is done."""
        self.row = {k: float(v) for k, v in plain(row).items() if isinstance(v, int | float)}
        self.done = int(self.row.get("iteration", self.done)) + 1
        self.seen += 1
        self.updated = time.monotonic()
        if "reward/mean" in self.row:
            self.rewards.append(self.row["reward/mean"])
        if "heldout/score" in self.row:
            self.heldout.append(self.row["heldout/score"])
        if "ratio/first_max_abs" in self.row:
            self.ratio = max(self.ratio or 0.0, self.row["ratio/first_max_abs"])
        if self._live is not None:
            self._live.refresh()
        elif not self.quiet:
            # rich flushes after every print, so that a log can be followed.
            self.console.print(self.line(), soft_wrap=True, markup=False, highlight=False)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def spent(self) -> float:
        """Seconds of the time budget that are used up."""
        minutes = self.row.get("minutes_elapsed")
        return self.elapsed if minutes is None else 60 * minutes + time.monotonic() - self.updated

    @property
    def eta(self) -> float | None:
        """Seconds left: what the iterations still need at this session's pace, or what is left of the budget if that is less."""
        if not self.seen:
            return None
        since = time.monotonic() - self.updated
        left = max(0.0, (self.updated - self.started) / self.seen * (self.total - self.done) - since)
        budget = self.row.get("minutes_budget")
        return left if budget is None else min(left, max(0.0, 60 * budget - self.spent))

    def line(self) -> str:
        """The last row as one plain line."""
        parts = [f"[{self.done}/{self.total}]"]
        if "reward/mean" in self.row:
            parts.append("reward " + self._spread())
        for key, name, form in (
            ("heldout/score", "held-out", ".4f"),
            ("kl/mean", "kl", ".2e"),
            ("clip/fraction", "clip", ".1%"),
            ("grad/norm", "grad", ".3g"),
            ("seconds/total", "s", ".1f"),
        ):
            if key in self.row:
                parts.append(f"{name} {self.row[key]:{form}}")
        if "ratio/first_max_abs" in self.row:
            off = self.row["ratio/first_max_abs"]
            parts.append(f"ratio off by {off:.1e}" if off else "ratio exact")
        if self.eta is not None:
            parts.append(f"left {_clock(self.eta)}")
        return "  ".join(parts)

    def render(self) -> RenderableType:
        """The panel as of now."""
        bars = Table.grid(padding=(0, 2), expand=True)
        bars.add_column(style=QUIET_COLOUR, no_wrap=True)
        bars.add_column(ratio=1)
        bars.add_column(justify="right", no_wrap=True)
        bars.add_row("iteration", _bar(self.done, self.total), f"{self.done}/{self.total}")
        budget = self.row.get("minutes_budget")
        if budget is not None:
            spent = min(self.spent, 60 * budget)
            bars.add_row("time", _bar(spent, 60 * budget), f"{_clock(spent)} of {_clock(60 * budget)}")
        clock = f"{_clock(self.elapsed)} elapsed" + ("" if self.eta is None else f"  ·  {_clock(self.eta)} left")
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style=QUIET_COLOUR, no_wrap=True)
        facts.add_column()
        for name, value in self._facts():
            facts.add_row(name, value)
        return Panel(
            Group(bars, Text(), facts),
            title=f"[bold]{escape(self.title)}[/]",
            title_align="left",
            subtitle=clock,
            subtitle_align="right",
            border_style=QUIET_COLOUR,
            padding=(1, 2),
        )

    def _facts(self) -> list[tuple[str, RenderableType]]:
        row = self.row
        if not self.seen:
            return [("", Text("waiting for the first iteration", style=QUIET_COLOUR))]
        facts: list[tuple[str, RenderableType]] = []
        if self.rewards:
            best = f"   best {row['reward/best']:.4f}" if "reward/best" in row else ""
            facts.append(("reward", Text.assemble((self._spread(), "bold"), best, "   ", (_spark(self.rewards), ACCENT))))
        if self.heldout:
            facts.append(
                (
                    "held out",
                    Text.assemble(
                        (f"{self.heldout[-1]:.4f}", "bold"), f"   best {max(self.heldout):.4f}   ", (_spark(self.heldout), ACCENT)
                    ),
                )
            )
        if self.ratio is not None:
            exact = self.ratio == 0
            said = "exact: rollout and replay agree" if exact else f"max |Δ log p| {self.ratio:.1e} before the first update"
            facts.append(("ratio check", Text(said, style="green" if exact else "yellow")))
        update = [
            f"{name} {row[key]:{form}}"
            for key, name, form in (
                ("kl/mean", "kl", ".2e"),
                ("clip/fraction", "clipped", ".1%"),
                ("grad/norm", "gradient norm", ".3g"),
            )
            if key in row
        ]
        if update:
            facts.append(("update", Text("   ".join(update))))
        stages = [f"{stage} {row[f'seconds/{stage}']:.1f}" for stage in STAGES if f"seconds/{stage}" in row]
        if stages:
            total = f"   total {row['seconds/total']:.1f}" if "seconds/total" in row else ""
            facts.append(("seconds", Text("   ".join(stages) + total)))
        return facts

    def _spread(self) -> str:
        std = f" ± {self.row['reward/std']:.4f}" if "reward/std" in self.row else ""
        return f"{self.rewards[-1]:.4f}{std}"


def _bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(max(total, 1), done, complete_style=ACCENT, finished_style=ACCENT, style=QUIET_COLOUR)


def _spark(values: list[float], width: int = 24) -> str:
    shown = values[-width:]
    low, high = min(shown), max(shown)
    if high == low:
        return BLOCKS[0] * len(shown)
    return "".join(BLOCKS[round((v - low) / (high - low) * (len(BLOCKS) - 1))] for v in shown)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
