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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn

from flowrl.models import embedded
from flowrl.recipes import named
from flowrl.recipes.run import Result, train
from flowrl.rewards import make
from flowrl.rewards.base import Samples, Scores, State
from flowrl.samplers import noise
from flowrl.shapes import flow


class Shuffled:
    """A reward whose values are permuted inside every group: the same numbers, no information."""

    def __init__(self, spec: str) -> None:
        self.reward, self.name, self.calls = make(spec), f"shuffled {spec}", 0

    def init(self) -> State:
        return {"calls": 0, "inner": self.reward.init()}

    def __call__(self, samples: Samples, state: State) -> tuple[Scores, State]:
        scores, inner = self.reward(samples, state["inner"])
        rows = [
            torch.randperm(scores.values.shape[1], generator=noise.generator(0, state["calls"], row, 0, f"shuffle {self.name}"))
            for row in range(len(scores.values))
        ]
        order = torch.stack(rows)
        return Scores(scores.values.gather(1, order), scores.valid.gather(1, order)), {"calls": state["calls"] + 1, "inner": inner}


def run(kind: str, seed: int, out: Path) -> Result:
    settings: dict[str, Any] = {"run.seed": seed, "run.folder": str(out / f"{kind}-{seed}")}
    if kind == "still":
        settings["optim.lr"] = 0.0
    if kind == "shuffled":
        names = [spec.name for spec in named("shapes").rewards]
        return train("shapes", {**settings, "rewards": ()}, rewards={f"shuffled {name}": Shuffled(name) for name in names})
    if kind == "pretraining":
        settings |= {
            "policy.model": str(continued(out / f"continued-{seed}", named("shapes").run.minutes or 9.0, seed)),
            "run.iterations": 0,
        }
    return train("shapes", settings)


def gone_on(
    nets: nn.Module,
    averages: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], torch.Tensor],
    seconds: float,
    clock: Callable[[], float],
    decay: float,
) -> int:
    """Trains for so many seconds of a clock, at a constant rate, with a moving average; the steps that were taken."""
    end, step = clock() + seconds, 0
    while clock() < end:
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        with torch.no_grad():
            for kept, new in zip(averages.parameters(), nets.parameters(), strict=True):
                kept.lerp_(new, 1 - min(decay, (1 + step) / (10 + step)))
    return step


def continued(folder: Path, minutes: float, seed: int, rate: float = 3e-4) -> Path:
    """The embedded model after `minutes` more of its own pretraining: same data, loss and average, all weights, AdamW at a
    constant rate.
    """
    pipe = StableDiffusion3Pipeline.from_pretrained(embedded("shapes"), dtype=torch.float32)
    nets = nn.ModuleDict(
        {name: getattr(pipe, name).train() for name in ("text_encoder", "text_encoder_2", "transformer")}
    ).requires_grad_(True)
    averages = flow.averaged(nets)
    data = flow.pool(pipe.vae, np.random.default_rng(seed).choice(flow.POOL, 8000, replace=False), seed + 1)
    optimizer = torch.optim.AdamW(nets.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(data.latents), (flow.BATCH,), generator=torch.Generator().manual_seed(seed * 2**32 + step))
        return flow.velocity_loss(nets, flow.batch(data, rows, step, seed + 1))

    step = gone_on(nets, averages, optimizer, loss, 60 * minutes, time.monotonic, 0.999)
    print(f"pretraining continued for {step} steps of {flow.BATCH}")
    for name, net in averages.items():
        getattr(pipe, name).load_state_dict(net.state_dict())
    pipe.save_pretrained(folder)
    return folder


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
    base = next(r["before"] for kind, r in rows.items() if kind != "pretraining") if set(rows) - {"pretraining"} else None
    for kind, r in rows.items():
        before = base if kind == "pretraining" and base else r["before"]
        change = r["after"]["score"] - before["score"]
        print(
            f"{kind:12s} {before['score']:.3f} -> {r['after']['score']:.3f}   change {change:+.3f}   "
            f"second judge {r['judges'][0]['gain']:+.3f}   minutes {r['minutes']:.1f}"
        )
    (args.out / f"controls-{args.seed}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
