"""Qwen-Image and Z-Image beside what the conformance table holds: time in half precision, and sentences for wrong settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families.qwen_image import edit, edit_plus, qwen_image
from families.z_image import z_image
from torch import Tensor, nn

from flowrl.models import load_policy
from flowrl.recipe import LoraSpec, PolicySpec


def told(network: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """The times a network is given while `run` runs."""
    times: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda module, args, given: times.append(given["timestep"]), with_kwargs=True)
    run()
    handle.remove()
    return times


def test_half_precision_rounds_the_time_where_the_pipeline_rounds_it() -> None:
    pipe = qwen_image()
    pipe.to(torch.bfloat16)
    size = {"height": 128, "width": 128}
    pipeline = told(pipe.transformer, lambda: pipe("a red circle", num_inference_steps=5, output_type="latent", **size))
    policy = load_policy(pipe, spec=PolicySpec(dtype="bfloat16", lora=LoraSpec(rank=0), **size))
    cond, x = policy.encode(["a red circle"]), torch.zeros(1, *policy.latent_shape())
    with torch.no_grad():
        ours = [t for s in policy.sigmas(5)[:-1] for t in told(pipe.transformer, lambda s=s: policy.velocity(x, s[None], cond))]
    assert [t.item() for t in ours] == [t.item() for t in pipeline]
    assert all(t.dtype == torch.bfloat16 for t in (*ours, *pipeline))


@pytest.mark.parametrize(
    ("make", "spec", "said"),
    [
        (qwen_image, {"height": 200}, "height 200: give a multiple of 128"),
        (qwen_image, {"max_sequence_length": 2000}, "takes at most 1024"),
        (qwen_image, {"frames": 5}, "QwenImagePipeline draws images"),
        (edit, {"max_sequence_length": 64}, "QwenImageEditPipeline reads every text to its end"),
        (z_image, {"width": 44}, "width 44: give a multiple of 8"),
        (z_image, {"max_sequence_length": 513}, "takes at most 512"),
    ],
)
def test_wrong_settings_are_a_sentence(make: Callable[[], Any], spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_policy(make(), spec=PolicySpec(dtype="float32", **{"height": 256, "width": 256, **spec}))


def test_an_editor_wants_a_picture() -> None:
    policy = load_policy(edit_plus(), spec=PolicySpec(dtype="float32", height=256, width=256))
    with pytest.raises(ValueError, match="comes with 0 images, and QwenImageEditPlusPipeline needs 1"):
        policy.encode(["make it red"])


def test_zero_based_guidance_begins_at_0() -> None:
    policy = load_policy(z_image(), spec=PolicySpec(dtype="float32", height=32, width=32, guidance=0.5))
    assert policy.encode(["a red circle"]).negatives is not None
    assert policy.encode(["a red circle"], 0.0).negatives is None
