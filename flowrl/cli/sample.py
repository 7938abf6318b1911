"""flowrl sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    prompts: Annotated[list[str], typer.Argument(help="Texts, or files with one prompt a line.")],
    model: Annotated[str, typer.Option(help="A hub name, a folder in diffusers format, or shapes (embedded).")] = "shapes",
    lora: Annotated[Path | None, typer.Option(help="A trained adapter: a run's lora folder, or the run itself.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, one image each: 0,1,2 or 0-7.")] = "0-3",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 20,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance; 1 or less is none.")] = 1.0,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("samples"),
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
) -> None:
    """Make images with a plain diffusers pipeline, with or without a trained adapter.

    Examples:

        flowrl sample "a red circle" "two blue squares"

        flowrl sample "a red circle" --lora runs/some-run/lora --seeds 0-7

        flowrl sample prompts.txt --model stabilityai/stable-diffusion-3.5-medium --steps 28 --guidance 4.5 --out images
    """
    from flowrl import sample as sampling

    texts = sampling.read_prompts(prompts)
    folder = sampling.sample(
        model, texts, lora=lora, seeds=parse_seeds(seeds), steps=steps, guidance=guidance, out=out, device=device, progress=print
    )
    print(f"images, grid.png and metadata.jsonl are in {folder}")


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
