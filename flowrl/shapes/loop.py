"""One resumable training loop for all stages.

A step's randomness is a function of (seed, step), so a run that was cut and resumed continues exactly as if it had not been.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Job:
    """What a stage trains.

    loss: the step's number to a scalar loss; draws its batch from the step's number alone.
    rate: the step's number to a factor of every optimizer's learning rate.
    averages: pairs of (moving average, source); the average's decay at step s is min(decay, (1 + s) / (10 + s)).
    watch: called after every `watch_every` steps with the number of steps done; returns metrics to log.
    """

    modules: nn.ModuleDict
    optimizers: Sequence[Optimizer]
    loss: Callable[[int], Tensor]
    rate: Callable[[int], float]
    steps: int
    averages: nn.ModuleDict | None = None
    decay: float = 0.999
    clip: float = 1.0
    watch: Callable[[int], dict[str, object]] | None = None
    watch_every: int = 1000


def trapezoid(warm: float, hold: float, land: float, floor: float) -> Callable[[int], float]:
    """Rate by step: linear to 1 at `warm`, 1 until `hold`, a cosine to `floor` at `land`, flat from there on."""

    def rate(step: int) -> float:
        if step + 1 < warm:
            return (step + 1) / warm
        fall = min(max((step + 1 - hold) / (land - hold), 0.0), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall))

    return rate


def warm_cosine(steps: int, warm: int = 50) -> Callable[[int], float]:
    """Rate of a run of `steps`: linear warm-up over `warm` steps, then a cosine to 0."""

    def rate(step: int) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * step / steps))
        return min((step + 1) / warm, 1.0) * fall

    return rate


def save_atomically(value: object, path: Path) -> None:
    """torch.save that leaves either the old file or the whole new one."""
    part = path.with_suffix(path.suffix + ".part")
    torch.save(value, part)
    os.replace(part, path)


def _state(job: Job, step: int, seconds: float) -> dict[str, object]:
    return {
        "step": step,
        "seconds": seconds,
        "modules": job.modules.state_dict(),
        "averages": job.averages.state_dict() if job.averages is not None else None,
        "optimizers": [o.state_dict() for o in job.optimizers],
    }


def _restore(job: Job, path: Path) -> tuple[int, float]:
    state = torch.load(path, weights_only=True)
    job.modules.load_state_dict(state["modules"])
    if job.averages is not None:
        job.averages.load_state_dict(state["averages"])
    for optimizer, saved in zip(job.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["seconds"]


def _average(job: Job, step: int) -> None:
    if job.averages is None:
        return
    decay = min(job.decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, average in job.averages.items():
            kept, new = list(average.parameters()), list(job.modules[name].parameters())
            torch._foreach_lerp_(kept, [p.detach() for p in new], 1 - decay)


def rank() -> tuple[int, int]:
    """This process's number and how many train together; (0, 1) for one alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _reduce(job: Job, loss: Tensor) -> Tensor:
    """Averages the gradients and the loss over the processes."""
    _, world = rank()
    if world == 1:
        return loss
    with_grad = [p for p in job.modules.parameters() if p.grad is not None]
    flat = torch.cat([loss.reshape(1), *(p.grad.reshape(-1) for p in with_grad if p.grad is not None)])
    dist.all_reduce(flat)
    flat /= world
    for p, part in zip(with_grad, flat[1:].split([p.numel() for p in with_grad]), strict=True):
        p.grad = part.view_as(p)
    return flat[0]


def _step(job: Job, step: int, base: Sequence[Sequence[float]]) -> float:
    factor = job.rate(step)
    for optimizer, rates in zip(job.optimizers, base, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
    loss = job.loss(step)
    loss.backward()
    loss = _reduce(job, loss.detach())
    torch.nn.utils.clip_grad_norm_(job.modules.parameters(), job.clip)
    for optimizer in job.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _average(job, step)
    return float(loss)


def _truncate(log: Path, step: int) -> None:
    """Forget log lines of steps after the checkpoint; they will be written again, the same."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] < step or "watch" in line]
        lines = [line for line in lines if json.loads(line)["step"] <= step]
        log.write_text("".join(line + "\n" for line in lines))


def _report(job: Job, log: Path, step: int, loss: float, seconds: float) -> None:
    """The step's line in the log and, when it is due, what `watch` says."""
    watch = job.watch is not None and ((step + 1) % job.watch_every == 0 or step + 1 == job.steps)
    with log.open("a") as lines:
        lines.write(json.dumps({"step": step, "loss": loss, "seconds": round(seconds, 2)}) + "\n")
        if watch and job.watch is not None:
            lines.write(json.dumps({"step": step + 1, "watch": job.watch(step + 1)}) + "\n")


def run(job: Job, folder: Path, name: str, save_seconds: float = 180.0, stop: int | None = None) -> Path:
    """Trains to the job's last step, resuming from `folder/name.pt` if it exists; `stop` ends this call earlier.

    Writes `name.pt` (the state) and `name.jsonl` (step, loss, seconds). Returns the state's path.
    Of several processes (`torch.distributed`) the first one writes and watches; the job's loss is of a process's own share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
    base = [[group["lr"] for group in o.param_groups] for o in job.optimizers]
    start, before = _restore(job, path) if path.exists() else (0, 0.0)
    writes = rank()[0] == 0
    if writes:
        _truncate(log, start)
    begun = saved = time.monotonic()
    end = job.steps if stop is None else min(stop, job.steps)
    for step in range(start, end):
        loss = _step(job, step, base)
        seconds = before + time.monotonic() - begun
        if writes:
            _report(job, log, step, loss, seconds)
        if writes and (time.monotonic() - saved > save_seconds or step + 1 == end):
            save_atomically(_state(job, step + 1, seconds), path)
            saved = time.monotonic()
    return path
