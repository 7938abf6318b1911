"""A frozen base in 4 or 8 bits, for adapters (QLoRA)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from flowrl.recipe import PolicySpec

from .family import NETWORKS

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


def quantization(spec: PolicySpec) -> Any:
    """The configuration that a denoising network is loaded quantised with; None where spec.quantize is.

    nf4: bitsandbytes, double quantisation, needs a CUDA device.  int8: torchao, weights only, on any device.

    Raises: ValueError at lora.rank 0, which would train what has no gradient; without the package; for nf4 without a GPU.
    Source: QLoRA (2305.14314).
    """
    if spec.quantize is None:
        return None
    if not spec.lora.rank:
        raise ValueError(f"policy.quantize {spec.quantize} at lora.rank 0: quantised weights cannot be trained; set a rank above 0")
    package = PACKAGES[spec.quantize]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"policy.quantize {spec.quantize} needs {package}: pip install {package}")
    if spec.quantize == "nf4" and not torch.cuda.is_available():
        raise ValueError("policy.quantize nf4 needs a CUDA device, and there is none; use int8, which runs anywhere")
    if spec.quantize == "nf4":
        from diffusers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
        )
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def quantized_networks(spec: PolicySpec, index: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's from_pretrained that load its denoising networks quantised; index: its model_index.json.

    Raises: as `quantization`.
    """
    config = quantization(spec)
    if config is None:
        return {}
    from diffusers import PipelineQuantizationConfig

    names = [name for name in index if name.startswith(NETWORKS) and index[name] != [None, None]]
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=dict.fromkeys(names, config))}
