"""Trains the embedded video models: `python -m flowrl.shapes_video.pretrain [stage ...] --out DIR --assets DIR`.

Stages run in the order given (all of them by default) and resume from DIR. One thread each: on two cores `autoencoder judge` and
`text flow` may run side by side, then `export`; what they learn is the same as in one go.
`--assets` is where `flow`, `judge` and `export` write what is shipped.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from flowrl.shapes.loop import Job, run, save_atomically
from flowrl.shapes_video import autoencoder, flow, judge_training, record, text
from flowrl.shapes_video.export import export
from flowrl.shapes_video.world import captions


@dataclass(frozen=True)
class Options:
    """The command line. `steps` of None is a stage's own number."""

    out: Path
    assets: Path
    seed: int
    steps: int | None
    watch_every: int
    export_every: int


def load_autoencoder(out: Path) -> AutoencoderKLWan:
    """The trained autoencoder.

    Raises: FileNotFoundError if that stage has not run.
    """
    path = out / "autoencoder"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run the stage 'autoencoder' with the same --out first.")
    return AutoencoderKLWan.from_pretrained(path).eval().requires_grad_(False)


def load_pool(out: Path, seed: int) -> flow.Pool:
    """The whole pool, made at the first call and kept in `out`."""
    path = out / f"pool-{seed}.pt"
    if not path.exists():
        made = flow.pool(text.load(out, seed), seed)
        save_atomically({"latents": made.latents, "captions": made.captions, "words": made.words}, path)
    saved = torch.load(path, weights_only=True)
    return flow.Pool(saved["latents"], saved["captions"], saved["words"])


def autoencoder_stage(options: Options) -> None:
    """Writes `out/autoencoder`."""
    autoencoder.train(options.out, options.steps or autoencoder.STEPS, options.seed)


def text_stage(options: Options) -> None:
    """Trains `out/text.pt`, the text encoder alone."""
    text.train(options.out, options.steps or text.STEPS, options.seed)


def flow_job(options: Options) -> Job:
    """The flow stage with its evaluation and its early exports."""
    data = load_pool(options.out, options.seed)
    nets = flow.network(options.seed)
    flow.listen(nets["transformer"], data.words)
    averages = flow.averaged(nets)
    encoder = text.load(options.out, options.seed)
    rows = captions("heldout")

    def watch(done: int) -> dict[str, object]:
        # The flow model learns the prescribed latents, so that another process may still be training the autoencoder.
        if not (options.out / "autoencoder").exists():
            return {"skipped": "there is no autoencoder yet"}
        model = load_autoencoder(options.out)
        if done % options.export_every == 0:
            export(averages["transformer"], model, encoder, options.assets / "shapes-video")
        return dict(flow.measured(averages["transformer"], model, encoder, rows, options.seed + 12345))

    job = flow.job(nets, averages, data, options.steps or flow.STEPS, options.seed)
    return replace(job, watch=watch, watch_every=options.watch_every)


def flow_stage(options: Options) -> None:
    """Trains `out/flow.pt`; exports early versions of the pipeline on the way."""
    run(flow_job(options), options.out, "flow", save_seconds=90.0)


def judge_stage(options: Options) -> None:
    """Writes `assets/shapes-video-judge`."""
    model = load_autoencoder(options.out)
    judge_training.train(options.out, options.assets, model, options.steps or judge_training.STEPS, options.seed)


def export_stage(options: Options) -> None:
    """Writes the pipeline `assets/shapes-video` from `out/flow.pt`; an untrained one if there is none.

    Once all stages have run it also measures the models and writes `assets/shapes-video/training.json`.
    """
    averages = flow.averaged(flow.network(options.seed))
    path = options.out / "flow.pt"
    if path.exists():
        averages.load_state_dict(torch.load(path, weights_only=True)["averages"])
    model, encoder = load_autoencoder(options.out), text.load(options.out, options.seed)
    export(averages["transformer"], model, encoder, options.assets / "shapes-video")
    if all((options.out / f"{stage}.jsonl").exists() for stage in ("autoencoder", "text", "flow", "judge")):
        record.write(options.out, options.assets, options.seed)


STAGES: dict[str, Callable[[Options], None]] = {
    "autoencoder": autoencoder_stage,
    "text": text_stage,
    "flow": flow_stage,
    "judge": judge_stage,
    "export": export_stage,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the stages of the command line."""
    parser = argparse.ArgumentParser(prog="python -m flowrl.shapes_video.pretrain", description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=list(STAGES), help="in this order")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and logs; a run resumes from it")
    parser.add_argument("--assets", type=Path, required=True, help="folder that the shipped models are written to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of every stage that trains, instead of the stage's own number")
    parser.add_argument("--watch-every", type=int, default=600, help="steps of `flow` between evaluations")
    parser.add_argument("--export-every", type=int, default=1200, help="steps of `flow` between early exports")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = Options(given.out, given.assets, given.seed, given.steps, given.watch_every, given.export_every)
    options.out.mkdir(parents=True, exist_ok=True)
    options.assets.mkdir(parents=True, exist_ok=True)
    for stage in given.stages:
        STAGES[stage](options)


if __name__ == "__main__":
    main()
