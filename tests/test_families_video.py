"""What the conformance table does not show of video families: two pictures, the boundary, checkpoints' schedulers, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from families import hunyuan, wan
from PIL import Image

from flowrl.conformance.checks import final
from flowrl.conformance.subject import STEPS
from flowrl.models import DiffusersPolicy, load_policy
from flowrl.recipe import LoraSpec, PolicySpec

PROMPT = "a red circle"


def policy(pipe: Any, **spec: Any) -> DiffusersPolicy:
    return load_policy(pipe, spec=PolicySpec(dtype="float32", lora=LoraSpec(rank=2), **{**wan.SPEC, **spec}))


def pictures(folder: Path, count: int) -> list[Path]:
    draw = np.random.default_rng(0)
    files = [folder / f"{i}.png" for i in range(count)]
    for file in files:
        Image.fromarray(draw.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(file)
    return files


@pytest.mark.parametrize("kind", ["last", "2.2"])
def test_a_last_frame_is_the_pipelines(kind: str, tmp_path: Path) -> None:
    files, plain = pictures(tmp_path, 2), wan.image_pipeline(kind)
    for part in plain.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    p = policy(wan.image_pipeline(kind))
    cond, start = p.encode([PROMPT], images=[files]), torch.randn(1, *p.latent_shape())
    with torch.no_grad():
        x0 = final(p, start, cond)
    first, last = (Image.open(file) for file in files)
    call = p.family.call_pipeline(p.guidance)
    made = plain(first, PROMPT, last_image=last, latents=start, num_inference_steps=STEPS, output_type="latent", **call)
    assert float((x0 - made.frames).abs().max()) <= 1e-5 * float(x0.abs().max())


def test_a_level_on_the_boundary_is_the_first_experts() -> None:
    # as float32 0.9 lies below 0.9; the pipeline compares 900.0 with 900.0
    family = policy(wan.pipeline(2, 0.9)).family
    assert [family.expert(float(np.float32(level))) for level in (0.9, 0.8999)] == [0, 1]


def test_a_multistep_scheduler_becomes_euler_of_the_same_shift() -> None:
    pipe = wan.pipeline()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    assert torch.equal(policy(pipe).sigmas(5), policy(wan.pipeline()).sigmas(5))


def test_without_guidance_the_second_expert_has_none_either() -> None:
    p = policy(wan.pipeline(2, 0.8), guidance_2=2.5)
    assert p.encode([PROMPT], 1.0).negatives is None
    assert p.encode([PROMPT], 4.0).negatives is not None


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "one expert": (
        wan.pipeline,
        {"guidance_2": 2.5},
        "WanPipeline does not read it, the model has one expert",
    ),
    "lost expert": (lambda: wan.pipeline(1, 0.5), {}, "lacks its transformer_2"),
    "frames": (wan.pipeline, {"frames": 6}, "give 5 or 9"),
    "height": (wan.pipeline, {"height": 40}, "such as 32 or 48"),
    "tokens": (wan.pipeline, {"max_sequence_length": 513}, "at most 512"),
    "nothing but the first frame": (lambda: wan.image_pipeline("5b"), {"frames": 1}, "give at least 5"),
    "hunyuan, nothing but the first frame": (lambda: hunyuan.image_pipeline("latent_concat"), {"frames": 1}, "give at least 5"),
    "hunyuan, frames": (hunyuan.pipeline, {"frames": 4}, "give 1 or 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_settings_are_refused(case: str) -> None:
    make, spec, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        policy(make(), **spec)


@pytest.mark.parametrize("make", [lambda: wan.image_pipeline("last"), hunyuan.skyreels])
def test_a_prompt_without_its_picture_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="comes with 0 images, and .* needs [12]"):
        policy(make()).encode([PROMPT])
