"""Full weights with the update in them: a folder for diffusers, and one file in the layout that ComfyUI loads.

ComfyUI's own loader of models/diffusion_models also takes a diffusers file of SD1.5, SDXL, SD3, FLUX.1, Z-Image and Qwen-Image, but
not of FLUX.2 (it looks for a bias that is not there), Wan and HunyuanVideo; the native layout, written here, serves all of them.
Source: Comfy-Org/ComfyUI@0b61ce5b `comfy/model_detection.py`, convert_diffusers_mmdit and unet_config_from_diffusers_unet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.models.lora import ADAPTER

from .diffusers import readable
from .files import file_names, held, stem
from .metadata import About, describe
from .names import Family, Place, Unet, of_network


@torch.no_grad()
def merged(network: nn.Module, adapter: str, strength: float = 1.0, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The network's weights by diffusers' names, W + strength * alpha / r * B A; the network stays as it is. The sum is float32.

    dtype None: each weight keeps its own.

    Raises: ValueError for a weight that is not finite in that dtype.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {n: m for n, m in network.named_modules() if isinstance(m, LoraLayer) and adapter in m.lora_A}
    out: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        if ".lora_" in key:
            continue
        module, _, last = key.replace(".base_layer.", ".").rpartition(".")
        made = value.detach()
        if last == "weight" and module in layers:
            made = (made.float() + strength * layers[module].get_delta_weight(adapter).float().to(made.device)).to(made.dtype)
        name = f"{module}.{last}" if module else last
        out[name] = held(name, made, dtype).cpu().contiguous()
    return out


def native(state: Mapping[str, Tensor], family: Family, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights by diffusers' names -> by native ones: modules that are one there joined, halves in the order of there.

    config: the network's, of which a UNet's block numbers depend.

    Raises: ValueError for a weight that has no place there, or a joined module with a part missing.
    """
    unet, last = unet_of(state, config), _last(state)
    out: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[Place, Tensor]]] = {}
    for key, value in state.items():
        module, _, suffix = key.rpartition(".")
        place, ending = family.place(key, unet, last), ""
        if place is None:
            place, ending = family.place(module, unet, last), f".{suffix}"
        if place is None:
            raise ValueError(f"{key} has no place in ComfyUI's layout of {family.name}; use the diffusers folder of merged weights")
        value = torch.cat(list(reversed(value.chunk(2)))) if place.swapped else value
        if place.rows:
            parts.setdefault(place.native + ending, []).append((place, value))
        else:
            out[place.native + ending] = value
    for key, several in parts.items():
        several.sort(key=lambda part: part[0].start)
        if sum(place.rows for place, _ in several) != several[0][0].of:
            raise ValueError(f"{key} cannot be joined: the network has only {len(several)} of its parts")
        out[key] = torch.cat([value for _, value in several])
    return {key: value.contiguous() for key, value in out.items()}


def unet_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unet:
    """What the block numbers of a UNet depend on.

    Raises: ValueError where its levels have different numbers of layers.
    """
    layers = config.get("layers_per_block", 2)
    if not isinstance(layers, int):
        raise ValueError(f"layers_per_block {layers}: levels of different depth have no native layout; use the diffusers folder")
    attended = frozenset(int(key.split(".")[1]) for key in state if key.startswith("up_blocks.") and ".attentions." in key)
    return Unet(layers, attended)


def _last(state: Mapping[str, Tensor]) -> int:
    return max((int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks.")), default=-1)


def save_network(network: nn.Module, state: Mapping[str, Tensor], folder: Path) -> Path:
    """A folder that the network's class loads with from_pretrained."""
    from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    network.save_config(folder)  # pyright: ignore[reportCallIssue]
    save_file(dict(state), folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
    readable([folder / SAFETENSORS_WEIGHTS_NAME])
    return folder


def write_merged(
    folder: Path, nets: Mapping[str, nn.Module], about: About, dtype: torch.dtype | None = None, strength: float = 1.0
) -> list[Path]:
    """A folder and a file of each network: <title>-merged/<network> for diffusers, <title>-merged.safetensors for ComfyUI's
    models/diffusion_models. A network whose layout in ComfyUI is not known gets the folder alone."""
    from safetensors.torch import save_file

    files, written = file_names(f"{about.title}-merged", nets), []
    for name, network in nets.items():
        state = merged(network, ADAPTER, strength, dtype)
        written.append(save_network(network, state, folder / f"{stem(about.title)}-merged" / name))
        kind = of_network(type(network).__name__)
        if kind is None:
            continue
        place = folder / files[name]
        said = describe(replace(about, title=place.stem), kind, (name, type(network).__name__), state, None)
        save_file(native(state, kind, network.config), place, said)  # pyright: ignore[reportArgumentType]
        readable([place])
        written.append(place)
    return written
