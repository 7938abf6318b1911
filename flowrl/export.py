"""Trained weights as files that diffusers loads on its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.models.lora import ADAPTER, float32
from flowrl.models.noise_head import load_head, save_head
from flowrl.models.policy import DiffusersPolicy

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name diffusers' load_lora_weights looks for in a folder."""


def save(policy: DiffusersPolicy, folder: str | Path) -> Path:
    """The adapter, or at lora.rank 0 the whole transformer. Call it on one process."""
    return save_lora(policy, folder) if policy.spec.lora.rank else save_transformer(policy, folder)


def save_lora(policy: DiffusersPolicy, folder: str | Path) -> Path:
    """`pipe.load_lora_weights(folder)` then draws this policy's images: float32 weights, with rank, alpha and targets as metadata.

    The folder appears whole or not at all; one that is there is replaced.

    Raises: ValueError at lora.rank 0.
    Differs: flow_grpo and its successors write PEFT's own format, which load_lora_weights does not read; without metadata
    alpha would be taken to equal the rank.
    """
    from peft.utils import get_peft_model_state_dict

    if not policy.spec.lora.rank:
        raise ValueError("lora.rank is 0: there is no adapter to save; use save_transformer")
    network: Any = policy.pipe.transformer
    weights = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    layers: dict[str, nn.Module | Tensor] = {name: p.detach().cpu().contiguous() for name, p in weights.items()}
    with _replacing(Path(folder)) as place:
        type(policy.pipe).save_lora_weights(
            place, transformer_lora_layers=layers, transformer_lora_adapter_metadata=network.peft_config[ADAPTER].to_dict()
        )
        if policy.head is not None:
            save_head(policy.head, place)
    return Path(folder)


def save_transformer(policy: DiffusersPolicy, folder: str | Path) -> Path:
    """The transformer in diffusers format: `SD3Transformer2DModel.from_pretrained(folder)`, to be put in the base pipeline's place.

    Raises: ValueError where the network carries an adapter.
    """
    if policy.spec.lora.rank:
        raise ValueError(f"lora.rank is {policy.spec.lora.rank}: the transformer itself is untrained; use save_lora")
    with _replacing(Path(folder)) as place:
        policy.pipe.transformer.save_pretrained(place)
        if policy.head is not None:
            save_head(policy.head, place)
    return Path(folder)


def load_lora(policy: DiffusersPolicy, folder: str | Path) -> None:
    """Put a saved adapter in the place of the policy's, bit for bit; rank, alpha and targets come from the file.

    The adapter's parameters are new objects: load before the optimizer is built. To sample, `pipe.load_lora_weights(folder)`
    is enough; at a half-precision base it rounds the weights to it, this does not. A noise head is loaded with it.

    Raises: ValueError where the folder holds no adapter, or no noise head for a policy with one; or at lora.rank 0.
    """
    from peft.utils import set_peft_model_state_dict

    path = Path(folder) / LORA_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapter: it has no {LORA_FILE}; give the folder that save_lora wrote")
    if not policy.spec.lora.rank:
        raise ValueError("lora.rank is 0: the policy has no adapter to load into; set lora.rank above 0")
    network = policy.pipe.transformer
    weights, metadata = policy.pipe.lora_state_dict(str(folder), return_lora_metadata=True)
    network.delete_adapters(ADAPTER)
    network.load_lora_adapter(weights, adapter_name=ADAPTER, metadata=metadata)
    float32(network)
    with torch.no_grad():  # once more: diffusers has loaded them in the base's dtype
        exact = {name.removeprefix("transformer."): p for name, p in weights.items()}
        set_peft_model_state_dict(network, exact, adapter_name=ADAPTER)
    network.eval()
    for name, p in network.named_parameters():
        p.requires_grad_(f".{ADAPTER}." in name)
    if policy.head is not None:
        load_head(policy.head, Path(folder))


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its name at the end; on an error, `folder` stays as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give a folder to save into")
    place = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = place.with_name(f"{place.name}-old")
    try:
        yield place
        # mkdtemp's folders and safetensors' files are private
        place.chmod(0o755)
        for file in place.iterdir():
            file.chmod(0o644)
        if folder.exists():
            # a directory cannot be renamed over one that has files
            os.rename(folder, old)
        os.rename(place, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)
