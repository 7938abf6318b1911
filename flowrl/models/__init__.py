"""Model families: one adapter each. A pipeline's class name chooses its adapter through FAMILIES."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from flowrl.recipe import PolicySpec

from .family import Family
from .policy import DiffusersPolicy
from .prompts import Cond
from .sd3 import SD3
from .wan import Wan

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["FAMILIES", "Cond", "DiffusersPolicy", "Family", "embedded", "load_policy"]

FAMILIES: dict[str, Callable[[Any, PolicySpec], Family]] = {
    "StableDiffusion3Pipeline": SD3,  # SD3, SD3.5, and the embedded "shapes"
    "WanPipeline": Wan,
}
"""`_class_name` of model_index.json -> its family."""

EMBEDDED = {"shapes": "shapes-sd3", "shapes_video": "shapes-video"}
"""Short name -> folder of the package's own assets."""


def load_policy(
    source: PolicySpec | str | Path | DiffusionPipeline, device: str = "cpu", *, spec: PolicySpec | None = None, seed: int = 0
) -> DiffusersPolicy:
    """A model as flowrl trains it.

    source: a spec; or a folder in diffusers format, a hub name or "shapes"; or a pipeline already loaded, whose weights are used
    as they are. spec: the other settings, where `source` is not itself a spec.  seed: of a fresh adapter's initial values.
    Network and text encoders have spec.dtype; the autoencoder is float32, since half precision bands and overflows there.

    Raises: ValueError for a missing folder, one that holds no pipeline, a family without adapter, a hub name out of reach.
    """
    if isinstance(source, PolicySpec):
        source, spec = source.model, source
    spec = spec or PolicySpec()
    if isinstance(source, str | Path):
        pipe = _load(str(source), getattr(torch, spec.dtype))
    else:
        pipe = source
        _family(type(pipe).__name__, repr(type(pipe).__name__))
    return DiffusersPolicy(pipe, FAMILIES[type(pipe).__name__](pipe, spec), spec, device, seed)


def embedded(name: str) -> Path:
    """Folder of an embedded model, installed or in a checkout.

    Raises: ValueError where the installation lacks it.
    """
    try:
        folder = Path(str(resources.files("flowrl.assets"))) / EMBEDDED[name]
    except ModuleNotFoundError:  # a checkout that is on sys.path but not installed has assets/ beside the package
        folder = Path(__file__).resolve().parents[2] / "assets" / EMBEDDED[name]
    if not folder.is_dir():
        raise ValueError(f"the embedded model {name!r} is not in this installation ({folder} is missing); reinstall flowrl")
    return folder


def _load(model: str, dtype: torch.dtype) -> DiffusionPipeline:
    folder = embedded(model) if model in EMBEDDED else Path(model).expanduser()
    if folder.is_dir():
        index, where = _index(folder), str(folder)
    elif folder.exists():
        raise ValueError(f"model {model!r} is a file; give a folder in diffusers format, the one that holds model_index.json")
    elif model.count("/") == 1 and not model.startswith((".", "/", "~")) and all(model.split("/")):
        index, where = _hub_index(model), model
    else:
        names = ", ".join(f'"{n}"' for n in EMBEDDED)
        raise ValueError(f"model {model!r} is neither a folder nor a hub name (owner/name); give one of these, or {names}")
    name = str(index.get("_class_name"))
    _family(name, f"{name!r} of {where}")
    import diffusers

    # a component saved as None is refused by from_pretrained unless it is passed as None again (SD3 without T5)
    absent = {part: None for part, kind in index.items() if kind == [None, None]}
    try:
        return getattr(diffusers, name).from_pretrained(where, dtype={"vae": torch.float32, "default": dtype}, **absent)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {model!r} could not be loaded as {name}: {_first_line(error)}; complete the folder or download it again"
        ) from error


def _family(name: str, what: str) -> None:
    if name not in FAMILIES:
        raise ValueError(
            f"no adapter for the pipeline class {what}; flowrl has: {', '.join(FAMILIES)}. "
            "To add one, write flowrl/models/<family>.py and its row in FAMILIES"
        )


def _index(folder: Path) -> dict[str, object]:
    path = folder / "model_index.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is no pipeline in diffusers format: it has no model_index.json; give the folder that save_pretrained wrote"
        )
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); download or save the model again") from error
    if not isinstance(index, dict):
        raise ValueError(f"{path} holds a {type(index).__name__} where an object is expected; download or save the model again")
    return index


def _hub_index(model: str) -> dict[str, object]:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        return cast(dict[str, object], DiffusionPipeline.load_config(model))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {model!r} is no folder here and could not be fetched from the hub ({_first_line(error)}); "
            "check the name, go online and log in where the model is gated, or give a downloaded folder"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
