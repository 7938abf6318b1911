"""Files of a reward, from the hub or from a folder, and weights that fit key for key."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from flowrl.rewards.base import NotLoaded


@dataclass(frozen=True)
class Shelf:
    """Where the files of a reward are.

    folder: None, the Hugging Face hub and its cache; else one that holds FOLDER/NAME for each repository OWNER/NAME, and
    FOLDER/FILE for files from other places.
    """

    reward: str
    folder: Path | None = None

    def repository(self, name: str) -> str:
        """What `from_pretrained` takes.

        Raises: FileNotFoundError where the folder does not hold it.
        """
        return name if self.folder is None else str(self._held(name.rpartition("/")[2], f"hf download {name} --local-dir"))

    def file(self, repository: str, name: str) -> Path:
        """One file of a repository.

        Raises: FileNotFoundError where the folder does not hold it; NotLoaded where it cannot be downloaded.
        """
        if self.folder is not None:
            return self._held(f"{repository.rpartition('/')[2]}/{name}", f"hf download {repository} {name} --local-dir")
        with self.finding(f"{repository} ({name})"):
            return Path(importlib.import_module("huggingface_hub").hf_hub_download(repository, name))

    def url(self, url: str, sha256: str | None = None) -> Path:
        """One file by its address, kept in torch's own cache.

        Raises: FileNotFoundError where the folder does not hold it; NotLoaded where it cannot be downloaded, or is another.
        """
        name = unquote(url.rpartition("/")[2])
        if self.folder is not None:
            return self._held(name, f"curl -L {url} -o")
        kept = Path(torch.hub.get_dir()) / "checkpoints" / name
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with self.finding(url):
                torch.hub.download_url_to_file(url, str(kept), sha256, progress=False)
        return kept

    @contextmanager
    def finding(self, what: str) -> Iterator[None]:
        """Raises: NotLoaded, a sentence, for whatever goes wrong with a download."""
        try:
            yield
        except Exception as error:
            raise NotLoaded(
                f"reward {self.reward} could not load {what}: {error}; without network access download it elsewhere into a folder "
                f"and name that: {self.reward}:…@FOLDER"
            ) from error

    def _held(self, name: str, command: str) -> Path:
        path = Path(str(self.folder)) / name
        if not path.exists():
            raise FileNotFoundError(f"reward {self.reward}: there is no {path}; fetch it with network access: {command} {path}")
        return path


def shelved(reward: str, variant: str | None) -> tuple[str, Shelf]:
    """Read "VARIANT@FOLDER", either part of which may be missing.

    Raises: FileNotFoundError for a folder that does not exist.
    """
    name, _, folder = (variant or "").partition("@")
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(f"reward {reward}: {folder} is not a folder; give one with the downloaded models in it")
    return name, Shelf(reward, Path(folder) if folder else None)


def pretrained(shelf: Shelf, kind: str, repository: str) -> Any:
    """A model of transformers in float32, its weights fitting key for key. Of a checkpoint with two towers a vision model takes
    its own.

    Raises: ValueError naming missing, unexpected or misshapen weights; NotLoaded where it cannot be downloaded.
    """
    transformers: Any = importlib.import_module("transformers")
    where, loud = shelf.repository(repository), transformers.logging.get_verbosity()
    # it prints what is unexpected of the other tower, and only prints what is missing
    transformers.logging.set_verbosity_error()
    try:
        with shelf.finding(repository):
            model, told = getattr(transformers, kind).from_pretrained(where, dtype=torch.float32, output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(loud)
    other = ("text_model.", "logit_scale", "logit_bias") if "Vision" in kind else ()
    fits(
        f"{repository} in {kind}",
        told["missing_keys"],
        [key for key in told["unexpected_keys"] if not key.startswith(other) and not key.endswith(".position_ids")],
        [str(key) for key in told["mismatched_keys"]],
    )
    return model


def filled(what: str, model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The model with these weights, every one of its own and no other.

    Raises: ValueError naming missing, unexpected or misshapen weights.
    """
    own = model.state_dict()
    other = [f"{key} {list(state[key].shape)} for {list(own[key].shape)}" for key in own.keys() & state.keys()
             if own[key].shape != state[key].shape]  # fmt: skip
    fits(what, own.keys() - state.keys(), state.keys() - own.keys(), other)
    model.load_state_dict(dict(state))
    return model


def fits(what: str, missing: Any, unexpected: Any, shapes: Any) -> None:
    """Raises: ValueError if there is any."""
    wrong = {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(shapes)}
    told = [f"{len(keys)} {name} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})" for name, keys in wrong.items() if keys]
    if told:
        raise ValueError(f"the weights of {what} do not fit key for key: {'; '.join(told)}")


def tensors(path: Path) -> Any:
    """The content of a .safetensors file, or of a torch file that holds tensors and plain values only."""
    if path.suffix == ".safetensors":
        return importlib.import_module("safetensors.torch").load_file(str(path))
    return torch.load(path, map_location="cpu", weights_only=True)
