"""A tiny model, a reward and a recipe that trains it in a second, for tests of whole runs; also what their subprocesses import."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowrl import settings
from flowrl.recipe import EvalSpec, LoraSpec, MethodSpec, OptimSpec, PolicySpec, Recipe, RewardSpec, RunSpec, SizesSpec
from flowrl.rewards import Detailed, Samples, Scores, State, groupwise

HERE = Path(__file__).resolve().parent
BRIGHT, WINNER, LEARNER = (f"{HERE / 'tinyrun.py'}:{name}" for name in ("bright", "winner", "learner"))
PROMPTS = [
    "a red circle",
    "two blue square",
    "a green circle",
    "three red square",
    "a blue circle left of a red square",
    "two green circle",
    "a red square",
    "three blue circle",
]
MIX = MethodSpec("mix_grpo", {"window": 2, "every": 1, "updates": 2, "beta": 0.01, "skip_last": 1})
NFT = MethodSpec("diffusion_nft", {"decay_rate": 0.2, "kl": 0.01})
METHODS = {"mix_grpo": MIX, "diffusion_nft": NFT}


def bright(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    """Mean brightness minus some of the red: every image has its own."""
    return (images.mean((1, 2, 3)) / 255 - 0.3 * images[..., 0].std((1, 2)) / 255).tolist()


def broken_on_one(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    if os.environ.get("RANK") == "1":
        raise RuntimeError("broken on process 1")
    return bright(images, prompts, metadata)


def _wins(images: np.ndarray, prompt: str, metadata: dict[str, Any]) -> Detailed:
    level = np.array(bright(images, [], []))
    wins = (level[:, None] > level[None]).mean(1)
    return Detailed(wins, {"rivals": [len(images)] * len(images)})


winner = groupwise(_wins)
"""The share of its rivals an image is brighter than, and how many images it met."""


class Learner:
    """Brightness minus a bar, which every second lesson moves to the mean brightness, with the policy left alone."""

    name = "learner"

    def init(self) -> State:
        return {"bar": torch.zeros(()), "lessons": 0}

    def __call__(self, samples: Samples, state: State) -> tuple[Scores, State]:
        level = samples.pixels.double().mean((2, 3, 4)) / 255 - state["bar"]
        return Scores(level.float().masked_fill(~samples.scored, np.nan), samples.scored), state

    def update(self, samples: Samples, state: State) -> tuple[State, dict[str, float], bool]:
        assert samples.scored.all()
        skip = state["lessons"] % 2 == 1
        bar = samples.pixels.double().mean() / 255 if skip else state["bar"]
        return {"bar": bar, "lessons": state["lessons"] + 1}, {"learner/bar": float(bar)}, skip


learner = Learner()


@functools.cache
def model() -> str:
    """Folder of a tiny random SD3 pipeline, made once a test session."""
    import tiny

    folder = Path(tempfile.mkdtemp(prefix="flowrl-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(tiny.save_sd3(folder))


def recipe(folder: Path | str, changes: Mapping[str, Any] | None = None, method: MethodSpec = MIX) -> Recipe:
    """Two prompts of four images, four steps, three iterations, a checkpoint each."""
    made = Recipe(
        method=method,
        rewards=(RewardSpec(BRIGHT),),
        optim=OptimSpec(lr=1e-2),
        sizes=SizesSpec(prompts=2, group=4, slice=3, batch=4),
        policy=PolicySpec(model=model(), dtype="float32", steps=4, max_sequence_length=16, lora=LoraSpec(rank=4, alpha=8.0)),
        evaluate=EvalSpec(every=2, quick=2, images=2, steps=2),
        run=RunSpec(iterations=3, folder=str(folder), save_every=1, device="cpu"),
    )
    made = replace(made, data=replace(made.data, prompts=str(prompt_file()), heldout=0.25))
    return settings.resolve(made, changes or {})


@functools.cache
def prompt_file() -> Path:
    path = Path(model()) / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def rows(folder: Path | str) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds/")} for line in lines]


def final(folder: Path | str) -> tuple[int, dict[str, Any]]:
    """The newest checkpoint without the clock."""
    from flowrl import checkpoint

    iteration, state, _ = checkpoint.load_latest(folder)
    books = {k: v for k, v in state["books"].items() if k != "elapsed"}
    books["before"] = {k: v for k, v in books.get("before", {}).items() if k != "seconds"}
    return iteration, {**{k: v for k, v in state.items() if k != "seconds"}, "books": books}


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two trees of plain data and tensors are not the same bits."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a, b):
            yield f"{where}: tensors differ"
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            yield from [f"{where}/{key}: only once"] if (key in a) != (key in b) else differences(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}/{i}")
    elif a != b and not (a != a and b != b):
        yield f"{where}: {a!r} and {b!r}"


def same_run(a: Path | str, b: Path | str) -> None:
    """Weights, optimizer, weight sets, states, sizes, held-out scores and metrics are equal to the bit."""
    assert rows(a) == rows(b)
    (first, one), (second, other) = final(a), final(b)
    assert first == second and not list(differences(one, other))


def environment(**more: str) -> dict[str, str]:
    """For subprocesses: one thread each, no network, this checkout and these helpers."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def flowrl(*words: str, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flowrl", *words],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """As the subprocesses run: sums over threads would be ordered differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parts(changes: Mapping[str, Any] | None = None, method: Any = None, reward: Any = bright) -> Any:
    """What the loop takes, with an adapter that does something; method None: the recipe's."""
    import tiny

    from flowrl import data
    from flowrl.dist import World
    from flowrl.loop import Parts
    from flowrl.models import load_policy
    from flowrl.recipes import build
    from flowrl.rewards import make

    spec = recipe("unused", changes)
    policy = load_policy(spec.policy)
    tiny.excite(policy.trainable(), 0.1)
    made = method or build.method(spec.method, spec.sizes.group)
    return Parts(spec, policy, made, {"bright": (make(reward, "bright"), 1.0)}, data.read(PROMPTS), World())


def child(job: dict[str, Any]) -> None:
    """A training run in a process of its own, with the faults a test asked for. Leaves told.<rank>.json beside the run's folder."""
    import logging
    import time

    import flowrl.loop
    from flowrl import checkpoint
    from flowrl.models import DiffusersPolicy
    from flowrl.recipes.run import train

    torch.set_num_threads(1)
    os.environ.update(job.get("env", {}))
    rank, folder, fault = int(os.environ.get("RANK", 0)), Path(job["folder"]), job.get("fault", "")
    logging.basicConfig(filename=folder.with_name(f"{folder.name}.{rank}.log"), level=logging.INFO, force=True)
    if job.get("slow"):  # so that a kill can hit a checkpoint being written
        write = checkpoint.Sink.write
        checkpoint.Sink.write = lambda self, data: (time.sleep(job["slow"]), write(self, data))[1]
    if job.get("keep"):
        collect, count = flowrl.loop.collect, iter(range(10**6))

        def kept(*args: Any, **kwargs: Any) -> Any:
            got, ro = collect(*args, **kwargs), None
            ro = got.rollout
            record = (
                None
                if ro is None
                else {"x": ro.x, "u": ro.u, "log_prob": ro.log_prob, "owned": ro.owned[:, ro.plan.kept], "slots": ro.slots}
            )
            scores = {name: (s.values, s.valid) for name, s in got.outcome.scores.items()}
            torch.save({"record": record, "scores": scores}, f"{job['keep']}.{rank}.{next(count)}.pt")
            return got

        flowrl.loop.collect = kept
    if fault.startswith("oom") and rank == int(fault[-1]):
        predict = DiffusersPolicy.predict

        def small(self: Any, x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
            if len(x) > 1 and torch.is_grad_enabled() == fault.startswith("oom-train"):
                raise torch.OutOfMemoryError("injected")
            return predict(self, x, sigma, cond)

        DiffusersPolicy.predict = small
    if fault.startswith("predict") and rank == int(fault[-1]):

        def broken(self: Any, x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
            raise ArithmeticError("predict broke on purpose")

        DiffusersPolicy.predict = broken
    rewards = None if not fault.startswith("reward") else {"odd": odd(fault, rank)}
    told: dict[str, Any] = {"error": None}
    try:
        result = train(
            settings.resolve(job["recipe"], {"rewards": ()}) if rewards else job["recipe"],
            rewards=rewards,
            resume=job.get("resume"),
        )
        told |= {"iterations": result.iterations, "interrupted": result.interrupted}
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"
    folder.with_name(f"{folder.name}.{rank}.json").write_text(json.dumps(told))


def odd(fault: str, rank: int) -> Any:
    """A reward that fails on one process, or everywhere."""
    import time

    def reward(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        mine = fault[-1] == "*" or rank == int(fault[-1])
        if fault.startswith("reward-sleep") and mine:
            Path(os.environ["FLOWRL_ASLEEP"]).touch()
            time.sleep(120)
        if fault.startswith("reward-raise") and mine:
            raise KeyError("reward broke on purpose")
        return [float("nan")] * len(images) if fault.startswith("reward-nan") and mine else bright(images, prompts, metadata)

    return reward


@functools.cache
def server() -> Any:
    """Processes forked from one that has imported everything: a start costs a second instead of fifteen."""
    import multiprocessing

    os.environ.update({k: v for k, v in environment().items() if k in ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HUB_OFFLINE")})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tinyrun",
            "tiny",
            "flowrl.recipes.run",
            "flowrl.cli.app",
            "peft.tuners.tuners_utils",
            "torch._dynamo",
            "diffusers.loaders.peft",
            "torch.distributed",
        ]
    )
    return context


def start(folder: Path, made: Recipe, **job: Any) -> Any:
    """A child that trains; told() says how it ended."""
    process = server().Process(target=child, args=({"folder": str(folder), "recipe": made, **job},))
    process.start()
    return process


def told(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads(folder.with_name(f"{folder.name}.{rank}.json").read_text())


def ended(process: Any, seconds: float = 200) -> int:
    """The exit code of a child, which is killed if it takes longer."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the process still ran after {seconds} s")
    return process.exitcode


def together(count: int, folder: Path, made: Recipe, **job: Any) -> list[Any]:
    """`count` processes that train together, with the variables torchrun sets."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **job.pop("env", {})}
    return [start(folder, made, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **job) for rank in range(count)]
