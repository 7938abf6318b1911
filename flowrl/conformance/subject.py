"""What is checked: a model as a policy, and what its own pipeline draws."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowrl import export
from flowrl.models.family import Begins
from flowrl.models.generic import Generic, decoding
from flowrl.models.policy import DiffusersPolicy
from flowrl.models.prompts import Cond, asked
from flowrl.recipe import LoraSpec, PolicySpec
from flowrl.samplers import paths

from .plain import draw

STEPS = 3
DIFFUSED = 4
"""Steps on a variance-preserving diffusion: of the usual 1000 times they are a whole part, as DDIM's trailing spacing asks."""
SCALE = 0.3  # of the noise an adapter is filled with, so that it does something


@dataclass
class Subject:
    """A pipeline's folder and the policy made of it.

    build: spec -> policy.  prompts, images: what is drawn; a file, several, or None where a prompt has no image.  work: a folder
      for files.
    full: whether the network is also trained as a whole.  here: whether the pipeline draws in this process, by the policy's own
    parts: a second copy of a large model has no place.  saving: the settings of activation checkpointing that are tried.
    """

    folder: Path
    build: Callable[[PolicySpec], DiffusersPolicy]
    spec: PolicySpec
    prompts: Sequence[str]
    images: Sequence[Sequence[Path] | Path | None]
    work: Path
    full: bool = True
    here: bool = False
    saving: Sequence[bool] = (False, True)
    errors: dict[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def adapted(self) -> DiffusersPolicy:
        """With an adapter, which is at its start but inside `excited`."""
        rank = self.spec.lora.rank or 2
        return self.build(replace(self.spec, lora=replace(self.spec.lora, rank=rank, alpha=1.5 * rank)))

    @contextmanager
    def excited(self) -> Iterator[DiffusersPolicy]:
        """`adapted`, whose adapter does something inside."""
        trained = [p for _, p in self.adapted.trainable()]
        before = [p.detach().clone() for p in trained]
        excite(self.adapted)
        try:
            yield self.adapted
        finally:
            with torch.no_grad():
                for p, was in zip(trained, before, strict=True):
                    p.copy_(was)

    @cached_property
    def whole(self) -> DiffusersPolicy:
        """Trained as a whole, and not moved yet: the base."""
        return self.build(replace(self.spec, lora=LoraSpec(rank=0)))

    @property
    def plain(self) -> DiffusersPolicy:
        """The base, or what equals it: an adapter at its start adds nothing."""
        return self.whole if self.full else self.adapted

    def cond(self, policy: DiffusersPolicy, guided: bool, rows: Sequence[int] | None = None) -> Cond:
        at = range(len(self.prompts)) if rows is None else rows
        scale = None if guided or policy.family.embeds else 0.0
        cond = policy.encode([self.prompts[i] for i in at], scale, [self.images[i] for i in at])
        return cond if guided else replace(cond, negatives=None)

    def guides(self) -> bool:
        """Whether the guided case combines two predictions."""
        return self.cond(self.plain, True).negatives is not None

    def start(self, rows: int | None = None, seed: int = 0) -> Tensor:
        """First states, one a prompt."""
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(rows or len(self.prompts), *self.plain.latent_shape(), generator=draw).to(self.plain.device)

    @cached_property
    def jobs(self) -> list[dict[str, object]]:
        """What the plain pipeline is asked: "guided", "unguided", and "lora" with the adapter saved and loaded again."""
        cases = {"unguided": False, "guided": True} if self.guides() else {"unguided": False}
        jobs = [self._job(name, guided, None) for name, guided in cases.items()]
        if self.here:
            return jobs
        try:
            with self.excited() as policy:
                jobs.append(self._job("lora", "guided" in cases, export.save_lora(policy, self.work / "lora")))
        except ValueError as error:
            self.errors["lora"] = str(error)
        return jobs

    @cached_property
    def drawn(self) -> dict[str, list[dict[str, np.ndarray]]]:
        """What the pipeline draws of the prompts, by job."""
        if self.here:
            with decoding(self.plain.pipe):
                for job in self.jobs:
                    draw(self.plain.pipe, job)
        elif not any(self.work.glob("*.trace.json")) and not any(self.work.glob("*.error")):
            run(self.jobs, self.work)
        names = [Path(str(job["out"])).name for job in self.jobs]
        return {name: found for name in names if (found := self._read(name))}

    def _read(self, name: str) -> list[dict[str, np.ndarray]]:
        error = self.work / f"{name}.error"
        if error.exists():
            self.errors[name] = error.read_text()
            return []
        return [dict(np.load(self.work / f"{name}.{i}.npz")) for i in range(len(self.prompts))]

    def trace(self, name: str) -> list[tuple[str, list[int], float]]:
        return [tuple(row) for row in json.loads((self.work / f"{name}.trace.json").read_text())]

    def _start_in(self) -> str:
        """The precision of the latents that the pipeline begins with. Those with a UNet hand it latents as they are given, and so
        does many another that has no family."""
        family = self.plain.family
        if isinstance(family, Generic):
            return str(family.kept_in).removeprefix("torch.")
        return self.spec.dtype if family.modules[0] == "unet" else "float32"

    def _job(self, name: str, guided: bool, lora: Path | None) -> dict[str, object]:
        policy, family = self.plain, self.plain.family
        cond = self.cond(policy, guided)
        latents = self.work / "start.npy"
        if not latents.exists():
            given = {key: part.float() for key, part in cond.batch().items()}
            begin = family.begin if isinstance(family, Begins) else family.whole
            np.save(latents, begin(self.start(), given).float().cpu().numpy())
        call = {**family.call_pipeline(cond.guidance), "num_inference_steps": steps_of(policy)}
        if cond.negatives is not None and "negative_prompt" in inspect.signature(type(policy.pipe).__call__).parameters:
            call.setdefault("negative_prompt", self.spec.negative)  # FLUX.2 always takes the empty one
        return {
            "model": str(self.folder),
            "dtype": self.spec.dtype,
            "device": str(policy.device),
            "lora": None if lora is None else str(lora),
            "network": family.modules[0],
            "start": self._start_in(),
            "call": call,
            "guider": max(cond.guidance, 1.0) if hasattr(getattr(policy.pipe, "guider", None), "guidance_scale") else None,
            "prompts": list(self.prompts),
            "images": [files for _, files, _ in asked(self.prompts, self.images)],
            "latents": str(latents),
            "out": str(self.work / name),
        }


def steps_of(policy: DiffusersPolicy) -> int:
    """Of every run that is compared."""
    return STEPS if policy.path is paths.flow else DIFFUSED


def run(jobs: Sequence[dict[str, object]], work: Path) -> None:
    """All jobs in one process that cannot see flowrl.

    Raises: RuntimeError where the process itself failed.
    """
    table = work / "jobs.json"
    table.write_text(json.dumps(jobs))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = Path(__file__).with_name("plain.py")
    done = subprocess.run([sys.executable, "-P", str(script), str(table)], cwd=work, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the plain pipeline's process failed: {done.stderr[-2000:]}")


def excite(policy: DiffusersPolicy, seed: int = 7) -> None:
    """Fill the trainable weights with keyed noise."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.copy_((torch.randn(p.shape, generator=draw) * SCALE / max(1, p.shape[-1]) ** 0.5).to(p))
