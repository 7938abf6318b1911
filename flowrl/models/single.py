"""A single-file checkpoint as a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flowrl.recipe import PolicySpec
from flowrl.said import first_line

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def single_file(path: Path, spec: PolicySpec, index: Callable[[str], Mapping[str, Any]]) -> Any:
    """The pipeline of a file, through diffusers' from_single_file.

    spec.config: a folder in diffusers format, or a hub name, that describes the components; None: what diffusers takes the file
    for, whose description then comes from the hub.  index(config): its model_index.json.

    Raises: ValueError for a file that is no safetensors checkpoint, that diffusers cannot place, or that lacks a component.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    if path.suffix != ".safetensors":
        kind = "may run code when it is read" if path.suffix in SUFFIXES else "is no checkpoint"
        raise ValueError(f"model {str(path)!r} {kind}; give a .safetensors file, a folder in diffusers format or a hub name")
    config = spec.config or _guessed(path)
    name = str(index(config).get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise ValueError(f"model {str(path)!r} cannot be loaded as a {name}: diffusers reads no single files of that class")
    try:
        pipe = kind.from_single_file(str(path), config=config, torch_dtype=getattr(torch, spec.dtype))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SingleFileComponentError) as error:
        line = first_line(error)
        raise ValueError(
            f"model {str(path)!r} could not be loaded as a {name} ({config}): {line}; set policy.config to a folder or hub name in "
            "diffusers format that the file is a checkpoint of"
        ) from error
    pipe.vae.to(torch.float32)
    return pipe


def _guessed(path: Path) -> str:
    """The hub name whose components diffusers takes the file's for."""
    from diffusers.loaders import single_file_utils
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except Exception as error:  # safetensors' own errors share no base
        raise ValueError(f"model {str(path)!r} is not readable as safetensors ({error}); download it again") from error
    kind = single_file_utils.infer_diffusers_model_type(weights)
    return str(single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])
