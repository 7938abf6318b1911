"""Pipelines without a family: learned, verified, or refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from families import unnamed, unnamed_more
from families.case import Case
from families.cogview4 import cogview4
from test_conformance import subject
from tiny import sd3_pipeline

import flowrl
from flowrl import models
from flowrl.conformance import CHECKS, verify
from flowrl.models.generic import Generic, Unknown
from flowrl.models.generic.infer import combined
from flowrl.models.generic.listen import Call, Step
from flowrl.models.guidance import linear, zero_based
from flowrl.models.policy import DiffusersPolicy
from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

SPEC = PolicySpec(dtype="float32", guidance=4.5, max_sequence_length=8, steps=3)
Guide = Callable[[torch.Tensor, torch.Tensor, float, int], torch.Tensor]


class OddPipeline(StableDiffusion3Pipeline):
    """A loop of its own, with conventions to be set."""

    guide: Guide = staticmethod(lambda negative, positive, scale, step: negative + scale * (positive - negative))
    shift: Callable[[str], float] = staticmethod(lambda prompt: 3.0)
    feed: Callable[[torch.Tensor, int], torch.Tensor] = staticmethod(lambda x, step: x)
    clock: Callable[[torch.Tensor], torch.Tensor] = staticmethod(lambda sigma: 1000 * sigma)
    answer: Callable[[torch.Tensor], torch.Tensor] = staticmethod(lambda u: u)
    begin: Callable[[torch.Tensor], torch.Tensor] = staticmethod(lambda latents: latents)
    tell: Callable[[float, torch.Tensor], torch.Tensor] = staticmethod(lambda scale, embeds: embeds)
    combines: bool = True

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: Any = None,
        negative_prompt: Any = None,
        num_inference_steps: int = 3,
        guidance_scale: float = 4.5,
        generator: Any = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pt",
        callback_on_step_end: Any = None,
        max_sequence_length: int = 8,
    ) -> Any:
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        away = [negative_prompt or ""] * len(texts) if isinstance(negative_prompt, str | None) else negative_prompt
        guided = guidance_scale > 1 and self.combines
        embeds, negative, pooled, negative_pooled = self.encode_prompt(
            texts, texts, texts, negative_prompt=away, do_classifier_free_guidance=guided, max_sequence_length=max_sequence_length
        )
        x = torch.randn(len(texts), 4, 8, 8, generator=generator) if latents is None else self.begin(latents)
        x = x.to(self.transformer.dtype)
        self.scheduler.set_shift(self.shift(texts[0]))
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            time = self.clock(t / 1000).expand(len(x))

            def ask(embeds: Any, pooled: Any, i: int = i, time: torch.Tensor = time, x: torch.Tensor = x) -> torch.Tensor:
                given = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
                return self.transformer(hidden_states=self.feed(x, i), timestep=time, **given, return_dict=False)[0]

            u = ask(self.tell(guidance_scale, embeds), pooled)
            if guided:
                u = self.guide(ask(negative, negative_pooled), u, guidance_scale, i)
            x = self.scheduler.step(self.answer(u), t, x, return_dict=False)[0]
            if callback_on_step_end is not None:
                callback_on_step_end(self, i, t, {"latents": x})
        z = x / self.vae.config.scaling_factor + self.vae.config.shift_factor
        images = self.image_processor.postprocess(self.vae.decode(z, return_dict=False)[0], output_type=output_type)
        return type("Answer", (), {"images": images})()


class MutePipeline(OddPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def half(pipe: Any) -> Any:
    """As flowrl loads it by default."""
    pipe.to(torch.bfloat16)
    pipe.vae.to(torch.float32)
    return pipe


def odd(**conventions: Any) -> OddPipeline:
    made = sd3_pipeline()
    pipe = OddPipeline(**{name: copy.copy(part) for name, part in made.components.items()})
    for name, value in conventions.items():
        setattr(pipe, name, value)
    return pipe


def test_a_loop_nobody_has_seen_is_learned_and_verified() -> None:
    policy = flowrl.load_policy(odd(), spec=SPEC)
    how = policy.family.convention  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(policy.family, Generic)
    assert (how.state, how.joined, how.combine, how.sign) == ("hidden_states", False, "linear", 1)
    assert how.times["timestep"].factor == 1000


def test_other_signs_and_times_are_learned_too() -> None:
    pipe = odd(clock=lambda sigma: 1 - sigma, answer=lambda u: -u, guide=lambda n, p, scale, i: p + scale * (p - n))
    how = flowrl.load_policy(pipe, spec=SPEC).family.convention  # pyright: ignore[reportAttributeAccessIssue]
    assert (how.sign, how.combine, how.times["timestep"].factor, how.times["timestep"].offset) == (-1, "zero-based", -1, 1)


REFUSED = {
    "guidance that changes with the step": (
        {"guide": lambda n, p, scale, i: n + (scale - i) * (p - n)},
        r"could not be learned: how two predictions are combined at guidance 3\.7 is none of",
    ),
    "a state that is scaled": ({"feed": lambda x, i: 0.9 * x}, "no argument of the network is the state"),
    "a curved time": ({"clock": lambda sigma: 1000 * sigma**2}, "the argument 'timestep' is no line in the level"),
    "no time at all": ({"clock": lambda sigma: 0 * sigma + 5}, "no argument of the network changes with the level"),
    "an answer that is bent": ({"answer": lambda u: u.tanh()}, "is not the network's answer"),
    "latents that are not taken as they are": (
        {"begin": lambda latents: 2 * latents},
        "given latents, it does not begin with them",
    ),
    "guidance that reaches the network in a text": (
        {"tell": lambda scale, embeds: (1 + scale) * embeds, "combines": False},
        "the argument 'encoder_hidden_states' changes with the guidance, and is not one number a row",
    ),
    "a schedule that follows the prompt": (
        {"shift": lambda prompt: 3.0 + len(prompt) / 10},
        r"cannot be trusted: the check '(schedule|pipeline)' failed",
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_with_the_reason(case: str, dtype: str) -> None:
    conventions, said = REFUSED[case]
    pipe = odd(**conventions) if dtype == "float32" else half(odd(**conventions))
    with pytest.raises(ValueError, match=f"OddPipeline has no family of its own.*{said}"):
        flowrl.load_policy(pipe, spec=replace(SPEC, dtype=dtype))


def test_a_call_that_names_no_arguments_is_said_to_name_none() -> None:
    pipe = MutePipeline(**{name: copy.copy(part) for name, part in sd3_pipeline().components.items()})
    with pytest.raises(ValueError, match="could not be learned: the call of MutePipeline names no arguments"):
        flowrl.load_policy(pipe, spec=SPEC)


FOLDERS = {case.name: case for case in (*unnamed.CASES, *unnamed_more.CASES)}
LEARNED = {
    "lumina2": ("linear, rescaled per token", -1, {"timestep": (-1, 1, 1)}),
    "chroma": ("linear", 1, {"timestep": (1, 0, 1000)}),
    "ltx": ("linear", 1, {"timestep": (1000, 0, 1)}),
    "sana": ("linear", 1, {"timestep": (1000, 0, 1)}),
    "flux2-dev": (None, 1, {"timestep": (1, 0, 1000)}),
    "mochi": ("linear", 1, {"timestep": (-1000, 1000, 1)}),
    "cogvideox": ("linear", 1, {"timestep": (1, 0, 1)}),
}


def loaded(name: str, folder: Path, **changes: Any) -> DiffusersPolicy:
    """A saved case in bfloat16."""
    FOLDERS[name].make().save_pretrained(folder)
    return flowrl.load_policy(folder, spec=PolicySpec(steps=3, **{**FOLDERS[name].spec, **changes}))


@pytest.mark.parametrize("name", LEARNED)
def test_the_same_is_learned_in_half_precision(name: str, tmp_path: Path) -> None:
    policy = loaded(name, tmp_path)
    how = policy.family.convention  # pyright: ignore[reportAttributeAccessIssue]
    times = {path: (line.factor, line.offset, line.divisor) for path, line in how.times.items()}
    assert (policy.dtype, policy.pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert (how.combine, how.sign, times) == LEARNED[name]
    assert {path: line.factor for path, line in how.told.items()} == ({"guidance": 1} if name == "flux2-dev" else {})


def test_a_wrong_convention_is_found_in_half_precision(tmp_path: Path) -> None:
    policy = loaded("cogvideox", tmp_path)
    policy.family.guider = replace(policy.family.guider, combine=zero_based)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="the check 'pipeline' failed"):
        verify(policy)


def test_states_are_decoded_as_they_are_beside_a_network_in_half_precision() -> None:
    policy = flowrl.load_policy(half(odd()), spec=replace(SPEC, dtype="bfloat16"))
    x = torch.randn(1, *policy.latent_shape(), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(policy.images(x), policy.images(x.bfloat16().float()))
    assert "decode" not in vars(policy.pipe.vae)


def steps(positive: torch.Tensor, negative: torch.Tensor) -> list[Step]:
    given = linear(positive, negative, 3.7, positive, positive)
    return [Step([Call({}, negative), Call({}, positive)], given, 0, positive)]


def test_guidance_is_told_by_the_nearest_combination_or_not_at_all() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 4, 8, 8, generator=draw).bfloat16() for _ in range(2))
    assert combined(steps(a, b), 3.7, 1) == ("linear", 1, None, True)
    assert combined(steps(a, a + b / 50), 3.7, 1) == ("linear", 1, None, True)
    with pytest.raises(Unknown, match="in bfloat16 two predictions are too near each other to tell"):
        combined(steps(a, a), 3.7, 1)


def test_a_model_that_would_draw_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames 6: LTXPipeline draws 5; give 5 or 9"):
        loaded("ltx", tmp_path, frames=6)
    with pytest.raises(ValueError, match="height 64: OddPipeline draws 32; give 32"):
        flowrl.load_policy(odd(), spec=replace(SPEC, height=64))
    with pytest.raises(ValueError, match="frames 5: OddPipeline draws images"):
        flowrl.load_policy(odd(), spec=replace(SPEC, frames=5))


def test_a_network_that_answers_otherwise_under_checkpointing_is_refused() -> None:
    case = next(case for case in unnamed.CASES if case.name == "chroma")
    spec = PolicySpec(dtype="float32", steps=3, checkpointing=True, **case.spec)
    with pytest.raises(ValueError, match="ChromaPipeline has no family.*the check 'ratio' failed"):
        flowrl.load_policy(case.make(), spec=spec)


def test_a_diffusion_without_a_family_is_trained_as_a_whole(tmp_path: Path) -> None:
    made = subject(unnamed.WHOLE, tmp_path)
    made.build = models.load_policy
    for check in ("schedule", "pipeline", "quiet", "encode", "decode", "lanes", "memory"):
        assert not [f for f in CHECKS[check](made) if not f.passed], check
    assert made.plain.path is not paths.flow
    with pytest.raises(ValueError, match="diffusers puts no adapters into a PixArtTransformer2DModel"):
        _ = made.adapted


@pytest.mark.parametrize("case", unnamed_more.HERE, ids=lambda case: case.name)
def test_models_that_no_folder_keeps_small_are_verified_here(case: Case) -> None:
    spec = PolicySpec(dtype="float32", steps=3, **case.spec)  # pyright: ignore[reportArgumentType]
    how = flowrl.load_policy(case.make(), spec=spec).family.convention  # pyright: ignore[reportAttributeAccessIssue]
    seen = (how.combine, how.joined, how.first, how.sign, how.rows.get("encoder_hidden_states_llama3"))
    assert seen == (("linear", False, False, 1, None) if case.name == "hunyuan-video-1.5" else ("linear", True, True, -1, 1))


def test_guidance_that_is_told_is_not_combined() -> None:
    case = unnamed_more.CASES[0]
    family = Generic(case.make(), PolicySpec(dtype="float32", **case.spec))  # pyright: ignore[reportArgumentType]
    assert (family.embeds, family.guidance, family.convention.combine, family.grid) == (True, 4.0, None, (4, 6))
    assert family.convention.told["guidance"].factor == 1


def test_a_time_of_another_level_than_the_schedules_needs_a_family() -> None:
    with pytest.raises(Unknown, match="the argument 'timestep' is no line in the level"):
        Generic(cogview4(), SPEC)


def test_families_without_a_file_are_eight_or_more() -> None:
    from flowrl.models import FAMILIES

    kinds = {type(case.make()).__name__ for case in (*unnamed.CASES, *unnamed_more.CASES, *unnamed_more.HERE)}
    assert len(kinds - set(FAMILIES)) >= 8
