"""Draw all ways to sample side by side, for the README:  python benchmarks/methods_figure.py [assets/figures/methods.png]

Each tree once, under the first method that has it and the number of others. Ten steps and few images each, so that the trees can be
read; the captions count what is drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flowrl import methods
from flowrl.cli.plan import save
from flowrl.samplers import Plan, schedules
from flowrl.samplers.solvers import Solver

STEPS = 10
SMALL: dict[str, dict[str, Any]] = {
    "branch_grpo": {"group": 8, "points": (0, 2, 4)},
    "tree_rpo": {"group": 8, "depth": 3},
    "tempflow_grpo": {"group": 2, "teeth": 2},
    "g2rpo": {"group": 2, "steps": 3},
}


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("assets/figures/methods.png")
    sigmas = schedules.linear_shift(STEPS, 2.0)
    drawn: dict[object, tuple[list[str], Plan, Solver]] = {}
    for name, make in methods.TABLE.items():
        method = make(**SMALL.get(name, {"group": 4}))
        plan = method.plan_at(0, sigmas, 0)
        tree = tuple(tuple(t.tolist()) for t in (plan.sigma, plan.parent, plan.noisy))
        drawn.setdefault(tree, ([], plan, method.solver))[0].append(name)
    plans = {f"{names[0]} (+{len(names) - 1})" if names[1:] else names[0]: (plan, solver) for names, plan, solver in drawn.values()}
    save(out, plans)
    print(f"{len(methods.TABLE)} methods on {len(plans)} trees drawn into {out}")


if __name__ == "__main__":
    main()
