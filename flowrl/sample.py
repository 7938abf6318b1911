"""Images and videos from a plain diffusers pipeline: what a trained adapter does, without any of the training code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl import data
from flowrl.choice import Choice, Draw, kept, policy, steered
from flowrl.data import Prompts
from flowrl.inference import guided
from flowrl.inference.guidance import DENOISERS, check
from flowrl.models.caller import Caller, takes
from flowrl.recipe import GIVEN, PolicySpec
from flowrl.said import first_line

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Choice", "load_pipeline", "read_prompts", "sample", "usable"]

STEPS = 20
FPS = 16.0
"""Wan's; no pipeline says its own."""
STRIP = 3
"""Frames of a video on the grid."""


def sample(
    model: str | None,
    prompts: Sequence[str] | Prompts,
    lora: str | Path | None = None,
    *,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    guidance: float | None = None,
    rlg: float | None = None,
    choice: Choice | None = None,
    out: str | Path = "samples",
    device: str = "auto",
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    images: Sequence[str | Path] = (),
    config: str | None = None,
    fps: float = FPS,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write one PNG, or one video, a prompt and seed, grid.png (a row a prompt, a column a seed) and metadata.jsonl; returns the
    folder.

    An image depends on its prompt, its seed and the settings, not on what else is sampled: each is drawn from its own generator.
    model: a folder in diffusers format, a hub name, an embedded model, or a single file, whose `config` describes its components;
    None: the run's, where `lora` is one, else shapes.  What else is None is as in the run (its evaluation's steps, guidance of all
    kinds, negative prompt, sizes), where the model is the run's; else the family's own, and 20 steps.
    images: what every prompt without an image of its own begins with or edits.
    rlg: weight of the guidance from the base to the adapter, None or 1 the adapter as it is (`flowrl.inference.rlg`).
    choice: several images a seed, or candidates a step, of which a reward keeps the best; prompts with metadata for it are a
    flowrl.data.Prompts. Scores are written to metadata.jsonl.
    frames: of a video, None as many as its pipeline makes;  fps: at which it plays. Videos are .mp4 where a package can write them,
    else animated .webp (`moving.film`); `progress` is told which.

    Raises: ValueError for no prompts or seeds, a folder that holds no adapter, rlg without adapter, frames of a model of images, a
    size the model cannot draw, a missing image, or a reward that could not score any image; FileNotFoundError for a missing folder.
    """
    from flowrl import moving

    if not prompts or not seeds:
        raise ValueError(f"nothing to sample: {len(prompts)} prompts and {len(seeds)} seeds; give at least one of each")
    given = prompts if isinstance(prompts, Prompts) else data.read(list(prompts))
    device = usable(device)
    folder = _adapter(lora)
    with ExitStack() as stack:
        if rlg is not None:
            check(rlg)
            if folder is None:
                raise ValueError(f"rlg {rlg:g} goes from the base to an adapter, and none is given; add one: --lora RUN")
        spec, own = _as_trained(model, folder)
        asked = {"config": config, "guidance": guidance, "height": height, "width": width, "frames": frames}
        spec = replace(spec, **{name: value for name, value in asked.items() if value is not None})
        steps = own if steps is None else steps
        pipe, draw = _drawing(spec, folder, steps, choice, device, bool(images))
        if rlg is not None:
            stack.enter_context(guided(pipe, rlg))
        settings = {"steps": steps, "model": spec.model, "lora": folder and str(folder), "rlg": rlg}
        settings |= {name: getattr(spec, name) for name in ("guidance", "height", "width")}
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        rows: list[list[np.ndarray]] = []
        if progress is not None and filmed(pipe):
            progress(f"videos are written as {moving.described()}")
        records: list[dict[str, Any]] = []
        for number, (prompt, metadata) in enumerate(zip(given.text, given.metadata, strict=True)):
            drawn: list[np.ndarray] = []
            file = given.images[number]
            shown = tuple(Path(one) for one in (images if file is None else [file]))
            here = partial(draw, images=shown)
            told = {**metadata, "fps": fps} if filmed(pipe) else metadata
            settings["images"] = [str(file) for file in shown]
            for seed in seeds:
                image, note = kept(here, choice, prompt, told, seed) if choice else (here(prompt, told, seed), {})
                stem = out / f"{number:04d}-{_slug(prompt)}-{seed}"
                file = moving.save(stem, image, None) if image.ndim == 3 else moving.film(stem, image, fps)
                drawn.append(image if image.ndim == 3 else moving.strip(image, STRIP, gap=0))
                records.append({**told, "file_name": file.name, "prompt": prompt, "seed": seed, **settings, **note})
            rows.append(drawn)
            if progress is not None:
                progress(f"{number + 1}/{len(given)}  {prompt}")
    lines = "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)
    (out / "metadata.jsonl").write_text(lines, encoding="utf-8")
    _grid(rows, given.text).save(out / "grid.png")
    if choice and all(record["score"] is None for record in records):
        raise ValueError(
            f"reward {choice.reward.name!r} could not score any of the images, so none was chosen; each seed's first is in {out}"
        )
    return out


def _drawing(
    spec: PolicySpec, folder: Path | None, steps: int, choice: Choice | None, device: str, pictured: bool
) -> tuple[Any, Draw]:
    """A loaded pipeline, and what draws one image or video with it."""
    if choice and choice.svdd > 1:
        made = policy(spec, folder, device)
        return made.pipe, steered(made, choice, steps)
    import torch

    pipe = load_pipeline(spec, device)
    if folder is not None:
        _put(pipe, folder)
    call = Caller(pipe, spec, pictured)

    def draw(prompt: str, metadata: Mapping[str, Any], seed: int, images: Sequence[Path] = ()) -> np.ndarray:
        # one call an image: in a batch, rounding depends on the neighbours
        noise = torch.Generator().manual_seed(seed)
        return first(pipe(prompt=prompt, num_inference_steps=steps, generator=noise, **call(prompt, images)))

    return pipe, draw


DRAWN = ("model", "config", "revision", "variant", "guidance", "true_guidance", "guidance_2", "guidance_rescale", "guidance_cap",
         "guidance_interval", "negative", "height", "width", "frames", "max_sequence_length", "edit")  # fmt: skip
"""Settings of a run that decide what its model draws."""


def _as_trained(model: str | None, folder: Path | None) -> tuple[PolicySpec, int]:
    """What a run drew with, and its evaluation's steps, where the adapter is a run's and the model is too."""
    from flowrl.settings import load

    record = None if folder is None else next((p / "run.yaml" for p in folder.parents[:2] if (p / "run.yaml").is_file()), None)
    if record is not None:
        recipe = load(record)
        if model in (None, recipe.policy.model):
            if recipe.policy.model.startswith(GIVEN):
                raise ValueError(f"the model of {record.parent} was a value of Python's; name one that is like it: --model MODEL")
            drawn = {name: getattr(recipe.policy, name) for name in DRAWN}
            if drawn["guidance"] is None:  # the model's own, which of one without a family only the run has learned
                drawn["guidance"] = _guided(record.with_name("result.json"))
            return PolicySpec(**drawn), recipe.evaluate.steps
    return PolicySpec(model=model or "shapes"), STEPS


def _guided(result: Path) -> float | None:
    """The guidance of a run's evaluations; None where it has no result yet."""
    return json.loads(result.read_text(encoding="utf-8")).get("protocol", {}).get("guidance") if result.is_file() else None


def _put(pipe: Any, folder: Path) -> None:
    """The adapter in this folder, or the whole networks that full fine-tuning left in it.

    Raises: ValueError for weights of another model.
    """
    networks = [name for name in DENOISERS if getattr(pipe, name, None) is not None]
    whole = {name: place for name in networks for place in (folder / name, folder) if (place / "config.json").is_file()}
    if not whole:
        from flowrl.models.lora import attach

        attach(pipe, networks, str(folder), "--lora")
    for name, place in whole.items():
        network = getattr(pipe, name)
        kind, wanted = json.loads((place / "config.json").read_text()).get("_class_name"), type(network).__name__
        if kind != wanted:
            raise ValueError(
                f"--lora {str(place)!r} holds a {kind}, and the {name} of this model is a {wanted}; give weights of it"
            )
        try:
            made = type(network).from_pretrained(place, torch_dtype=network.dtype)
        except (OSError, ValueError, RuntimeError) as error:
            said = first_line(error)
            raise ValueError(
                f"--lora {str(place)!r} could not be loaded as the model's {name}: {said}; copy the folder again"
            ) from error
        setattr(pipe, name, made.to(network.device))


def filmed(pipe: Any) -> bool:
    """Whether a pipeline makes videos."""
    return takes(pipe, "num_frames")


def first(answer: Any) -> np.ndarray:
    """What a pipeline drew first, uint8 [H, W, 3] or [T, H, W, 3], whether it answers with pictures or with numbers in [0, 1]."""
    import numpy as np
    from PIL import Image

    if "frames" not in answer:
        return np.asarray(answer.images[0].convert("RGB"))
    video = np.stack([np.asarray(one.convert("RGB") if isinstance(one, Image.Image) else one) for one in answer.frames[0]])
    return video if video.dtype == np.uint8 else (video * 255).round().clip(0, 255).astype(np.uint8)


def load_pipeline(spec: PolicySpec, device: str) -> Any:
    """The spec's diffusers pipeline in bfloat16 on a GPU that has it, float32 elsewhere.

    Raises: ValueError with a sentence where the folder or the hub cannot give it.
    """
    import torch

    from flowrl.models.loading import load

    dtype = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    pipe = load(replace(spec, dtype=dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device) if dtype == "float32" else pipe.to(device, torch.bfloat16)


def read_prompts(given: Sequence[str], image: str | None = None) -> Prompts:
    """Texts as they are; a word that names a file or folder becomes the prompts in it (flowrl.data.read), with their metadata, and
    the images that the column `image` names.

    Raises: FileNotFoundError for what looks like a file and is none; ValueError for an empty one.
    """
    found: list[Prompts] = []
    for text in given:
        if not text.strip():
            raise ValueError("an empty prompt; give a text")
        named = " " not in text and Path(text).suffix in (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
        found.append(data.read(text, image=image) if named or text.startswith("hf:") else data.read([text]))
    rows = [row for part in found for row in zip(part.text, part.metadata, part.images, strict=True)]
    text, metadata, images = zip(*rows, strict=True)
    return Prompts(text, metadata, images)


def usable(name: str) -> str:
    """A device by its name, "auto" the best there is.

    Raises: ValueError for one that is not here.
    """
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


def _grid(rows: Sequence[Sequence[np.ndarray]], prompts: Sequence[str]) -> Any:
    """A contact sheet: small images are drawn larger, a caption stands above each row."""
    from PIL import Image, ImageDraw

    height, width = rows[0][0].shape[:2]
    scale = max(1, 128 // width)
    width, height, gap, line = width * scale, height * scale, 4, 16
    columns = len(rows[0])
    sheet = Image.new("RGB", (max(columns * (width + gap) + gap, 240), len(rows) * (height + line + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (images, prompt) in enumerate(zip(rows, prompts, strict=True)):
        top = gap + y * (height + line + gap)
        draw.text((gap, top), _clip(draw, prompt, sheet.width - 2 * gap), fill="black")
        for x, image in enumerate(images):
            larger = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(larger, (gap + x * (width + gap), top + line))
    return sheet


def _clip(draw: Any, text: str, width: int) -> str:
    while text and draw.textlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text
