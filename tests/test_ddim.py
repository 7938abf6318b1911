"""Levels of a discrete diffusion are those DDIM visits, whatever sampler a checkpoint brings; else there is a sentence."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from families.sd import OWN, scheduler, sd, sdxl

from flowrl.models import ddim, load_policy
from flowrl.recipe import PolicySpec
from flowrl.samplers import schedules

SPEC = PolicySpec(dtype="float32")


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_sampler_is_replaced_by_the_same_levels(kind: str) -> None:
    # the json of the checkpoints; Euler and DPM-Solver write out spacing "linspace" where they know no better
    given = getattr(diffusers, kind).from_config({**OWN, "clip_sample": True, "timestep_spacing": "linspace"})
    found = ddim.ddim(given)
    assert type(found) is diffusers.DDIMScheduler
    assert (found.config.clip_sample, found.config.thresholding, found.config.timestep_spacing) == (False, False, "leading")
    # an independent table: sqrt(beta) linear, times 801, 601 ... 1, then time 0
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bars = (1 - betas).cumprod(0)[[801, 601, 401, 201, 1, 0]]
    assert torch.allclose(ddim.visited(found, 5), (1 - bars).sqrt(), atol=1e-6, rtol=0)
    assert torch.allclose(ddim.visited(found, 5), schedules.vp(5, (1 - betas).cumprod(0), end="first"), atol=1e-6, rtol=0)


def test_levels_are_the_ones_the_network_is_asked_at() -> None:
    found = ddim.ddim(scheduler(diffusers.DDIMScheduler))
    sigmas = ddim.visited(found, 50)
    assert ddim.path(found).time(sigmas[:-1].float()).tolist() == list(range(981, 0, -20))
    assert 0.99 < sigmas[0] < 1
    clean = ddim.visited(ddim.ddim(scheduler(diffusers.DDIMScheduler, set_alpha_to_one=True)), 50)
    assert clean[-1] == 0 < sigmas[-1]
    assert torch.equal(clean[:-1], sigmas[:-1])


def test_a_rescaled_diffusion_starts_at_noise() -> None:
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    found = ddim.ddim(scheduler(diffusers.DDIMScheduler, **zero))
    assert ddim.visited(found, 10)[0] == 1
    assert ddim.path(found).time(ddim.visited(found, 10)[:-1].float()).tolist() == list(range(999, 0, -100))


@pytest.mark.parametrize(
    ("more", "steps", "said"),
    [
        ({}, 0, "a schedule of 0 steps on a diffusion of 1000 times; give 1 to 1000"),
        ({}, 1001, "a schedule of 1001 steps on a diffusion of 1000 times"),
        ({"timestep_spacing": "trailing"}, 30, "divides 1000, such as 25"),
        ({"steps_offset": 0}, 10, "set steps_offset to 1"),
        ({}, 1000, "1000 steps with spacing 'leading': DDIM .* such as 500"),
    ],
)
def test_what_ddim_cannot_visit_is_a_sentence(more: dict[str, Any], steps: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ddim.visited(ddim.ddim(scheduler(diffusers.DDIMScheduler, **more)), steps)


def test_another_kind_of_scheduler_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler holds no levels of a diffusion"):
        ddim.ddim(diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="prediction 'flow_prediction' is unknown"):
        ddim.path(ddim.ddim(scheduler(diffusers.DPMSolverMultistepScheduler, prediction_type="flow_prediction")))


def test_the_pipeline_draws_with_the_replaced_sampler() -> None:
    policy = load_policy(sd(diffusers.PNDMScheduler, skip_prk_steps=True), spec=SPEC)
    assert type(policy.pipe.scheduler) is diffusers.DDIMScheduler


def test_an_autoencoder_that_overflows_is_upcast() -> None:
    for forced, dtype in ((True, torch.float32), (False, torch.float16)):
        pipe = sdxl()
        pipe.vae.to(torch.float16)
        pipe.vae.register_to_config(force_upcast=forced)
        assert load_policy(pipe, spec=SPEC).pipe.vae.dtype == dtype


def test_the_empty_text_is_zeros_as_sdxl_has_it() -> None:
    pipe = sdxl()
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    kept = load_policy(pipe, spec=SPEC).encode([""]).rows[0]
    zeros = load_policy(sdxl(), spec=SPEC).encode([""]).rows[0]
    assert not zeros["encoder_hidden_states"].any()
    assert not zeros["text_embeds"].any()
    assert kept["encoder_hidden_states"].any()
    assert kept["text_embeds"].any()
    assert zeros["time_ids"].tolist() == kept["time_ids"].tolist() == [32, 32, 0, 0, 32, 32]


def test_settings_that_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="max_sequence_length 8: Stable Diffusion always reads 16 tokens"):
        load_policy(sd(), spec=PolicySpec(max_sequence_length=8))
    with pytest.raises(ValueError, match="frames 5: SDXL draws images"):
        load_policy(sdxl(), spec=PolicySpec(frames=5))
    with pytest.raises(ValueError, match="width 30: give a multiple of 4"):
        load_policy(sd(), spec=PolicySpec(width=30))
    pipe = sd()
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="distilled to be told its guidance"):
        load_policy(pipe, spec=SPEC)
