"""A model as flowrl trains it, from wherever Hugging Face users have theirs."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flowrl.recipe import PolicySpec
from flowrl.said import first_line

from .family import Family
from .policy import DiffusersPolicy
from .quantized import quantized_networks
from .single import single_file
from .table import FAMILIES, readable

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

EMBEDDED = {"shapes": "shapes-sd3", "shapes_video": "shapes-video"}
"""Short name -> folder of the package's own assets."""
INDEX = "model_index.json"


def load_policy(
    source: PolicySpec | str | Path | DiffusionPipeline,
    device: str = "cpu",
    *,
    spec: PolicySpec | None = None,
    seed: int = 0,
    token: str | None = None,
) -> DiffusersPolicy:
    """A model as flowrl trains it; one without a family of its own is not verified here (`flowrl.load_policy` does).

    source: a spec; or a folder in diffusers format, a hub name, a single-file checkpoint or "shapes"; or a pipeline already loaded,
    whose weights are used as they are: adapters it has stay on as a part of the base, a quantised base and accelerate's hooks are
    left alone. spec: the other settings, where `source` is not itself a spec.  seed: of a fresh adapter's initial values.
    token: of the hub; None: the one of HF_TOKEN or of the login. It is never written down.
    Network and text encoders have spec.dtype; the autoencoder is float32, since half precision bands and overflows there.

    Raises: ValueError, a sentence each: a missing folder, one that holds no pipeline, a pipeline that is not understood, a model
    that does not exist, is gated, lacks the revision or variant, is not in the cache while offline, or does not fit on the disk.
    """
    if isinstance(source, PolicySpec):
        source, spec = source.model, source
    spec = spec or PolicySpec()
    pipe = load(replace(spec, model=str(source)), token) if isinstance(source, str | Path) else source
    family = _family(pipe, spec)
    readable(spec, type(pipe).__name__, family)
    return DiffusersPolicy(pipe, family, spec, device, seed)


def _family(pipe: DiffusionPipeline, spec: PolicySpec) -> Family:
    """The family of a pipeline's class, or what can be learned of it."""
    name = type(pipe).__name__
    if name in FAMILIES:
        return FAMILIES[name](pipe, spec)
    from .generic import Generic, Unknown

    try:
        return Generic(pipe, spec)
    except Unknown as error:
        raise ValueError(
            f"{name} has no family of its own, and its conventions could not be learned: {error}. "
            f"flowrl has: {', '.join(FAMILIES)}; to add one, write flowrl/models/<family>.py and its row in FAMILIES"
        ) from error


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


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Bars of what is loaded are for somebody who waits; in a log they stand before what matters."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [] if sys.stderr.isatty() else [one for one in (of_diffusers, of_transformers) if one.is_progress_bar_enabled()]
    for one in shown:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in shown:
            one.enable_progress_bar()


@_bars_on_terminals()
def load(spec: PolicySpec, token: str | None = None, parts: Mapping[str, Any] | None = None) -> Any:
    """The spec's pipeline as diffusers has it, with these components instead of its own.

    Raises: ValueError as `load_policy`, for what is in the way of loading.
    """
    model = spec.model
    folder = embedded(model) if model in EMBEDDED else Path(model).expanduser()
    if folder.is_file():
        rest = replace(spec, revision=None, variant=None, quantize=None, config=None)
        return single_file(
            folder,
            spec,
            lambda config: _index(Path(config).expanduser(), config, None, token),
            lambda config, parts: load(replace(rest, model=config), token, parts),
        )
    index = _index(folder, model, spec.revision, token)
    name = str(index.get("_class_name"))
    import diffusers

    if not hasattr(diffusers, name):
        raise ValueError(
            f"{model} is a {name}, which this diffusers ({diffusers.__version__}) does not know; upgrade diffusers, or load the "
            "pipeline yourself and pass it to flowrl.load_policy"
        )
    if folder.is_dir():
        _whole(folder, index, spec, parts or {})
    # a component saved as None is refused by from_pretrained unless it is passed as None again (SD3 without T5)
    absent = {part: None for part, kind in index.items() if kind == [None, None]}
    hub = {"revision": spec.revision, "variant": spec.variant, "token": token}
    dtype = {"vae": torch.float32, "default": getattr(torch, spec.dtype)}
    fewer = quantized_networks(spec, index)
    try:
        return getattr(diffusers, name).from_pretrained(
            str(folder) if folder.is_dir() else model, dtype=dtype, **absent, **fewer, **hub, **(parts or {})
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ValueError(_said(error, model, spec, f"could not be loaded as {name}")) from error


def _whole(folder: Path, index: Mapping[str, Any], spec: PolicySpec, parts: Mapping[str, Any]) -> None:
    """Raises: ValueError for a folder that lacks a component, which transformers may make up (an empty tokenizer), or for settings
    that say nothing of a folder."""
    named = [part for part, kind in index.items() if isinstance(kind, list) and kind[0] is not None and part not in parts]
    missing = [part for part in named if not (folder / part).is_dir()]
    if missing:
        raise ValueError(f"model {folder} lacks {missing[0]}/, which its {INDEX} names; complete the folder or download it again")
    for name, of in (("revision", "a hub model"), ("config", "a single file")):
        value = getattr(spec, name)
        if value is not None:
            raise ValueError(f"policy.{name} {value!r} is for {of}, and {folder} is a folder; take policy.{name} out")


def _index(folder: Path, model: str, revision: str | None, token: str | None) -> dict[str, Any]:
    """What a folder or a hub model consists of."""
    if folder.is_dir():
        path = folder / INDEX
        if not path.is_file():
            raise ValueError(
                f"{folder} is no pipeline in diffusers format: it has no {INDEX}; give the folder that save_pretrained wrote"
            )
    elif model.count("/") == 1 and not model.startswith((".", "/", "~")) and all(model.split("/")):
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(model, INDEX, revision=revision, token=token))
        except (OSError, ValueError) as error:
            raise ValueError(_said(error, model, PolicySpec(revision=revision), "could not be fetched from the hub")) from error
    else:
        names = ", ".join(f'"{n}"' for n in EMBEDDED)
        raise ValueError(f"model {model!r} is neither a folder, a file nor a hub name (owner/name); give one of these, or {names}")
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); download or save the model again") from error
    if not isinstance(index, dict):
        raise ValueError(f"{path} holds a {type(index).__name__} where an object is expected; download or save the model again")
    return index


def _said(error: Exception, model: str, spec: PolicySpec, what: str) -> str:
    """A sentence for whatever went wrong on the way from the hub or the disk."""
    from huggingface_hub import errors

    chain: list[BaseException] = [error]
    while chain[-1] is not None and (chain[-1].__cause__ or chain[-1].__context__):
        chain.append(chain[-1].__cause__ or chain[-1].__context__)  # pyright: ignore[reportArgumentType]

    def one(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return f"model {model!r} does not fit on the disk: no space left; free some, or set HF_HOME to a folder on a larger one"
    if one(errors.GatedRepoError):
        return (
            f"model {model!r} is gated: accept its terms on its page of the hub, then log in (hf auth login) or set HF_TOKEN to a "
            "token of that account"
        )
    if one(errors.RevisionNotFoundError):
        return f"model {model!r} has no revision {spec.revision!r}; look for its branches, tags and commits on its page of the hub"
    if one(errors.RepositoryNotFoundError):
        return f"there is no model {model!r} on the hub, or it is private; check the name, and log in (hf auth login) if it is"
    if one(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) or type(chain[-1]).__module__ == "httpx":
        return (
            f"model {model!r} is no folder here, not in the cache, and could not be fetched from the hub, which is out of reach or "
            "switched off (HF_HUB_OFFLINE); go online once, or give a downloaded folder"
        )
    if one(errors.EntryNotFoundError) and spec.variant is None:
        return f"model {model!r} is not in diffusers format: it has no {INDEX}; download its single file and give the file's path"
    if one(errors.HFValidationError):
        return f"model {model!r} is neither a folder here nor a hub name (owner/name, of letters, digits, -, _ and .)"
    line = first_line(error)
    if spec.variant is not None and ("variant" in line or one(errors.EntryNotFoundError)):
        return f"model {model!r} has no variant {spec.variant!r} of its weights; take policy.variant out, or give one that it has"
    return f"model {model!r} {what}: {line}; complete the folder or download it again"
