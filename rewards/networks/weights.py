"""Files of weights: found or fetched, read without running what is in them, and fitted key for key."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def package(reward: str, name: str, pip: str | None = None) -> Any:
    """The module, imported when a reward that needs it is made.

    Raises: ModuleNotFoundError: a sentence with what to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise ModuleNotFoundError(
            f"reward {reward} needs the package {error.name}; pip install {pip or error.name}", name=error.name
        ) from error


def place_of(reward: str, variant: str | None) -> Path | None:
    """The folder or file a variant names; None without one.

    Raises: FileNotFoundError where there is none.
    """
    if not variant:
        return None
    path = Path(variant).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"reward {reward}: there is no file or folder {variant!r} (looked in {Path.cwd()})")
    return path


def found(reward: str, repository: str, file: str, folder: Path | None) -> Path:
    """The file of that folder; without a folder, of the repository on the hub, downloaded once.

    Raises: FileNotFoundError: a sentence, where it is in neither.
    """
    if folder is not None:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"reward {reward}: {folder} holds no {file}; it is a file of {repository} on the hub")
        return folder / file
    hub = package(reward, "huggingface_hub")
    try:
        return Path(hub.hf_hub_download(repository, file))
    except Exception as error:
        raise FileNotFoundError(missing(reward, f"{file} of {repository}", error)) from error


def missing(reward: str, what: str, error: Exception) -> str:
    """The sentence for something the hub did not give."""
    told = str(error).strip().partition("\n")[0]
    return f"reward {reward} could not fetch {what}: {told}; without network access give a local folder: {reward}:FOLDER"


def tensors(file: Path) -> State:
    """The tensors of a .safetensors file, or of one that torch wrote; never runs code from the file.

    Raises: ValueError where the file holds anything but named tensors.
    """
    if file.suffix == ".safetensors":
        return importlib.import_module("safetensors.torch").load_file(file)
    try:
        held: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} is no file of tensors: {error}") from error
    held = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{file} holds {type(held).__name__}, not named tensors; give the state dict that was published")
    return dict(held)


def compared(reward: str, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises: ValueError, naming them, where keys are missing, left over or of another shape."""
    faults = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unexpected": sorted(state.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {list(state[key].shape)} for {list(wanted[key].shape)}"
            for key in wanted.keys() & state.keys()
            if state[key].shape != wanted[key].shape
        ],
    }
    said = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})" for what, keys in faults.items() if keys
    ]
    if said:
        raise ValueError(f"the weights of reward {reward} do not fit its network: {'; '.join(said)}; give the published file")


def fit(reward: str, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the state, key for key. Raises: ValueError, see `compared`."""
    compared(reward, model.state_dict(), state)
    model.load_state_dict(dict(state))
