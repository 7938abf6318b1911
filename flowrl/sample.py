"""Images from a plain diffusers pipeline: what a trained adapter does, without any of the training code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["load_pipeline", "read_prompts", "sample"]

SHAPES_TOKENS = 16
"""The embedded model was trained on 16 text tokens."""


def sample(
    model: str,
    prompts: Sequence[str],
    lora: str | Path | None = None,
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 20,
    guidance: float = 1.0,
    out: str | Path = "samples",
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write one PNG a prompt and seed, grid.png (a row a prompt, a column a seed) and metadata.jsonl; returns the folder.

    An image depends on its prompt, its seed and the settings, not on what else is sampled: each is drawn from its own generator.

    Raises: ValueError for no prompts or seeds, or a folder that holds no adapter; FileNotFoundError for a missing one.
    """
    if not prompts or not seeds:
        raise ValueError(f"nothing to sample: {len(prompts)} prompts and {len(seeds)} seeds; give at least one of each")
    import torch

    device = _device(device)
    folder = _adapter(lora)
    pipe = load_pipeline(model, device)
    if folder is not None:
        pipe.load_lora_weights(str(folder))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    extra = {"max_sequence_length": SHAPES_TOKENS} if model == "shapes" else {}
    rows: list[list[Any]] = []
    records: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts):
        images: list[Any] = []
        for seed in seeds:
            # one call an image: in a batch, rounding depends on the neighbours
            noise = torch.Generator().manual_seed(seed)
            image = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=noise, **extra).images[0]
            name = f"{number:04d}-{_slug(prompt)}-{seed}.png"
            image.save(out / name)
            images.append(image)
            records.append({"file_name": name, "prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance,
                            "model": model, "lora": None if folder is None else str(folder)})  # fmt: skip
        rows.append(images)
        if progress is not None:
            progress(f"{number + 1}/{len(prompts)}  {prompt}")
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (out / "metadata.jsonl").write_text(lines, encoding="utf-8")
    _grid(rows, prompts).save(out / "grid.png")
    return out


def load_pipeline(model: str, device: str) -> Any:
    """A diffusers pipeline in bfloat16 on a GPU that has it, float32 elsewhere.

    Raises: ValueError with a sentence where the folder or the hub cannot give it.
    """
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    if model == "shapes":
        from flowrl.models import embedded

        where = str(embedded(model))
    else:
        where = str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
    dtype = torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32
    # a component saved as None is refused by from_pretrained unless it is passed as None again (SD3 without T5)
    try:
        config: Any = DiffusionPipeline.load_config(where)
        absent = {name: None for name, part in config.items() if part in ([None, None], (None, None))}
        pipe = DiffusionPipeline.from_pretrained(where, torch_dtype=dtype, **absent)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"model {model!r} cannot be loaded, neither as a folder here nor from the hub ({reason}); check the name, go online, "
            "and log in where the model is gated"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def read_prompts(given: Sequence[str]) -> list[str]:
    """Texts as they are; a word that names a file or folder becomes the prompts in it (flowrl.data.read).

    Raises: FileNotFoundError for what looks like a file and is none; ValueError for an empty one.
    """
    from flowrl import data

    found: list[str] = []
    for text in given:
        if not text.strip():
            raise ValueError("an empty prompt; give a text")
        named = " " not in text and Path(text).suffix in (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
        found.extend(data.read(text).text if named or text.startswith("hf:") else [text])
    return found


def _device(name: str) -> str:
    import torch

    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); give cpu or auto") from error
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _adapter(lora: str | Path | None) -> Path | None:
    """The folder with the adapter; a run's own folder stands for its lora/."""
    if lora is None:
        return None
    path = Path(lora)
    if not path.exists():
        raise FileNotFoundError(f"there is no adapter at {path}; give a run's lora folder")
    for folder in (path, path / "lora"):
        if folder.is_file() or any(folder.glob("*.safetensors")):
            return folder
    raise ValueError(f"{path} holds no adapter (no .safetensors file); give a run's lora folder")


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "prompt"


def _grid(rows: Sequence[Sequence[Any]], prompts: Sequence[str]) -> Any:
    """A contact sheet: small images are drawn larger, a caption stands above each row."""
    from PIL import Image, ImageDraw

    width, height = rows[0][0].size
    scale = max(1, 128 // width)
    width, height, gap, line = width * scale, height * scale, 4, 16
    columns = len(rows[0])
    sheet = Image.new("RGB", (max(columns * (width + gap) + gap, 240), len(rows) * (height + line + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (images, prompt) in enumerate(zip(rows, prompts, strict=True)):
        top = gap + y * (height + line + gap)
        draw.text((gap, top), _clip(draw, prompt, sheet.width - 2 * gap), fill="black")
        for x, image in enumerate(images):
            larger = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(larger, (gap + x * (width + gap), top + line))
    return sheet


def _clip(draw: Any, text: str, width: int) -> str:
    while text and draw.textlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text
