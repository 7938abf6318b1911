"""Plans as text and pictures: every leaf has its line, every edge its stroke, and the numbers are the plan's."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl import drawing, methods
from flowrl.cli.plan import save
from flowrl.samplers import Plan, chains, comb, laws, schedules, solvers, tree

GRID = schedules.linear_shift(4)
LAW = laws.flow_sde(0.7)


def test_a_chain_is_a_line() -> None:
    axis, line = drawing.tree_text(chains(GRID, LAW, [0, 1])).splitlines()
    assert axis.split() == ["1.00", "0.50", "0.00", "sigma"]
    assert line == "  o~~~o~~~.---.---#"


def test_a_tree_branches_where_it_does() -> None:
    lines = drawing.tree_text(tree(GRID, LAW, [0, 1], {0: 2, 1: 2})).splitlines()[1:]
    assert lines == [
        "  o~~~o~~~.---.---#",
        "      \\~~~.---.---#",
        "  \\~~~o~~~.---.---#",
        "      \\~~~.---.---#",
    ]


def test_a_comb_has_its_spine_first_and_jumps_where_it_jumps() -> None:
    lines = drawing.tree_text(comb(GRID, LAW, [1], 1, strides=(1, 2))).splitlines()[1:]
    assert lines == ["  .---o---.---.---#", "      \\~~~.---.---#", "          \\-------#"]


def test_many_images_are_counted_not_drawn() -> None:
    text = drawing.tree_text(chains(GRID, LAW, [0], 30))
    assert text.count("#") == drawing.ROWS and text.endswith(f"... and {30 - drawing.ROWS} more images")


@pytest.mark.parametrize("name", methods.TABLE)
def test_every_methods_leaves_are_drawn_once(name: str) -> None:
    plan = methods.TABLE[name]().plan_at(0, schedules.linear_shift(20, 3.0), 0)
    assert sorted(drawing.order(plan)) == plan.leaves.tolist()
    text = drawing.tree_text(plan, rows=10**6)
    assert text.count("#") == len(plan.leaves) and len(text.splitlines()) == 1 + len(plan.leaves)
    # every recorded state is an o once, unless a branch is drawn over it again
    assert text.count("o") == len(plan.rows)


def test_cost_names_calls_rows_and_slices() -> None:
    plan = comb(schedules.sd3(10), LAW, range(9), 6)
    text = drawing.cost_text(plan, prompts=8, size=4)
    assert "network calls to sample   280" in text and "rows to train on          9" in text
    assert drawing.slices(plan, 8, 4) == 9 * 2 and f"recorded calls            {9 * 2} for 8 prompts" in text
    assert "calls to sample   12 " in drawing.cost_text(chains(GRID, LAW, [0], 2), solvers.heun).replace("\n", " ")
    assert "re-noised images" in drawing.cost_text(chains(GRID, laws.ode(), (), 2))


def test_a_picture_has_a_stroke_for_every_edge(tmp_path: Path) -> None:
    plans: dict[str, tuple[Plan, solvers.Solver]] = {
        "tree": (tree(GRID, LAW, [0, 1], {0: 2}), solvers.euler),
        "comb": (comb(GRID, LAW, [0], 2), solvers.euler),
    }
    figure = drawing.picture(plans)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [len(axes.lines) for axes in shown] == [int((plan.parent >= 0).sum()) for plan, _ in plans.values()]
    noisy = [sum(line.get_color() == drawing.NOISE for line in axes.lines) for axes in shown]
    assert noisy == [len(plan.edges) for plan, _ in plans.values()]
    assert [axes.get_title(loc="left") for axes in shown] == ["tree", "comb"]
    for suffix in (".png", ".svg"):
        save(tmp_path / f"deep/plans{suffix}", plans)
        assert (tmp_path / f"deep/plans{suffix}").stat().st_size > 5000


def test_a_picture_of_nothing_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no plan to draw"):
        drawing.picture({})
    with pytest.raises(ValueError, match="names no picture"):
        save(tmp_path / "plans.doc", {})
