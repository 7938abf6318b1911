"""A single-file checkpoint as a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flowrl.recipe import PolicySpec
from flowrl.said import first_line

from .family import NETWORKS
from .quantized import quantization

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


Load = Callable[[str, Mapping[str, Any]], Any]


def single_file(path: Path, spec: PolicySpec, index: Callable[[str], Mapping[str, Any]], load: Load) -> Any:
    """The pipeline of a file, through diffusers' from_single_file. Of a file without text encoders (the network alone, or with its
    VAE) the other components are those of the config.

    spec.config: a folder in diffusers format, or a hub name, that describes the components; None: what diffusers takes the file
    for, whose description then comes from the hub.  index(config): its model_index.json.  load(config, parts): its pipeline with
    these components.

    Raises: ValueError for a file that is no safetensors checkpoint, that diffusers cannot place, or that lacks a component which
        the config lacks too.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    if path.suffix != ".safetensors":
        kind = "may run code when it is read" if path.suffix in SUFFIXES else "is no checkpoint"
        raise ValueError(f"model {str(path)!r} {kind}; give a .safetensors file, a folder in diffusers format or a hub name")
    weights = _read(path)
    config = str(Path(spec.config).expanduser()) if spec.config else _guessed(weights)
    try:
        described = index(config)
    except ValueError as error:
        what = f"policy.config {config!r} describes it" if spec.config else f"it is taken for a checkpoint of {config!r}"
        advice = (
            "set policy.config (--config of flowrl sample) to a folder or hub name in diffusers format that it is a checkpoint of"
        )
        raise ValueError(f"model {str(path)!r}: {what}, and {error}; {advice}") from error
    name = str(described.get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise ValueError(f"model {str(path)!r} cannot be loaded as a {name}: diffusers reads no single files of that class")
    dtype, fewer = getattr(torch, spec.dtype), quantization(spec)
    try:
        # The VAE by itself: numbers that were rounded to the network's dtype on the way would stay so.
        parts = _held(path, config, described, {"vae": torch.float32, **dict.fromkeys(NETWORKS, dtype)})
        if not parts.keys() & set(NETWORKS):
            raise ValueError("it holds no weights of the network")
        if fewer is not None:
            parts |= {part: _again(made, fewer) for part, made in parts.items() if part in NETWORKS}
        with suppress(SingleFileComponentError):
            return kind.from_single_file(str(path), config=config, torch_dtype=dtype, **parts)
    except (OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
        # Converters look names up that another model's file does not have.
        line = "its weights have other names" if isinstance(error, LookupError) else first_line(error)
        raise ValueError(
            f"model {str(path)!r} could not be loaded as a {name} ({config}): {line}; set policy.config to a folder or hub name in "
            "diffusers format that the file is a checkpoint of"
        ) from error
    return load(config, parts)


def _held(path: Path, config: str, described: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """Those of the named components that the file holds."""
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    found = {}
    for part, dtype in dtypes.items():
        kind: Any = getattr(diffusers, str((described.get(part) or [None, None])[1]), None)
        if hasattr(kind, "from_single_file"):
            with suppress(SingleFileComponentError):
                found[part] = kind.from_single_file(str(path), config=config, subfolder=part, torch_dtype=dtype)
    return found


def _again(network: Any, fewer: Any) -> Any:
    """The network quantised, by way of a folder: from_single_file of diffusers 0.42.1 takes a quantisation and leaves it away."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        network.save_pretrained(folder)
        return type(network).from_pretrained(folder, torch_dtype=network.dtype, quantization_config=fewer)


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    """Its tensors, of which nothing is copied yet.

    Raises: ValueError for a file that is empty, cut short, or something else.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors' own errors share no base
        raise ValueError(f"model {str(path)!r} is not readable as safetensors ({error}); download it again") from error


def _guessed(weights: Mapping[str, torch.Tensor]) -> str:
    """The hub name whose components diffusers takes the file's for."""
    from diffusers.loaders import single_file_utils

    kind = single_file_utils.infer_diffusers_model_type(weights)
    return str(single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])
