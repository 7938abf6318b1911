"""A small head that says how noisy each element's step should be, for `samplers.laws.flow_noise`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HEAD_FILE = "noise_head.safetensors"
"""Its file beside an adapter's."""


class NoiseHead(nn.Module):
    """raw = W2 silu(W1 [x, u, sigma]) at every latent position, float32. W2 starts at 0: the std starts in the middle of its range.

    channels: of the latents; axis: their dimension among *d, 0 or -1; positions of any number of dimensions. u is taken as data,
    so that the head moves the noise alone.
    """

    def __init__(self, channels: int, axis: int = 0, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.axis = 1 if axis == 0 else -1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.inner = nn.Linear(2 * channels + 1, width)
            self.outer = nn.Linear(width, channels)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, u: Tensor, sigma: Tensor) -> Tensor:
        """x, u [N, *d], sigma [N] -> raw, as x."""
        x, u = (part.float().movedim(self.axis, -1) for part in (x, u.detach()))
        level = sigma.float().view(-1, *[1] * (x.ndim - 1)).expand_as(x[..., :1])
        raw = self.outer(nn.functional.silu(self.inner(torch.cat([x, u, level], -1))))
        return raw.movedim(-1, self.axis)


def save_head(head: NoiseHead, folder: Path) -> None:
    save_file({name: p.detach().cpu().contiguous() for name, p in head.state_dict().items()}, folder / HEAD_FILE)


def load_head(head: NoiseHead, folder: Path) -> None:
    """Raises: ValueError where the folder holds no head, or one for other latents."""
    path = folder / HEAD_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no noise head: it has no {HEAD_FILE}; the run was trained without policy.noise_head")
    try:
        head.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this model's latents: {error}") from error
