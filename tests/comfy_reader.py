"""ComfyUI's side, read again from its sources without flowrl's tables: which keys it accepts, and what it does to its weights.

Sources: Comfy-Org/ComfyUI@17358c8f comfy/lora.py (load_lora, model_lora_keys_unet, calculate_weight), @09708eae comfy/utils.py
(the *_to_diffusers maps), @6f98b150 comfy/weight_adapter/lora.py (LoRAAdapter), @01f03bbd comfy/supported_models.py.
Its native weights are told apart from diffusers' by diffusers' own checkpoint converters (`back`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers.loaders import single_file_utils as converters
from torch import Tensor

UNET_TAILS = (
    r"attn[12]\.to_[qkv]|attn[12]\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2|norm[123]",
    r"proj_in|proj_out|norm",
    r"conv1|conv2|time_emb_proj|conv_shortcut|norm1|norm2",
)
UNET_NAMES = re.compile(
    rf"(?:(?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(?:attentions\.\d+\.(?:transformer_blocks\.\d+\.(?:{UNET_TAILS[0]})|{UNET_TAILS[1]})"
    rf"|resnets\.\d+\.(?:{UNET_TAILS[2]})|downsamplers\.0\.conv|upsamplers\.0\.conv)"
    r"|conv_in|conv_out|conv_norm_out|time_embedding\.linear_[12]|add_embedding\.linear_[12])"
)
JOINT = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}
DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2", "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
EMBEDDERS = {"timestep_embedder": "time_in", "text_embedder": "vector_in", "guidance_embedder": "guidance_in"}


class Target(NamedTuple):
    """rows: (first, how many) of the weight; swap: the update's halves change places."""

    weight: str
    rows: tuple[int, int] | None = None
    swap: bool = False


def accepted(native: Mapping[str, Tensor], family: str, config: Mapping[str, Any]) -> dict[str, Target]:
    """Every key that model_lora_keys_unet lists for this model."""
    modules = [name.removesuffix(".weight") for name in native if name.endswith(".weight")]
    keys = {f"lora_unet_{name.replace('.', '_')}": Target(f"{name}.weight") for name in modules}
    keys |= {f"diffusion_model.{name}": Target(f"{name}.weight") for name in modules}
    more = {"sd": _unet, "sd3": _sd3, "flux": _flux, "flux2": _flux, "z_image": _z_image, "qwen_image": _same}.get(family)
    found = {} if more is None else more(native, modules, config)
    missing = sorted({t.weight for t in found.values()} - set(native))
    # maps are written for every variant, so they name weights that this one lacks, and no file addresses those
    return keys | {key: target for key, target in found.items() if target.weight not in missing}


def _blocks(modules: list[str], stack: str) -> range:
    return range(1 + max((int(m.split(".")[1]) for m in modules if m.startswith(f"{stack}.")), default=-1))


def _thirds(prefix: str, names: tuple[str, str, str], weight: str, width: int) -> dict[str, Target]:
    return {f"{prefix}{name}": Target(weight, (i * width, width)) for i, name in enumerate(names)}


def _unet(native: Mapping[str, Tensor], modules: list[str], config: Mapping[str, Any]) -> dict[str, Target]:
    # the converter hands tensors on as they are, so that identity tells which is which
    whose = {id(value): name for name, value in native.items()}
    made = back(native, "sd", config)
    names = {key.removesuffix(".weight"): whose[id(value)] for key, value in made.items() if key.endswith(".weight")}
    return {f"lora_unet_{key.replace('.', '_')}": Target(weight) for key, weight in names.items() if UNET_NAMES.fullmatch(key)}


def _sd3(native: Mapping[str, Tensor], modules: list[str], config: Mapping[str, Any]) -> dict[str, Target]:
    depth = native["x_embedder.proj.weight"].shape[0] // 64
    out = {}
    for i in _blocks(modules, "joint_blocks"):
        ours, theirs = f"transformer.transformer_blocks.{i}.", f"joint_blocks.{i}."
        out |= _thirds(f"{ours}attn.", ("to_q", "to_k", "to_v"), f"{theirs}x_block.attn.qkv.weight", 64 * depth)
        names = ("add_q_proj", "add_k_proj", "add_v_proj")
        out |= _thirds(f"{ours}attn.", names, f"{theirs}context_block.attn.qkv.weight", 64 * depth)
        out |= _thirds(f"{ours}attn2.", ("to_q", "to_k", "to_v"), f"{theirs}x_block.attn2.qkv.weight", 64 * depth)
        for a, b in JOINT.items():
            out[ours + a] = Target(f"{theirs}{b}.weight", None, i == depth - 1 and a == "norm1_context.linear")
    for part, own in (("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")):
        for n, m in ((1, 0), (2, 2)):
            out[f"transformer.time_text_embed.{part}.linear_{n}"] = Target(f"{own}.mlp.{m}.weight")
    out["transformer.context_embedder"] = Target("context_embedder.weight")
    out["transformer.pos_embed.proj"] = Target("x_embedder.proj.weight")
    out["transformer.proj_out"] = Target("final_layer.linear.weight")
    out["transformer.norm_out.linear"] = Target("final_layer.adaLN_modulation.1.weight", None, True)
    return out


def _flux(native: Mapping[str, Tensor], modules: list[str], config: Mapping[str, Any]) -> dict[str, Target]:
    width = native["img_in.weight"].shape[0]
    out = {}
    for i in _blocks(modules, "double_blocks"):
        ours, theirs = f"transformer.transformer_blocks.{i}.", f"double_blocks.{i}."
        out |= _thirds(f"{ours}attn.", ("to_q", "to_k", "to_v"), f"{theirs}img_attn.qkv.weight", width)
        out |= _thirds(f"{ours}attn.", ("add_q_proj", "add_k_proj", "add_v_proj"), f"{theirs}txt_attn.qkv.weight", width)
        out |= {ours + a: Target(f"{theirs}{b}.weight") for a, b in DOUBLE.items()}
    for i in _blocks(modules, "single_blocks"):
        ours, theirs = f"transformer.single_transformer_blocks.{i}.", f"single_blocks.{i}."
        out |= _thirds(f"{ours}attn.", ("to_q", "to_k", "to_v"), f"{theirs}linear1.weight", width)
        out[f"{ours}proj_mlp"] = Target(f"{theirs}linear1.weight", (3 * width, 4 * width))
        out |= {ours + a: Target(f"{theirs}{b}.weight") for a, b in SINGLE.items()}
    for part, own in EMBEDDERS.items():
        for n, layer in ((1, "in_layer"), (2, "out_layer")):
            out[f"transformer.time_text_embed.{part}.linear_{n}"] = Target(f"{own}.{layer}.weight")
    out["transformer.x_embedder"], out["transformer.context_embedder"] = Target("img_in.weight"), Target("txt_in.weight")
    out["transformer.proj_out"] = Target("final_layer.linear.weight")
    out["transformer.norm_out.linear"] = Target("final_layer.adaLN_modulation.1.weight", None, True)
    return out


def _z_image(native: Mapping[str, Tensor], modules: list[str], config: Mapping[str, Any]) -> dict[str, Target]:
    width = native["cap_embedder.1.weight"].shape[0]
    out = {}
    for stack in ("layers", "context_refiner", "noise_refiner"):
        for i in _blocks(modules, stack):
            block = f"{stack}.{i}.attention."
            for prefix in ("diffusion_model.", "transformer."):
                out |= _thirds(prefix + block, ("to_q", "to_k", "to_v"), f"{block}qkv.weight", width)
                out[f"{prefix}{block}to_out.0"] = Target(f"{block}out.weight")
    return out


def _same(native: Mapping[str, Tensor], modules: list[str], config: Mapping[str, Any]) -> dict[str, Target]:
    return {f"transformer.{name}": Target(f"{name}.weight") for name in modules}


def apply(
    native: Mapping[str, Tensor], file: Mapping[str, Tensor], keys: Mapping[str, Target], strength: float = 1.0
) -> dict[str, Tensor]:
    """Its weights with the file at this strength. A tensor that nothing takes is an AssertionError; there, a warning."""
    out = {name: value.clone() for name, value in native.items()}
    taken: set[str] = set()
    for key, target in keys.items():
        for up, down in (("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight")):
            if f"{key}.{up}" not in file:
                continue
            a, b = file[f"{key}.{down}"].float(), file[f"{key}.{up}"].float()
            taken |= {f"{key}.{up}", f"{key}.{down}"}
            scale = 1.0
            if f"{key}.alpha" in file:
                scale, taken = file[f"{key}.alpha"].item() / len(a), taken | {f"{key}.alpha"}
            weight = out[target.weight]
            if target.rows is not None:
                weight = weight.narrow(0, *target.rows)
            update = (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
            weight += strength * scale * (torch.cat(update.chunk(2)[::-1]) if target.swap else update)
    left = sorted(set(file) - taken)
    assert not left, f"lora key not loaded: {left}"
    return out


def back(native: Mapping[str, Tensor], family: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Native weights by diffusers' names, by its own converters."""
    given = dict(native)
    if family == "sd":
        return converters.convert_ldm_unet_checkpoint({f"model.diffusion_model.{k}": v for k, v in given.items()}, config)
    if family == "sd3":
        return converters.convert_sd3_transformer_checkpoint_to_diffusers(given)
    if family == "flux":
        return _wide(given, converters.convert_flux_transformer_checkpoint_to_diffusers)
    if family == "flux2":
        return converters.convert_flux2_transformer_checkpoint_to_diffusers(given)
    if family == "z_image":
        return converters.convert_z_image_transformer_checkpoint_to_diffusers(given)
    if family == "wan":
        return converters.convert_wan_transformer_to_diffusers(given)
    if family == "hunyuan_video":
        return _wide(
            {_tencent(name): value for name, value in given.items()}, converters.convert_hunyuan_video_transformer_to_diffusers
        )
    return given


def _wide(given: dict[str, Tensor], convert: Any) -> dict[str, Tensor]:
    """These converters cut single blocks at multiples of 3072, so every row of a tiny one is there as often as that takes."""
    width = next(v for k, v in given.items() if k.endswith("single_blocks.0.linear2.weight")).shape[0]
    times = 3072 // width
    thick = {k: v.repeat_interleave(times, 0) if ".linear1." in k and "single_blocks" in k else v for k, v in given.items()}
    made = convert(thick)
    single = re.compile(r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp)\.")
    return {k: v[::times] if single.match(k) else v for k, v in made.items()}


def _tencent(name: str) -> str:
    """ComfyUI's name of a HunyuanVideo weight -> that of the released file, the other way round than process_unet_state_dict."""
    name = re.sub(r"^txt_in\.t_embedder\.(in|out)_layer\.", lambda m: f"txt_in.t_embedder.mlp.{0 if m[1] == 'in' else 2}.", name)
    name = re.sub(r"^txt_in\.c_embedder\.(in|out)_layer\.", lambda m: f"txt_in.c_embedder.linear_{1 if m[1] == 'in' else 2}.", name)
    name = re.sub(r"^(time_in|guidance_in)\.(in|out)_layer\.", lambda m: f"{m[1]}.mlp.{0 if m[2] == 'in' else 2}.", name)
    name = re.sub(r"mlp\.([02])\.(?=weight|bias)", lambda m: f"mlp.fc{1 + int(m[1]) // 2}.", name) if "blocks." in name else name
    name = re.sub(r"_attn\.norm\.(query|key)_norm\.", lambda m: f"_attn_{m[1][0]}_norm.", name)
    name = re.sub(r"\.norm\.(query|key)_norm\.", lambda m: f".{m[1][0]}_norm.", name)
    for new, old in (("_attn.qkv.", "_attn_qkv."), ("_attn.proj.", "_attn_proj."), ("_mod.lin.", "_mod.linear.")):
        name = name.replace(new, old)
    return name.replace(".modulation.lin.", ".modulation.linear.")
