"""Where a pipeline's parts stay, and where they work."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .family import AUTOENCODERS


class Places:
    """Encoders, autoencoder and networks of a pipeline on their devices.

    offload: "encoders" and "vae" stay on the CPU and come to the device while they work, of several encoders one at a time;
    "network" leaves it while prompts are encoded.  A part that somebody else moves (accelerate's hooks of
    enable_model_cpu_offload), or that bitsandbytes has in 8 bits, stays where it is.
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
        """Encoders and the autoencoder, which encodes first frames and references, are on the device inside.

        The autoencoder is there throughout: a pipeline computes where the first of its parts is that is not on the CPU.
        """
        away = self.networks if "network" in self.offload else {}
        try:
            for part in away.values():
                move(part, torch.device("cpu"))
            several = "encoders" in self.offload and len(self.encoders) > 1
            visit = self._in_turn(self.encoders) if several else self._visiting("encoders", self.encoders)
            with visit, self._visiting("vae", self.vae):
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

    @contextmanager
    def _in_turn(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside, each of these comes to the device when it is called, after the others have left it."""

        def come(part: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            for other in parts.values():
                if other is not part:
                    move(other, torch.device("cpu"))
            move(part, self.device)
            return tree_map_only(Tensor, lambda x: x.to(self.device), (args, kwargs))

        hooks = [part.register_forward_pre_hook(come, with_kwargs=True) for part in parts.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for part in parts.values():
                move(part, torch.device("cpu"))

    def drop_encoders(self) -> None:
        """Forget the encoders: nobody holds them any more."""
        self.pipe.register_modules(**dict.fromkeys(self.encoders))
        self.encoders = {}


def move(part: nn.Module, device: torch.device) -> None:
    """part.to(device), unless its place is somebody else's business.

    Weights in 4 bits move with their constants (bitsandbytes 0.43.2; diffusers loads none by an older one).
    """
    if hasattr(part, "_hf_hook") or getattr(part, "is_loaded_in_8bit", False):
        return
    part.to(device)
