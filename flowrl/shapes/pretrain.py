"""Trains the embedded models: `python -m flowrl.shapes.pretrain [stage ...] --out DIR`.

Stages run in the order given (all of them by default) and resume from DIR.
`--assets` is where `flow`, `export`, `clip` and `judge` write what is shipped.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from diffusers import AutoencoderKL

from flowrl.shapes import autoencoder, clip, flow, judge_training, record, text
from flowrl.shapes.export import export
from flowrl.shapes.loop import Job, run, save_atomically
from flowrl.shapes.tokenizer import build
from flowrl.shapes.world import captions

SHIFT = 3.0


@dataclass(frozen=True)
class Options:
    """The command line. `steps` of None is a stage's own number."""

    out: Path
    assets: Path
    seed: int
    steps: int | None
    processes: int
    watch_every: int
    export_every: int


def load_autoencoder(out: Path) -> AutoencoderKL:
    """The trained autoencoder.

    Raises: FileNotFoundError if that stage has not run.
    """
    path = out / "autoencoder"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run the stage 'autoencoder' with the same --out first.")
    return AutoencoderKL.from_pretrained(path).eval()


def load_pool(out: Path, seed: int) -> flow.Pool:
    """The whole pool, made at the first call and kept in `out`."""
    path = out / f"pool-{seed}.pt"
    if not path.exists():
        made = flow.pool(load_autoencoder(out), np.arange(flow.POOL), seed)
        save_atomically({"latents": made.latents, "ids": made.ids}, path)
    saved = torch.load(path, weights_only=True)
    return flow.Pool(saved["latents"], saved["ids"])


def tokenizer_stage(options: Options) -> None:
    """Writes `out/tokenizer`."""
    build().save_pretrained(options.out / "tokenizer")


def autoencoder_stage(options: Options) -> None:
    """Writes `out/autoencoder`."""
    autoencoder.train(options.out, options.steps or autoencoder.STEPS, options.seed)


def flow_job(options: Options) -> Job:
    """The flow stage with its evaluation and its early exports."""
    nets = flow.networks(options.seed)
    text.listen(nets, torch.load(options.out / "text.pt", weights_only=True)["modules"], options.seed)
    averages = flow.averaged(nets)
    model = load_autoencoder(options.out)
    rows = captions("heldout")

    def watch(done: int) -> dict[str, object]:
        torch.set_num_threads(options.processes)
        if done % options.export_every == 0:
            export(averages, model, SHIFT, options.assets / "shapes-sd3")
        metrics = flow.strict(averages, model, rows, options.seed + 12345, SHIFT)
        torch.set_num_threads(1)
        return dict(metrics)

    data = load_pool(options.out, options.seed)
    job = flow.job(nets, averages, data, options.steps or flow.STEPS, options.seed)
    return replace(job, watch=watch, watch_every=options.watch_every)


def _process(number: int, options: Options) -> None:
    store = options.out / "flow.store"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=options.processes)
    run(flow_job(options), options.out, "flow")
    dist.destroy_process_group()


def text_stage(options: Options) -> None:
    """Trains `out/text.pt`, the text encoders alone."""
    text.train(options.out, options.steps or text.STEPS, options.seed)


def flow_stage(options: Options) -> None:
    """Trains `out/flow.pt` from `out/text.pt`; exports early versions of the pipeline on the way.

    One process a core, one thread each: on a shared machine threads wait for each other at every operation, processes once a step.
    """
    load_pool(options.out, options.seed)
    (options.out / "flow.store").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_process, (options,), nprocs=options.processes)


def export_stage(options: Options) -> None:
    """Writes the pipeline `assets/shapes-sd3` from `out/flow.pt`; an untrained one if there is none.

    Once all stages have run it also measures the models and writes `assets/training.json`.
    """
    averages = flow.averaged(flow.networks(options.seed))
    path = options.out / "flow.pt"
    if path.exists():
        averages.load_state_dict(torch.load(path, weights_only=True)["averages"])
    export(averages, load_autoencoder(options.out), SHIFT, options.assets / "shapes-sd3")
    if all((options.out / f"{stage}.jsonl").exists() for stage in ("autoencoder", "text", "flow", "clip", "judge")):
        record.write(options.out, options.assets, options.seed)


def clip_stage(options: Options) -> None:
    """Writes `assets/shapes-clip`."""
    clip.train(options.out, options.assets, options.steps or 600, options.seed)


def judge_stage(options: Options) -> None:
    """Writes `assets/shapes-judge`."""
    judge_training.train(
        options.out, options.assets, load_autoencoder(options.out), options.steps or judge_training.STEPS, options.seed
    )


STAGES: dict[str, Callable[[Options], None]] = {
    "tokenizer": tokenizer_stage,
    "autoencoder": autoencoder_stage,
    "text": text_stage,
    "flow": flow_stage,
    "clip": clip_stage,
    "judge": judge_stage,
    "export": export_stage,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the stages of the command line."""
    parser = argparse.ArgumentParser(prog="python -m flowrl.shapes.pretrain", description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=list(STAGES), help="in this order")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and logs; a run resumes from it")
    parser.add_argument("--assets", type=Path, required=True, help="folder that the shipped models are written to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of every stage that trains, instead of the stage's own number")
    parser.add_argument("--watch-every", type=int, default=500, help="steps of `flow` between evaluations")
    parser.add_argument("--export-every", type=int, default=2000, help="steps of `flow` between early exports")
    parser.add_argument("--processes", type=int, default=2, help="that train `flow` together, one thread each")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.processes)
    options = Options(given.out, given.assets, given.seed, given.steps, given.processes, given.watch_every, given.export_every)
    options.out.mkdir(parents=True, exist_ok=True)
    options.assets.mkdir(parents=True, exist_ok=True)
    for stage in given.stages:
        STAGES[stage](options)


if __name__ == "__main__":
    main()
