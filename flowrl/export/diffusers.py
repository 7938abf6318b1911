"""Trained weights as files that diffusers loads on its own."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.models.lora import ADAPTER, float32
from flowrl.models.noise_head import load_head, save_head
from flowrl.models.policy import DiffusersPolicy
from flowrl.types import Policy

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name diffusers' load_lora_weights looks for in a folder; it prefers a file of this name to any other there."""
METADATA = "lora_adapter_metadata"


def adapter(network: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of its adapter by their names in the network, on the CPU, and its LoraConfig as a dict."""
    from peft.utils import get_peft_model_state_dict

    weights = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    return {name: p.detach().cpu().contiguous() for name, p in weights.items()}, network.peft_config[ADAPTER].to_dict()


def save(policy: Policy, folder: str | Path) -> Path:
    """The adapter, or at lora.rank 0 the whole network, or what is trained of a policy that is no pipeline. Call it on one
    process."""
    if not isinstance(policy, DiffusersPolicy):
        return save_weights(policy, folder)
    return save_lora(policy, folder) if policy.spec.lora.rank else save_transformer(policy, folder)


def save_lora(policy: DiffusersPolicy, folder: str | Path) -> Path:
    """`pipe.load_lora_weights(folder)` then draws this policy's images: float32 weights, with rank, alpha and targets as metadata.

    A second expert, which diffusers keeps in a file of its own, is in the subfolder of its name and loaded by
    `pipe.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)`.
    The folder appears whole or not at all; one that is there is replaced.

    Raises: ValueError at lora.rank 0, or for a pipeline that has no loader of adapters.
    Differs: flow_grpo and its successors write PEFT's own format, which load_lora_weights does not read; without metadata
    alpha would be taken to equal the rank.
    """
    if not policy.spec.lora.rank:
        raise ValueError("lora.rank is 0: there is no adapter to save; use save_transformer")
    with replacing(Path(folder)) as place:
        write_lora(type(policy.pipe), {name: adapter(network) for name, network in policy.modules.items()}, place)
        if policy.head is not None:
            save_head(policy.head, place)
    return Path(folder)


def write_lora(
    pipeline: type[DiffusionPipeline], adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], place: Path
) -> None:
    """LORA_FILE of these adapters (weights and config by network) in a folder that is there, by the pipeline's own writer.

    Raises: ValueError as `savable`.
    """
    writer: Any = getattr(pipeline, "save_lora_weights", None)
    main: dict[str, Any] = {}
    apart = savable(pipeline, list(adapters))
    for name, (weights, config) in adapters.items():
        if name in apart:
            own = {"transformer_lora_layers": dict(weights), "transformer_lora_adapter_metadata": dict(config)}
            writer(place / name, **own)
        else:
            main |= {f"{name}_lora_layers": dict(weights), f"{name}_lora_adapter_metadata": dict(config)}
    if main:
        writer(place, **main)


def savable(pipeline: type[DiffusionPipeline], modules: Sequence[str]) -> list[str]:
    """Those of the networks whose adapter gets a file of its own, in a subfolder.

    Raises: ValueError for a pipeline that has no loader of adapters, or none for one of the networks.
    """
    writer: Any = getattr(pipeline, "save_lora_weights", None)
    if writer is None:
        raise ValueError(f"{pipeline.__name__} has no loader of adapters, so none is written; train the whole network: lora.rank 0")
    known = inspect.signature(writer).parameters
    apart = [name for name in modules if not {f"{name}_lora_layers", f"{name}_lora_adapter_metadata"} <= set(known)]
    for name in apart:
        if name not in getattr(pipeline, "_lora_loadable_modules", ()):
            raise ValueError(f"{pipeline.__name__} loads no adapter into {name!r}; train the whole network: lora.rank 0")
    return apart


def read_lora(folder: str | Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and config of one network's adapter, as `adapter` gives them, from a folder that save_lora wrote.

    Raises: ValueError where the folder holds none.
    """
    path = Path(folder) / LORA_FILE
    own = Path(folder) / name / LORA_FILE
    prefix, path = ("transformer.", own) if own.is_file() else (f"{name}.", path)
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapter: it has no {LORA_FILE}; give the folder that save_lora wrote")
    with opened(path) as file:
        weights = {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
        told: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    config = {k.removeprefix(prefix): v for k, v in told.items() if k.startswith(prefix)}
    if not weights or not config:
        raise ValueError(f"{path} holds no adapter of {name!r} with its rank and alpha; give a folder that save_lora wrote")
    return weights, config


def saved(folder: str | Path) -> list[str]:
    """Names of the networks whose adapters a folder holds, the main ones first.

    Raises: ValueError where it holds none.
    """
    path = Path(folder)
    names: list[str] = []
    if (path / LORA_FILE).is_file():
        with opened(path / LORA_FILE) as file:
            names = list(dict.fromkeys(key.split(".")[0] for key in file.keys()))  # noqa: SIM118
    names += sorted(p.parent.name for p in path.glob(f"*/{LORA_FILE}"))
    if not names:
        raise ValueError(f"{folder} holds no adapter: it has no {LORA_FILE}; give the folder that save_lora wrote")
    return names


def save_transformer(policy: DiffusersPolicy, folder: str | Path) -> Path:
    """The network in diffusers format: `SD3Transformer2DModel.from_pretrained(folder)`, to be put in the base pipeline's place; of
    several, each in a subfolder of its name.

    Raises: ValueError where the network carries an adapter.
    """
    if policy.spec.lora.rank:
        raise ValueError(f"lora.rank is {policy.spec.lora.rank}: the transformer itself is untrained; use save_lora")
    trained = policy.modules
    with replacing(Path(folder)) as place:
        for name, network in trained.items():
            network.save_pretrained(place if len(trained) == 1 else place / name)  # pyright: ignore[reportCallIssue]
        if policy.head is not None:
            save_head(policy.head, place)
    return Path(folder)


def save_weights(policy: Policy, folder: str | Path) -> Path:
    """The trained weights by their names: `network.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)`."""
    from safetensors.torch import save_file

    with replacing(Path(folder)) as place:
        save_file({name: p.detach().cpu().contiguous() for name, p in policy.trainable()}, place / "weights.safetensors")
    return Path(folder)


def load_lora(policy: DiffusersPolicy, folder: str | Path) -> None:
    """Put a saved adapter in the place of the policy's, bit for bit; rank, alpha and targets come from the file.

    The adapter's parameters are new objects: load before the optimizer is built. To sample, `pipe.load_lora_weights(folder)`
    is enough; at a half-precision base it rounds the weights to it, this does not. A noise head is loaded with it.

    Raises: ValueError where the folder holds no adapter, or no noise head for a policy with one; or at lora.rank 0.
    """
    if not policy.spec.lora.rank:
        raise ValueError("lora.rank is 0: the policy has no adapter to load into; set lora.rank above 0")
    found = {name: read_lora(folder, name) for name in policy.modules}
    for name, network in policy.modules.items():
        _load(network, *found[name])
    if policy.head is not None:
        load_head(policy.head, Path(folder))


def _load(network: Any, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    from peft.utils import set_peft_model_state_dict

    network.delete_adapters(ADAPTER)
    network.load_lora_adapter(dict(weights), prefix=None, adapter_name=ADAPTER, metadata=dict(config))
    float32(network)
    with torch.no_grad():  # once more: diffusers has loaded them in the base's dtype
        set_peft_model_state_dict(network, dict(weights), adapter_name=ADAPTER)
    network.eval()
    for name, p in network.named_parameters():
        p.requires_grad_(f".{ADAPTER}." in name)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Raises: ValueError for a file that is no safetensors file, or is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); export it again") from error


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its name at the end; on an error, `folder` stays as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give a folder to save into")
    place = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = place.with_name(f"{place.name}-old")
    try:
        yield place
        readable([place, *place.rglob("*")])
        if folder.exists():
            # a directory cannot be renamed over one that has files
            os.rename(folder, old)
        os.rename(place, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)


def readable(paths: Sequence[Path]) -> None:
    """For others too: mkdtemp's folders and safetensors' files are private."""
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
