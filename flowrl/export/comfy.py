"""A PEFT adapter as ComfyUI reads it: under its names, with an alpha each, so that strength 1 there is the trained update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .names import FUSE, Family, Place

HALVES = (".lora_A.weight", ".lora_B.weight")
KOHYA = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}


class Pair(NamedTuple):
    """One module's adapter: the update of its weight is alpha / r * up @ down."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.down.shape[0]


def convert(weights: Mapping[str, Tensor], config: Mapping[str, Any], family: Family) -> dict[str, Tensor]:
    """The tensors of a file for ComfyUI's models/loras.

    weights: "module.lora_A.weight" [r, in] and "module.lora_B.weight" [out, r], as `peft.get_peft_model_state_dict` gives them;
    config: r, lora_alpha and their patterns, as in a LoraConfig. ComfyUI adds alpha / r * up @ down, and up @ down where no alpha
    is given, so alpha is always written and the matrices stay as they are. Only where it knows one module for several of ours and
    slices nothing itself (HunyuanVideo's q, k, v) they are joined: one beside another, up block by block, so that ranks add up.

    Raises: ValueError for a module that ComfyUI does not know, half an adapter, or anything but plain LoRA.
    Source: the files named in keys.yaml; `comfy/weight_adapter/lora.py` of Comfy-Org/ComfyUI@6f98b150, LoRAAdapter.
    """
    out: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[Place, Pair]]] = {}
    for name, pair in pairs(weights, config).items():
        place = family.place(name)
        if place is None:
            raise ValueError(
                f"ComfyUI knows no {family.name} module for {name!r}, so it would leave its update out; train others "
                "(lora.targets), or use the diffusers file"
            )
        key = family.key(name, place)
        if place.rows and family.part == FUSE:
            parts.setdefault(key, []).append((place, _fitting(name, pair, place)))
        else:
            _write(out, key, pair._replace(up=_halves(pair.up)) if place.swapped and family.native else pair)
    for key, several in parts.items():
        _write(out, key, fused(several))
    return out


def pairs(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Pair]:
    """Both matrices and alpha of every module.

    Raises: ValueError for half an adapter, or a tensor that is neither half.
    """
    names: dict[str, None] = {}
    for key in weights:
        half = next((h for h in HALVES if key.endswith(h)), None)
        if half is None or config.get("use_dora") or config.get("lora_bias"):
            raise ValueError(f"{key!r} is not of a plain LoRA (no DoRA, no bias), which is all that can be exported for ComfyUI")
        names[key.removesuffix(half)] = None
    out = {}
    for name in names:
        down, up = (weights.get(name + half) for half in HALVES)
        if down is None or up is None:
            raise ValueError(f"{name!r} has only one of its two matrices; save the adapter again")
        out[name] = Pair(down, up, alpha(name, down.shape[0], config))
    return out


def alpha(name: str, rank: int, config: Mapping[str, Any]) -> float:
    """The alpha whose alpha / rank is PEFT's scale of this module."""
    from peft.utils.other import get_pattern_key

    pattern = config.get("alpha_pattern") or {}
    own = float(pattern.get(get_pattern_key(list(pattern), name), config["lora_alpha"]))
    return own * rank**0.5 if config.get("use_rslora") else own


def fused(several: list[tuple[Place, Pair]]) -> Pair:
    """One adapter of the larger module that these are slices of; slices without one stay at zero.

    Where scales differ they are folded into up, so that one alpha serves all.
    """
    several = sorted(several, key=lambda part: part[0].start)
    width, scale = several[0][1].down.shape[1], max((pair.scale for _, pair in several), key=abs)
    down = torch.cat([pair.down for _, pair in several])
    up = down.new_zeros(several[0][0].of * width, len(down))
    column = 0
    for place, pair in several:
        rank, row = len(pair.down), place.start * width
        up[row : row + len(pair.up), column : column + rank] = pair.up if pair.scale == scale else pair.up * (pair.scale / scale)
        column += rank
    return Pair(down, up, scale * len(down))


def _fitting(name: str, pair: Pair, place: Place) -> Pair:
    width = pair.down.shape[1]
    if len(pair.up) != place.rows * width:
        raise ValueError(
            f"{name!r} has {len(pair.up)} rows where ComfyUI's {place.native} has {place.rows} x {width} for it: "
            "a network of another shape than ComfyUI's"
        )
    return pair


def _halves(up: Tensor) -> Tensor:
    first, second = up.chunk(2)
    return torch.cat([second, first])


def _write(out: dict[str, Tensor], key: str, pair: Pair) -> None:
    kohya = key.startswith("lora_")
    for half, value in zip(HALVES, (pair.down, pair.up), strict=True):
        out[key + (KOHYA[half] if kohya else half)] = value.detach().cpu().contiguous()
    out[f"{key}.alpha"] = torch.tensor(pair.alpha)
