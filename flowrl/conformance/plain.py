"""The other side of the comparison: diffusers' own pipeline, run as a file in a process that never imports flowrl.

`python plain.py jobs.json`: each job is {model, dtype, call, prompts, images, latents, start, out, lora, network, guider}. Of every
prompt, alone: <out>.<n>.npz with latents (after the last step), images (as the pipeline returns them, in [0, 1]) and sigmas;
<out>.trace.json with what each module of the network answered in the first call; <out>.error where the job failed.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

DDIM = ("PNDM", "DPMSolver", "Euler", "LMS", "Heun", "UniPC", "DEIS")
"""Beginnings of schedulers whose steps are compared as DDIM's, or as plain Euler steps where they are those of a flow."""
Trace = list[tuple[str, list[int], float]]
"""(module, shape, norm of its answer), in order."""


@contextmanager
def traced(network: torch.nn.Module) -> Iterator[Trace]:
    """What every module answers in the first call of `network` inside."""
    trace: Trace = []
    calls: list[None] = []

    def before(module: torch.nn.Module, args: object) -> None:
        calls.append(None)

    def after(name: str) -> Any:
        def note(module: torch.nn.Module, args: object, answer: object) -> None:
            value = answer[0] if isinstance(answer, tuple | list) and answer else answer
            if len(calls) == 1 and isinstance(value, torch.Tensor) and value.is_floating_point():
                trace.append((name or "network", list(value.shape), float(value.detach().double().norm())))

        return note

    handles = [network.register_forward_pre_hook(before)]
    handles += [module.register_forward_hook(after(name)) for name, module in network.named_modules()]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def loaded(model: str, dtype: str) -> Any:
    """The pipeline of a folder, with single steps: those of a multistep scheduler depend on their history."""
    import diffusers

    index = dict(diffusers.DiffusionPipeline.load_config(model))
    absent = {name: None for name, kind in index.items() if isinstance(kind, list | tuple) and list(kind) == [None, None]}
    # in half precision the decoder too: most pipelines hand it latents as they are
    pipe = getattr(diffusers, index["_class_name"]).from_pretrained(model, dtype=getattr(torch, dtype), **absent)
    name, config = type(pipe.scheduler).__name__, pipe.scheduler.config
    if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
        shift = config.get("flow_shift") or 1.0
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=config["num_train_timesteps"], shift=shift)
    elif name == "CogVideoXDPMScheduler":
        pipe.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(config)
    elif name.startswith(DDIM):
        spacing = "trailing" if config.get("timestep_spacing") == "trailing" else "leading"
        plain = {"timestep_spacing": spacing, "clip_sample": False, "thresholding": False}
        pipe.scheduler = diffusers.DDIMScheduler.from_config(config, **plain)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, job: dict[str, Any], number: int) -> dict[str, np.ndarray]:
    """One prompt: its latents, images and levels."""
    from PIL import Image

    kept: list[torch.Tensor] = []

    def note(pipe: Any, step: int, time: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept.append(values["latents"].detach().clone())
        return {}

    right = pipe.scheduler.step

    @functools.wraps(right)
    def step(*args: Any, **kwargs: Any) -> Any:
        answer = right(*args, **kwargs)
        kept.append(answer[0].detach().clone())
        return answer

    told: dict[str, Any] = {"callback_on_step_end": note}
    if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
        pipe.scheduler.step, told = step, {}
    call = dict(job["call"])
    if job["guider"] is not None:
        pipe.guider.guidance_scale = job["guider"]
    if shown := [Image.open(file).convert("RGB") for file in job["images"][number]]:
        call["image"] = shown if len(shown) > 1 else shown[0]
    start = torch.from_numpy(np.load(job["latents"]))[number : number + 1]
    call |= {"latents": start.to(getattr(torch, job["start"]), copy=True), "output_type": "np", **told}
    try:
        made = pipe(prompt=job["prompts"][number], **call)
    finally:
        pipe.scheduler.step = right
    images = np.asarray(made.frames if hasattr(made, "frames") else made.images)
    last = kept[-1]
    if last.ndim == 3 and start.ndim == 4:  # FLUX.2 is given [C, H, W], and keeps it as tokens
        last = last.mT.reshape(start.shape)
    sigmas = torch.as_tensor(getattr(pipe.scheduler, "sigmas", torch.zeros(0))).double()
    if pipe.scheduler.config.get("invert_sigmas"):  # Mochi's are 1 at data
        sigmas = 1 - sigmas
    return {"latents": last.float().numpy(), "images": images, "sigmas": sigmas.numpy()}


def draw(pipe: Any, job: dict[str, Any]) -> None:
    """All prompts of a job, one by one, with the trace of the first call."""
    with traced(getattr(pipe, job["network"])) as trace:
        for number in range(len(job["prompts"])):
            np.savez(f"{job['out']}.{number}.npz", **drawn(pipe, job, number))  # pyright: ignore[reportArgumentType]
    Path(f"{job['out']}.trace.json").write_text(json.dumps(trace))


def main(path: str) -> None:
    torch.set_num_threads(1)
    pipes: dict[str, Any] = {}
    for job in json.loads(Path(path).read_text()):
        try:
            key = f"{job['model']} {job['dtype']} {job['lora']}"
            if key not in pipes:
                pipes = {key: loaded(job["model"], job["dtype"])}
                if job["lora"]:
                    pipes[key].load_lora_weights(job["lora"])
                    if (second := Path(job["lora"]) / "transformer_2").is_dir():
                        pipes[key].load_lora_weights(second, load_into_transformer_2=True)
                pipes[key].to(job["device"])
            draw(pipes[key], job)
        except Exception:  # told to the other side, which names it
            Path(f"{job['out']}.error").write_text(traceback.format_exc())
    if seen := [name for name in sys.modules if name.split(".")[0] == "flowrl"]:
        raise SystemExit(f"flowrl was imported: {seen[:3]}")


if __name__ == "__main__":
    main(sys.argv[1])
