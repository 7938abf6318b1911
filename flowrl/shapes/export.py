"""Stage `export`: the trained networks as a half-precision `StableDiffusion3Pipeline` folder."""

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import nn

from flowrl.shapes.networks import silent_encoder
from flowrl.shapes.tokenizer import build


def replace_folder(part: Path, target: Path) -> None:
    """Puts the finished folder `part` where `target` is; no moment has a half-written `target`."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(part, target)
    shutil.rmtree(old, ignore_errors=True)


def name_full_precision(folder: Path) -> None:
    """Has every configuration say float32, which transformers and diffusers then load the half-precision weights as."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        if "torch_dtype" in config or "dtype" in config:
            config.pop("torch_dtype", None)
            config["dtype"] = "float32"
        # The folder the network was loaded from, which is this machine's.
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def name_fast_tokenizers(folder: Path) -> None:
    """Names the tokenizers' class as transformers 4 and 5 both know it (5 writes a name of its own)."""
    for path in (folder / "model_index.json", *folder.glob("tokenizer*/tokenizer_config.json")):
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def pipeline(nets: nn.ModuleDict, autoencoder: AutoencoderKL, shift: float) -> StableDiffusion3Pipeline:
    """The pipeline of these networks; its third text encoder is silent (`networks.silent_encoder`)."""
    return StableDiffusion3Pipeline(
        transformer=nets["transformer"],
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=autoencoder,
        text_encoder=nets["text_encoder"],
        tokenizer=build(),
        text_encoder_2=nets["text_encoder_2"],
        tokenizer_2=build(),
        text_encoder_3=silent_encoder(),
        tokenizer_3=build(),
    )


def export(nets: nn.ModuleDict, autoencoder: AutoencoderKL, shift: float, target: Path) -> None:
    """Writes `target`, replacing what is there; the networks themselves stay as they are."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    kept = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in nets.items()}
    vae = {k: v.clone() for k, v in autoencoder.state_dict().items()}
    pipeline(nets, autoencoder, shift).to(torch.float16).save_pretrained(part)
    for name, net in nets.items():
        net.float().load_state_dict(kept[name])
    autoencoder.float().load_state_dict(vae)
    name_full_precision(part)
    name_fast_tokenizers(part)
    replace_folder(part, target)
