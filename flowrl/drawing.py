"""Plans as text and as pictures: the tree over its noise levels, how noisy each edge is, what is recorded and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from flowrl.samplers import Plan, solvers
from flowrl.samplers.solvers import Solver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 4
ROWS = 12
NOISE, QUIET, INK = "#c2410c", "#94a3b8", "#0f172a"


def levels(plan: Plan) -> list[float]:
    """The noise levels of a plan, from noise to data."""
    return sorted(set(plan.sigma.tolist()), reverse=True)


def children(plan: Plan) -> dict[int, list[int]]:
    """Node -> its children; the key -1 has the roots."""
    out: dict[int, list[int]] = {}
    for node, parent in enumerate(plan.parent.tolist()):
        out.setdefault(parent, []).append(node)
    return out


def order(plan: Plan) -> list[int]:
    """Leaves as a walk down the tree meets them, quiet children first: a comb's spine lies above its teeth."""
    below, noisy = children(plan), plan.noisy.tolist()
    found: list[int] = []
    open_ = list(reversed(below[-1]))
    while open_:
        node = open_.pop()
        if node not in below:
            found.append(node)
        open_ += sorted(below.get(node, []), key=lambda n: (noisy[n], n), reverse=True)
    return found


def tree_text(plan: Plan, rows: int = ROWS) -> str:
    """A line a leaf over the axis of sigma: o a recorded state, . another, # an image, ~ a noisy edge, - a quiet one."""
    column = {sigma: i for i, sigma in enumerate(levels(plan))}
    sigma, parent, noisy = plan.sigma.tolist(), plan.parent.tolist(), plan.noisy.tolist()
    recorded, ends = set(plan.rows.tolist()), order(plan)
    drawn: set[int] = set()
    lines = []
    for leaf in ends[:rows]:
        cells = [" "] * (CELL * (len(column) - 1) + 1)
        node = leaf
        while node >= 0:
            at = CELL * column[sigma[node]]
            first = node not in drawn
            if first:
                cells[at] = "#" if node == leaf else "o" if node in recorded else "."
                drawn.add(node)
            above = parent[node]
            if above >= 0 and first:
                start = CELL * column[sigma[above]]
                for i in range(start + 1, at):
                    cells[i] = "~" if noisy[node] else "-"
                if above in drawn:
                    cells[start] = "\\"
            node = above if first else -1
        lines.append("  " + "".join(cells).rstrip())
    if len(ends) > rows:
        lines.append(f"  ... and {len(ends) - rows} more images")
    ticks = "".join(f"{value:<{CELL}.2f}"[:CELL] if i % 2 == 0 else " " * CELL for i, value in enumerate(column))
    return "\n".join([f"  {ticks.rstrip()}   sigma", *lines])


def steps_text(plan: Plan) -> str:
    """A line a step of the schedule: how many edges take it, how many of them are noisy, and their std."""
    groups: dict[tuple[float, float], list[int]] = {}
    sigma, noisy = plan.sigma.tolist(), plan.noisy.tolist()
    for node, above in enumerate(plan.parent.tolist()):
        if above >= 0:
            groups.setdefault((sigma[above], sigma[node]), []).append(node)
    lines = [f"  {'sigma':>7}    {'next':>7}  {'edges':>6}  {'noisy':>6}  {'std':>8}"]
    for (high, low), nodes in sorted(groups.items(), key=lambda item: (-item[0][0], -item[0][1])):
        on = [node for node in nodes if noisy[node]]
        std = f"{float(plan.coefficients(torch.tensor(on[:1]))[2]):8.4f}" if on else f"{'-':>8}"
        lines.append(f"  {high:7.4f} -> {low:7.4f}  {len(nodes):6d}  {len(on) or '-':>6}  {std}")
    return "\n".join(lines)


def slices(plan: Plan, prompts: int, size: int) -> int:
    """Recorded network calls of a rollout of `prompts` prompts, at most `size` rows each: no call mixes waves."""
    depth = plan.depth[plan.rows]
    return sum(math.ceil(prompts * int((depth == d).sum()) / size) for d in depth.unique().tolist())


def cost_text(plan: Plan, solver: Solver = solvers.euler, prompts: int = 8, size: int = 32) -> str:
    """What one prompt costs, and how the recorded calls of an iteration are cut."""
    quiet = int((~plan.noisy & (plan.parent >= 0)).sum())
    note = (
        ""
        if len(plan.edges)
        else "  (no noisy step: for methods that choose their own rows, re-noised images or gradients of the reward)"
    )
    calls = plan.nfe(solver)
    rows = [
        ("noise levels", f"{len(levels(plan))}"),
        ("initial states (roots)", f"{len(plan.roots)}"),
        ("images (leaves)", f"{len(plan.leaves)}"),
        ("recorded (noisy) edges", f"{len(plan.edges)}"),
        ("quiet edges", f"{quiet}"),
        ("network calls to sample", f"{calls}"),
        ("rows to train on", f"{len(plan.rows)}{note}"),
        ("calls an image", f"{calls / len(plan.leaves):.2f}"),
    ]
    if len(plan.edges):
        rows.append(("recorded calls", f"{slices(plan, prompts, size)} for {prompts} prompts, in slices of at most {size} rows"))
    return "\n".join(f"  {name:<24}  {value}" for name, value in rows)


def heights(plan: Plan) -> list[float]:
    """Where a node is drawn: leaves one below the other, a state at its quiet child, else amid its children."""
    below, noisy = children(plan), plan.noisy.tolist()
    y = [math.nan] * len(noisy)
    for i, leaf in enumerate(order(plan)):
        y[leaf] = float(i)
    for node in reversed(range(len(noisy))):
        if node in below:
            own = [n for n in below[node] if not noisy[n]] or below[node]
            y[node] = sum(y[n] for n in own) / len(own)
    return y


def panel(axes: Axes, plan: Plan, title: str, solver: Solver = solvers.euler) -> None:
    """One plan over its sigma axis."""
    y, sigma, parent, noisy = heights(plan), plan.sigma.tolist(), plan.parent.tolist(), plan.noisy.tolist()
    std = dict(zip(plan.edges.tolist(), plan.coefficients(plan.edges)[2].tolist(), strict=True))
    widest = max(std.values(), default=1.0)
    for node, above in enumerate(parent):
        if above < 0:
            continue
        way = ([sigma[above], sigma[above], sigma[node]], [y[above], y[node], y[node]])
        if noisy[node]:
            axes.plot(
                *way, color=NOISE, lw=0.6 + 2.2 * std[node] / widest, solid_joinstyle="round", solid_capstyle="butt", zorder=2
            )
        else:
            axes.plot(*way, color=QUIET, lw=0.7, zorder=1)
    rows, leaves = plan.rows.tolist(), plan.leaves.tolist()
    other = sorted(set(range(len(parent))) - {*rows, *leaves})
    axes.scatter([sigma[n] for n in other], [y[n] for n in other], s=2.5, color=QUIET, zorder=2)
    axes.scatter([sigma[n] for n in rows], [y[n] for n in rows], s=11, color="white", edgecolor=INK, linewidth=0.8, zorder=3)
    axes.scatter([sigma[n] for n in leaves], [y[n] for n in leaves], s=9, marker="s", color=INK, zorder=3)
    axes.set_xlim(1.04, -0.04)
    axes.set_ylim(len(leaves) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xticks([1, 0.5, 0], ["1", "σ", "0"])
    axes.tick_params(length=2, labelsize=7, colors="#475569")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cbd5e1")
    calls = plan.nfe(solver)
    axes.set_title(title, fontsize=9, loc="left", color=INK, fontweight="bold", pad=14)
    note = f"{len(leaves)} images, {calls} calls, trains on {len(plan.rows)}"
    axes.annotate(note, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=7, color="#475569")


def picture(plans: Mapping[str, tuple[Plan, Solver]], columns: int = 4) -> Figure:
    """Plans side by side. Orange: noisy edges, wider where the std is larger; grey: quiet ones; rings: recorded states; squares:
    images.

    Raises: ValueError for no plan.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not plans:
        raise ValueError("no plan to draw; give at least one")
    columns = min(columns, len(plans))
    rows = math.ceil(len(plans) / columns)
    tall = max(len(plan.leaves) for plan, _ in plans.values())
    width = 2.9 * columns if columns > 1 else 5.5
    figure = Figure(figsize=(width, min(40.0, max(2.0, 0.075 * tall)) * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, (plan, solver)) in zip(_cells(grid), plans.items(), strict=False):
        panel(axes, plan, name, solver)
    for axes in list(_cells(grid))[len(plans) :]:
        axes.set_visible(False)
    key = [
        Line2D([], [], color=NOISE, lw=2, label="noisy step (width: its std)"),
        Line2D([], [], color=QUIET, lw=1, label="quiet step"),
        Line2D([], [], ls="", marker="o", mfc="white", mec=INK, ms=4, label="recorded state, trained on"),
        Line2D([], [], ls="", marker="s", color=INK, ms=3, label="image"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=4 if columns > 1 else 2, fontsize=7, frameon=False)
    return figure


def _cells(grid: object) -> Iterator[Axes]:
    for row in grid:  # pyright: ignore[reportGeneralTypeIssues]
        yield from row
