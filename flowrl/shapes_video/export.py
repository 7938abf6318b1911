"""Stage `export`: the trained networks as a half-precision `WanPipeline` folder."""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

from flowrl.shapes.export import name_fast_tokenizers, name_full_precision, replace_folder
from flowrl.shapes_video.flow import SHIFT
from flowrl.shapes_video.tokenizer import build


def pipeline(net: WanTransformer3DModel, model: AutoencoderKLWan, encoder: UMT5EncoderModel) -> WanPipeline:
    """The pipeline of these networks."""
    return WanPipeline(
        tokenizer=build(),
        text_encoder=encoder,
        vae=model,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=net,
    )


def export(net: nn.Module, model: AutoencoderKLWan, encoder: UMT5EncoderModel, target: Path) -> None:
    """Writes `target`, replacing what is there; the networks themselves stay as they are."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    modules: tuple[nn.Module, ...] = (net, model, encoder)
    kept = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]
    for module in modules:
        # not Pipeline.to: both diffusers' and transformers' classes keep some of their layers in float32 when asked for half
        nn.Module.to(module, torch.float16)
    pipeline(net, model, encoder).save_pretrained(part)
    for module, state in zip(modules, kept, strict=True):
        nn.Module.to(module, torch.float32)
        module.load_state_dict(state)
    name_full_precision(part)
    name_fast_tokenizers(part)
    replace_folder(part, target)
