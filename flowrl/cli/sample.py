"""flowrl sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flowrl.choice import Choice
    from flowrl.data import Prompts


def sample(
    prompts: Annotated[list[str], typer.Argument(help="Texts, or files with one prompt a line.")],
    model: Annotated[
        str | None, typer.Option(help="A hub name, a folder in diffusers format, a file, or shapes (embedded).")
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="MODEL", help="Folder or hub name that a single file is of.")] = None,
    lora: Annotated[Path | None, typer.Option(help="A trained adapter: a run's lora folder, or the run itself.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, one image each: 0,1,2 or 0-7.")] = "0-3",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler; default: the run's, or 20.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; default: the run's, or the model's own.")] = None,
    rlg: Annotated[float | None, typer.Option(help="From the base (0) to the adapter (1) and beyond; with --lora.")] = None,
    rewards: Annotated[
        list[str] | None, typer.Option("--reward", metavar="NAME", help="What --best-of and --svdd choose by.")
    ] = None,
    best_of: Annotated[int, typer.Option(help="Images drawn a seed, of which the best is kept.")] = 1,
    svdd: Annotated[int, typer.Option(help="Candidates at every step, of which the most promising goes on.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("samples"),
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What a video begins with, or what is edited; of two: first and last."),
    ] = None,
    image_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of a prompts file with an image each.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; default: the model's own.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; default: the model's own.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a video; default: as many as the model makes.")] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames a second at which videos play.")] = 16.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
) -> None:
    """Make images or videos with a plain diffusers pipeline, with or without a trained adapter.

    Examples:

        flowrl sample "a red circle" "two blue squares"

        flowrl sample "a red circle" --lora runs/some-run/lora --seeds 0-7

        flowrl sample "a red circle" --lora runs/some-run/lora --rlg 1.5

        flowrl sample "three blue squares" --best-of 8 --reward shapes:strict

        flowrl sample prompts.txt --model stabilityai/stable-diffusion-3.5-medium --steps 28 --guidance 4.5 --out images

        flowrl sample "the kite flies away" --image kite.png --model Wan-AI/Wan2.1-I2V-14B-480P-Diffusers --steps 50

        flowrl sample "a kite in the wind" --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --steps 50 --guidance 5 --frames 33
    """
    from flowrl import sample as sampling

    if rewards and len(rewards) > 1:
        raise ValueError(
            f"images are chosen by one reward, and {', '.join(rewards)} are {len(rewards)}; write a function that adds them up"
        )
    reward = rewards[0] if rewards else None
    texts = sampling.read_prompts(prompts, image_column)
    choice = _choice(reward, best_of, svdd, sampling.usable(device))
    if reward is not None and reward.partition(":")[0] == "shapes":
        texts = _asked(texts)
    folder = sampling.sample(
        model, texts, lora=lora, seeds=parse_seeds(seeds), steps=steps, guidance=guidance, rlg=rlg, choice=choice, out=out,
        device=device, height=height, width=width, frames=frames, images=image or (), config=config, fps=fps, progress=print,
    )  # fmt: skip
    print(f"images, grid.png and metadata.jsonl are in {folder}")


def _choice(reward: str | None, best_of: int, svdd: int, device: str) -> Choice | None:
    """Raises: ValueError for a choice without reward, a reward without choice, or a reward with a weight."""
    from flowrl import rewards
    from flowrl.choice import Choice

    if reward is None:
        if best_of != 1 or svdd != 1:
            raise ValueError("--best-of and --svdd choose by a reward, and none is named; add one: --reward clip")
        return None
    if best_of == 1 and svdd == 1:
        raise ValueError(f"--reward {reward} has nothing to choose from; add --best-of 8 or --svdd 4")
    spec, weight = rewards.parse(reward)
    if weight != 1:
        raise ValueError(f"reward {reward!r} has a weight, which a choice does not need; write {spec}")
    return Choice(rewards.make(spec, place=device), best_of, svdd)


def _asked(prompts: Prompts) -> Prompts:
    """Captions of the shapes world with what they ask for, where they came without."""
    from flowrl.data import Prompts
    from flowrl.shapes.world import asked

    known: list[dict[str, Any]] = [{**(asked(text) or {})} for text in prompts.text]
    metadata = [own if "include" in own else {**row, **own} for row, own in zip(known, prompts.metadata, strict=True)]
    return Prompts(prompts.text, tuple(metadata), prompts.images)


def parse_seeds(text: str) -> list[int]:
    """ "0,1,4-6" -> [0, 1, 4, 5, 6].

    Raises: ValueError for anything else.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"seeds {text!r}: write whole numbers from 0 as 0,1,2 or 0-7")
        if dash and int(last) < int(first):
            raise ValueError(f"seeds {text!r}: {part.strip()} runs backwards")
        found.extend(range(int(first), int(last) + 1) if dash else [int(first)])
    return list(dict.fromkeys(found))
