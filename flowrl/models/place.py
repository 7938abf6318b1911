"""Where a pipeline's parts stay, and where they work."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .family import AUTOENCODERS


class Places:
    """Encoders, autoencoder and networks of a pipeline on their devices.

    offload: "encoders" and "vae" stay on the CPU and come to the device while they work; "network" leaves it while prompts are
    encoded.  A part that somebody else moves (accelerate's hooks of enable_model_cpu_offload, a quantised one) stays where it is.
    """

    def __init__(self, pipe: Any, networks: Mapping[str, nn.Module], offload: Collection[str], device: torch.device) -> None:
        self.pipe, self.device, self.offload = pipe, device, set(offload)
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        self.networks = networks
        self.vae = {name: part for name, part in parts.items() if name.startswith(AUTOENCODERS)}
        self.encoders = {name: part for name, part in parts.items() if name not in self.vae and name not in networks}

    def settle(self) -> None:
        """Freeze what is not trained, and put everything where it stays."""
        for kind, parts in (("encoders", self.encoders), ("vae", self.vae), ("networks", self.networks)):
            for part in parts.values():
                if kind != "networks":
                    part.requires_grad_(False).eval()
                move(part, torch.device("cpu") if kind in self.offload else self.device)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Encoders and the autoencoder, which encodes first frames and references, are on the device inside."""
        away = self.networks if "network" in self.offload else {}
        try:
            for part in away.values():
                move(part, torch.device("cpu"))
            with self._visiting("encoders", self.encoders), self._visiting("vae", self.vae):
                yield
        finally:
            for part in away.values():
                move(part, self.device)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        with self._visiting("vae", self.vae):
            yield

    @contextmanager
    def _visiting(self, kind: str, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        if kind not in self.offload:
            yield
            return
        try:
            for part in parts.values():
                move(part, self.device)
            yield
        finally:
            for part in parts.values():
                move(part, torch.device("cpu"))

    def drop_encoders(self) -> None:
        """Forget the encoders: nobody holds them any more."""
        self.pipe.register_modules(**dict.fromkeys(self.encoders))
        self.encoders = {}


def move(part: nn.Module, device: torch.device) -> None:
    """part.to(device), unless its place is somebody else's business."""
    if hasattr(part, "_hf_hook") or getattr(part, "is_loaded_in_4bit", False) or getattr(part, "is_loaded_in_8bit", False):
        return
    part.to(device)
