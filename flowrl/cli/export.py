"""flowrl export."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    comfy: Annotated[bool, typer.Option("--comfy", help="The adapter for ComfyUI's models/loras; this, if none is named.")] = False,
    diffusers: Annotated[bool, typer.Option("--diffusers", help="The adapter for pipe.load_lora_weights.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="The whole network with the update in it, for both.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; the run's export/ if not given.")] = None,
    strength: Annotated[float, typer.Option(help="What strength 1 of the file is: this share of what was trained.")] = 1.0,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; as they are if not given.")] = None,
) -> None:
    """Write a run's weights for other programs.

    Examples:

        flowrl export runs/some-run

        flowrl export runs/some-run --comfy --dtype bf16 --out ComfyUI/models/loras

        flowrl export runs/some-run --merged --strength 0.8 --dtype bf16
    """
    if not math.isfinite(strength):
        raise ValueError(f"--strength {strength:g} is no number; give 1 for what was trained, less for a weaker file")
    from flowrl.export.files import DTYPES
    from flowrl.export.run import KINDS, export_run

    asked = [kind for kind, wanted in zip(KINDS, (comfy, diffusers, merged), strict=True) if wanted]
    for path in export_run(run, asked or ["comfy"], out, None if dtype is None else DTYPES[dtype], strength):
        print(path)
