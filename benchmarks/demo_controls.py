"""The demo beside its controls: the same minutes, the same protocol, one table.

    python benchmarks/demo_controls.py [--seed 0] [--only rl shuffled still pretraining]

rl           the demo as it is
pretraining  the base's own pretraining continued instead (imperfect captions, its objective), for the same minutes
shuffled     the same RL with rewards shuffled inside each group
still        the same RL at learning rate 0
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from flowrl.recipes import named
from flowrl.recipes.run import Result, train
from flowrl.rewards import make
from flowrl.rewards.base import Samples, Scores, State
from flowrl.samplers import noise


class Shuffled:
    """A reward whose values are permuted inside every group: the same numbers, no information."""

    def __init__(self, spec: str) -> None:
        self.reward, self.name, self.calls = make(spec), f"shuffled {spec}", 0

    def init(self) -> State:
        return {"calls": 0, "inner": self.reward.init()}

    def __call__(self, samples: Samples, state: State) -> tuple[Scores, State]:
        scores, inner = self.reward(samples, state["inner"])
        rows = [torch.randperm(scores.values.shape[1], generator=noise.generator(0, state["calls"], row, 0, "shuffle"))
                for row in range(len(scores.values))]
        order = torch.stack(rows)
        return Scores(scores.values.gather(1, order), scores.valid.gather(1, order)), {"calls": state["calls"] + 1, "inner": inner}


def run(kind: str, seed: int, out: Path) -> Result:
    settings: dict[str, Any] = {"run.seed": seed, "run.folder": str(out / f"{kind}-{seed}")}
    if kind == "still":
        settings["optim.lr"] = 0.0
    if kind == "shuffled":
        name = named("shapes").rewards[0].name
        return train("shapes", {**settings, "rewards": ()}, rewards={f"shuffled {name}": Shuffled(name)})
    if kind == "pretraining":
        from flowrl.shapes.continued import pretrain_on

        settings |= {"policy.model": str(pretrain_on(out / f"continued-{seed}", minutes=named("shapes").run.minutes, seed=seed)), "run.iterations": 0}
        return train("shapes", settings)
    return train("shapes", settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    parser.add_argument("--only", nargs="*", default=["rl", "pretraining", "shuffled", "still"])
    args = parser.parse_args()
    rows = {}
    for kind in args.only:
        result = run(kind, args.seed, args.out)
        rows[kind] = json.loads((Path(result.folder) / "result.json").read_text())
    for kind, r in rows.items():
        print(f"{kind:12s} {r['before']['score']:.3f} -> {r['after']['score']:.3f}   gain {r['gain']['score']:+.3f} "
              f"+- {r['gain']['standard_error']:.3f}   second judge {r['judge']['gain']:+.3f}   minutes {r['minutes']:.1f}")
    (args.out / f"controls-{args.seed}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
