"""All methods of the table on the toy, two iterations each, by the processes torchrun starts; the first writes them down.

python -m torch.distributed.run --nproc_per_node 2 tests/method_worker.py FILE
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from method_table import TABLE, parts

from flowrl import dist
from flowrl.dist import World
from flowrl.loop import begin, iterate
from flowrl.sizes import Sizes


def trained(name: str, world: World) -> dict[str, Any]:
    """Rows of metrics without the clock, and the final weights."""
    of = parts(name)
    # Adam divides a gradient by its own size: with a small eps, the rounding of one near 0 moves a weight by the whole rate
    of = replace(of, world=world, recipe=replace(of.recipe, optim=replace(of.recipe.optim, lr=1e-3, eps=1e-2)))
    state = begin(of, Sizes(slice=2, batch=3))
    rows = [iterate(of, state) for _ in range(2)]
    return {
        "rows": [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows],
        "weights": torch.cat([p.detach().flatten() for p in state.weights.parameters]),
    }


def main() -> None:
    torch.set_num_threads(1)
    world = dist.start("cpu")
    found = {name: trained(name, world) for name in TABLE}
    if world.main:
        torch.save(found, sys.argv[1])
    world.stop()


if __name__ == "__main__":
    main()
