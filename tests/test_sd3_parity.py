"""The SD3 adapter draws what diffusers' own pipeline draws. The left side is that pipeline, in a process that never sees flowrl."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import PROMPTS, run_plain, save_sd3

from flowrl.models import Cond, DiffusersPolicy, embedded, load_policy
from flowrl.recipe import LoraSpec, PolicySpec
from flowrl.samplers import chains, laws, rollout

STEPS, TOKENS = 5, 8
TOLERANCE = 1e-5  # float32 rounding of a 5-step loop and a decoder, on images in [0, 1]
CASES = {
    "plain": ("static", 1.0, ""),
    "guided": ("static", 4.5, ""),
    "negative": ("static", 4.5, "a red square"),
    "dynamic": ("dynamic", 4.5, ""),
}


def _embedded() -> Path | None:
    try:
        return embedded("shapes") if (embedded("shapes") / "model_index.json").is_file() else None
    except ValueError:
        return None


if _embedded():
    CASES["shapes"] = ("shapes", 3.0, "")  # the trained model that ships with the package


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, first latents, and what the plain pipeline made of each case."""
    folder = tmp_path_factory.mktemp("parity")
    save_sd3(folder / "static")
    save_sd3(folder / "dynamic", seed=1, dynamic=True)
    if "shapes" in CASES:
        (folder / "shapes").symlink_to(embedded("shapes"))
    for name in CASES:
        shape = policy(folder, name).latent_shape()
        np.save(folder / f"{name}.start.npy", torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).numpy())
    run_plain(
        [
            {
                "model": str(folder / model),
                "out": str(folder / name),
                "latents": str(folder / f"{name}.start.npy"),
                "call": {
                    "prompt": list(PROMPTS),
                    "guidance_scale": guidance,
                    "negative_prompt": negative,
                    "num_inference_steps": STEPS,
                    "max_sequence_length": TOKENS,
                },
            }
            for name, (model, guidance, negative) in CASES.items()
        ],
        folder,
    )
    return folder


def policy(world: Path, case: str, tokens: int = TOKENS) -> DiffusersPolicy:
    model, guidance, negative = CASES[case]
    return load_policy(
        PolicySpec(
            model=str(world / model),
            dtype="float32",
            guidance=guidance,
            negative=negative,
            max_sequence_length=tokens,
            lora=LoraSpec(rank=4),
        )
    )


def final(p: DiffusersPolicy, start: torch.Tensor, cond: Cond) -> torch.Tensor:
    """Last latents of the deterministic Euler chain."""
    plan = chains(p.sigmas(STEPS), laws.ode(), (), 1)
    made = rollout(
        plan,
        lambda x, sigma, slot: p.predict(x, sigma, cond.take(slot)),
        len(start),
        p.latent_shape(),
        lambda slot, node: start[slot],
        path=p.path,
    )
    return made.states(plan.leaves)[:, 0]


def distance(p: DiffusersPolicy, world: Path, case: str) -> float:
    """Largest difference of an image value between ours and the pipeline's."""
    x0 = final(p, torch.from_numpy(np.load(world / f"{case}.start.npy")), p.encode(PROMPTS))
    with torch.no_grad():
        return float(np.abs(p.images(x0).numpy() - np.load(world / f"{case}.np.npy")).max())


@pytest.mark.parametrize("case", CASES)
def test_images_equal_the_pipelines(world: Path, case: str) -> None:
    assert distance(policy(world, case), world, case) <= TOLERANCE


@pytest.mark.parametrize("case", ["guided", "dynamic"])
def test_sigmas_equal_the_pipelines(world: Path, case: str) -> None:
    sigmas = policy(world, case).sigmas(STEPS)
    assert sigmas.dtype == torch.float64
    assert torch.equal(sigmas, torch.from_numpy(np.load(world / f"{case}.sigmas.npy")).double())


def test_the_smallest_level_is_shifted_twice(world: Path) -> None:
    # written out: 0.001 -> 0.0029940 -> 0.0089286
    assert policy(world, "guided").sigmas(10)[-2].item() == pytest.approx(0.00892857, abs=1e-7)


def test_decode_equals_the_pipelines_bytes(world: Path) -> None:
    latents, images = np.load(world / "guided.latent.npy"), np.load(world / "guided.np.npy")
    pixels = policy(world, "guided").decode(torch.from_numpy(latents))
    assert np.array_equal(pixels.numpy(), (images * 255).round().astype(np.uint8))


class SwappedCond(Cond):
    def doubled(self) -> dict[str, torch.Tensor]:
        return {name: torch.cat(part.chunk(2)[::-1]) for name, part in super().doubled().items()}


def wrong_sign(p: DiffusersPolicy) -> None:
    right = p.predict
    p.predict = lambda x, sigma, cond: -right(x, sigma, cond)


def wrong_shift(p: DiffusersPolicy) -> None:
    p.pipe.scheduler.set_shift(2.5)


def single_shift(p: DiffusersPolicy) -> None:
    right = p.sigmas

    def shifted_once(steps: int) -> torch.Tensor:
        sigmas = right(steps)
        sigmas[:-1] = 3 * torch.linspace(1, 0.001, steps) / (1 + 2 * torch.linspace(1, 0.001, steps))
        return sigmas

    p.sigmas = shifted_once


def swapped_halves(p: DiffusersPolicy) -> None:
    right = p.encode
    p.encode = lambda prompts: SwappedCond(**vars(right(prompts)))


def dropped_vae_shift(p: DiffusersPolicy) -> None:
    p.pipe.vae.register_to_config(shift_factor=0.0)


def dropped_vae_scale(p: DiffusersPolicy) -> None:
    p.pipe.vae.register_to_config(scaling_factor=1.0)


def time_in_unit_interval(p: DiffusersPolicy) -> None:
    right = p.predict
    p.predict = lambda x, sigma, cond: right(x, sigma / 1000, cond)


def zero_based_guidance(p: DiffusersPolicy) -> None:
    right = p.encode
    p.encode = lambda prompts: right(prompts, guidance=5.5)


def another_negative(p: DiffusersPolicy) -> None:
    right = p.encode

    def encode(prompts: list[str]) -> Cond:
        cond, other = right(prompts), right(["a blue square"]).rows[0]["pooled_projections"]
        return replace(cond, negatives=tuple({**n, "pooled_projections": other} for n in cond.negatives or ()))

    p.encode = encode


FAULTS: list[Callable[[DiffusersPolicy], None]] = [
    wrong_sign,
    wrong_shift,
    single_shift,
    swapped_halves,
    dropped_vae_shift,
    dropped_vae_scale,
    time_in_unit_interval,
    zero_based_guidance,
    another_negative,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(world: Path, fault: Callable[[DiffusersPolicy], None]) -> None:
    p = policy(world, "guided")
    fault(p)
    assert distance(p, world, "guided") > 1e-3


def test_another_number_of_text_tokens_is_seen(world: Path) -> None:
    # without T5 its place is filled with max_sequence_length zero vectors, which attention sees
    assert distance(policy(world, "guided", tokens=2 * TOKENS), world, "guided") > 1e-3
