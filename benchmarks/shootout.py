"""Methods compared at equal training time on the embedded model: one process, one thread, one line a run.

    OMP_NUM_THREADS=1 python benchmarks/shootout.py [--minutes 4] [--seeds 0 1 2] [--methods ...]
    python benchmarks/shootout.py --report

Every method gets the same seconds of training (rollout, reward and update; evaluations do not count), and its learning rate by
the same search. A run is one line of benchmarks/shootout.jsonl, written when it ends: whatever is killed, started again or
started beside itself on another core goes on with what is left. --report draws and writes SHOOTOUT.md from the lines.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from shootout_jobs import MARKS, WARMUP, Job, Line, Options, append, claimed, jobs, key, known, read

from flowrl import methods
from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.heldout import judge
from flowrl.loop import Parts, Session, begin, iterate
from flowrl.models import load_policy
from flowrl.recipe import MethodSpec, Recipe
from flowrl.recipes import build, named
from flowrl.recipes.result import versions
from flowrl.rewards.base import Reward
from flowrl.sizes import Sizes, derive


class Judge:
    """Held-out accuracy, always of the same captions and noise; a search sees other captions than a run."""

    def __init__(self, held: Prompts, captions: int, images: int, search: bool) -> None:
        if not 0 < 2 * captions <= len(held):
            raise ValueError(f"{captions} captions twice, for searches and for runs, but {len(held)} are held out; ask for fewer")
        self.held = held.take([2 * (i * (len(held) // 2) // captions) + search for i in range(captions)])
        self.images, self.judges = images, build.judges(("shapes:strict",), "cpu")

    def __call__(self, parts: Parts, session: Session) -> list[int]:
        """The right pictures of each caption."""
        with session.weights.using(parts.method.export):
            seen = judge(parts.policy, self.held, self.judges, self.images, 20, Sizes(32, 96), parts.world, guidance=1.0)
        return [int(right) for right in seen.scores["shapes:strict"].sum(1)]


def recipe(job: Job) -> Recipe:
    base = named("shapes")
    spec = base.method if job.kind == "base" else MethodSpec(job.method, dict(job.args))
    return replace(
        base,
        method=spec,
        optim=replace(base.optim, lr=job.lr, warmup=WARMUP),
        sizes=replace(base.sizes, group=job.group or base.sizes.group),
        run=replace(base.run, seed=job.seed),
    )


def begun(job: Job, trained: Prompts) -> tuple[Parts, Session]:
    r = recipe(job)
    given: dict[str, Reward] = {}
    if job.kind == "control":
        from demo_controls import Shuffled

        given = {f"shuffled {spec.name}": Shuffled(spec.name) for spec in r.rewards}
    rewards = build.rewards(replace(r, rewards=()) if given else r, given, "cpu")
    parts = Parts(r, load_policy(r.policy, "cpu", seed=job.seed), build.method(r.method, r.sizes.group), rewards, trained, World())
    plan = parts.method.plan_at(0, parts.policy.sigmas(r.policy.steps), 0)
    return parts, begin(parts, derive(r.sizes, r.sizes.prompts * len(plan.roots), parts.method.updates, 1))


def train(job: Job, parts: Parts, session: Session, look: Judge) -> Line:
    """Train for the job's minutes. A run whose gradient is no longer finite ends there and is judged as it is."""
    rows, error, took, cpu = [0, 0], None, 0.0, 0.0
    rewards: list[float] = []
    curve: list[Line] = []

    def count(network: object, given: object, out: Sequence[torch.Tensor]) -> None:
        rows[torch.is_grad_enabled()] += len(out[0])

    def point() -> Line:
        seen = list(rows)
        scores = look(parts, session)
        rows[:] = seen  # looking is no part of training
        return {"seconds": round(session.seconds, 2), "rows": seen, "scores": scores}

    hook = parts.policy.network.register_forward_hook(count)
    budget, marks = 60 * job.minutes, list(MARKS if job.kind == "run" else ())
    # the end nearest to the budget, so that long iterations gain nothing
    while session.seconds + took / 2 < budget and error is None:
        cpu -= time.process_time()
        try:
            row = iterate(parts, session)
            took = row["seconds/total"]
            rewards.append(round(row["reward/mean"], 4))
        except FloatingPointError as broken:
            error = str(broken)
        cpu += time.process_time()
        if marks and session.seconds >= marks[0] * budget:
            marks = [mark for mark in marks if session.seconds < mark * budget]
            curve.append(point())
    if not curve or curve[-1]["seconds"] != round(session.seconds, 2):
        curve.append(point())
    end = curve[-1]
    hook.remove()
    return {
        "iterations": session.iteration,
        "seconds": end["seconds"],
        "cpu_seconds": round(cpu, 2),
        "rows": end["rows"],
        "error": error,
        "rewards": rewards,
        "curve": curve if job.kind == "run" else [],
        "scores": end["scores"],
    }


def run(job: Job) -> Line:
    """The job's line. rows: sampled (without gradient) and trained (with);  scores: right pictures of each caption."""
    trained, held = build.prompts(named("shapes").data)
    look = Judge(held, job.captions, job.images, job.kind == "search")
    parts, session = begun(job, trained)
    result = train(job, parts, session, look)
    means = torch.tensor(result["scores"], dtype=torch.float64) / job.images
    return {
        **asdict(job),
        **result,
        "score": float(means.mean()),
        "se": float(means.std() / len(means) ** 0.5),
        "prompts": parts.recipe.sizes.prompts,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
    }


def commit() -> str:
    """Of the checkout this file lies in."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def one(path: Path, job: Job, make: Callable[[Job], Line]) -> bool | None:
    """Do a job and write it down: True; False where it failed; None where another process has it or has done it."""
    with claimed(path, job) as mine:
        if not mine or key(asdict(job)) in {key(line) for line in read(path)}:
            return None
        name = f"{job.kind} {job.method} lr {job.lr:g} seed {job.seed}"
        print(f"{name} ...", flush=True)
        try:
            line = make(job)
        except Exception:  # the other runs of a long night go on; a later start tries this one again
            print(f"{name} failed and is left out:\n{traceback.format_exc()}", flush=True)
            return False
        append(path, line)
    told = f"{line['score']:.3f} after {line['seconds']:.0f} s, {line['iterations']} iterations {line['error'] or ''}"
    print(f"{name}: {told}", flush=True)
    return True


def work(o: Options, path: Path, make: Callable[[Job], Line] = run, pause: float = 5.0) -> int:
    """Do what is left until nothing is. Returns the number of jobs that failed."""
    failed: set[str] = set()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lines = read(path)
        done = {key(line) for line in lines} | failed
        left = [job for job in jobs(o, lines) if key(asdict(job)) not in done]
        if not left:
            return len(failed)
        for job in left:
            did = one(path, job, make)
            if did is False:
                failed.add(key(asdict(job)))
            if did is not None:
                break
        else:
            time.sleep(pause)  # all that is left is being done by others


def options() -> tuple[Options, Path, bool]:
    o = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=o.methods)
    parser.add_argument("--minutes", type=float, default=o.minutes)
    parser.add_argument("--search-minutes", type=float, default=o.search_minutes)
    parser.add_argument("--rates", nargs="+", type=float, default=o.rates)
    parser.add_argument("--seeds", nargs="+", type=int, default=o.seeds)
    parser.add_argument("--controls", action=argparse.BooleanOptionalAction, default=o.controls)
    parser.add_argument("--captions", type=int, default=o.captions)
    parser.add_argument("--images", type=int, default=o.images)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/shootout.jsonl"))
    parser.add_argument("--report", action="store_true", help="table, picture and SHOOTOUT.md from the finished lines, no training")
    given = vars(parser.parse_args())
    for name in ("minutes", "search_minutes", "captions", "images"):
        if not given[name] > 0:
            parser.error(f"--{name.replace('_', '-')} {given[name]} must be above 0")
    return Options(**{f.name: given[f.name] for f in fields(Options)}), given["out"], given["report"]


def main() -> None:
    o, path, report = options()
    if report:
        from shootout_report import write

        try:
            write(o, path)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        return
    torch.set_num_threads(1)
    o = replace(o, methods=known(o.methods, methods.TABLE))
    if not o.methods:
        raise SystemExit("error: none of these methods can be compared; see benchmarks/shootout_jobs.py for those that can")
    raise SystemExit(1 if work(o, path) else 0)


if __name__ == "__main__":
    main()
