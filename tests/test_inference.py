"""Guidance between base and tuned weights, best of n, SVDD and search by rankings."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny import excite, sd3_pipeline
from torch import Tensor

from flowrl import inference
from flowrl.inference import RankSearch, best, best_of, chances, direction, guided, judge, kl_bound, ranked, rlg, success, svdd
from flowrl.rewards import make
from flowrl.samplers import laws, paths, schedules
from flowrl.samplers.noise import Source

VALUES = hnp.arrays(np.float64, (3, 5), elements=st.sampled_from([-2.0, 0.0, 1.0, 3.0, math.nan]))


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# rlg


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rlg_at_0_is_the_base_and_at_1_the_tuned_model_bitwise(dtype: torch.dtype) -> None:
    base, tuned = drawn(1000, dtype=torch.float64).to(dtype), 1e3 * drawn(1000, seed=1, dtype=torch.float64).to(dtype)
    assert rlg(base, tuned, 0).equal(base) and rlg(base, tuned, 1).equal(tuned)
    assert rlg(base, tuned, 1.5).dtype == dtype


def test_rlg_mixes_half_precision_in_float32() -> None:
    base, tuned = drawn(1000).bfloat16(), drawn(1000, seed=1).bfloat16()
    exact = base.double() + 1.7 * (tuned.double() - base.double())
    # one rounding to 8 bits, at most half a unit in the last place
    torch.testing.assert_close(rlg(base, tuned, 1.7).double(), exact, rtol=2**-8 + 1e-6, atol=1e-6)


@given(st.floats(-3, 3), st.floats(0.5, 8))
def test_rlg_of_guided_outputs_is_guidance_of_mixed_ones(w: float, scale: float) -> None:
    base, tuned = drawn(2, 50, dtype=torch.float64), drawn(2, 50, seed=1, dtype=torch.float64)

    def guide(u: Tensor) -> Tensor:
        return u[0] + scale * (u[1] - u[0])

    torch.testing.assert_close(rlg(guide(base), guide(tuned), w), guide(rlg(base, tuned, w)), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("w", [-0.5, 0.0, 0.3, 1.0, 1.6, 2.5])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0])
def test_the_mixed_velocity_of_two_gaussians_has_the_mixed_score_at_every_level(w: float, sigma: float) -> None:
    """Exact velocities in; the score read off the result is that of N_base^(1 - w) N_tuned^w, itself a Gaussian."""
    x = drawn(20, dtype=torch.float64)
    base, tuned = ((1 - sigma) * m for m in (0.4, 1.3)), ((1 - sigma) ** 2 * v + sigma**2 for v in (0.5, 0.9))
    means, variances = list(base), list(tuned)
    velocities = [
        # x0_hat and x1_hat of jointly Gaussian (x0, x1, x)
        (sigma / var * (x - mean)) - (m + (1 - sigma) * v / var * (x - mean))
        for m, v, mean, var in zip((0.4, 1.3), (0.5, 0.9), means, variances, strict=True)
    ]
    u = rlg(velocities[0], velocities[1], w)
    precision = (1 - w) / variances[0] + w / variances[1]
    mean = ((1 - w) * means[0] / variances[0] + w * means[1] / variances[1]) / precision
    score = -(x + (1 - sigma) * u) / sigma
    torch.testing.assert_close(score, precision * (mean - x), rtol=1e-10, atol=1e-10)


# in a pipeline


def adapted(pipe: Any, targets: Sequence[str] = ("attn.to_q", "attn.to_v", "attn.to_out.0"), name: str = "transformer") -> Any:
    """A pipeline with a random adapter that does something."""
    from peft import LoraConfig

    network = getattr(pipe, name)
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=list(targets)))
    excite([(key, p) for key, p in network.named_parameters() if "lora" in key])
    return pipe


def latents(pipe: Any, steps: int = 3, **options: Any) -> Tensor:
    start = drawn(1, *options.pop("shape", (4, 8, 8)), seed=3)
    call = {"num_inference_steps": steps, "guidance_scale": 4.5, "max_sequence_length": 16, "output_type": "latent", **options}
    return pipe("a red circle", latents=start, **call).images


@pytest.fixture(scope="module")
def pipe() -> Any:
    return adapted(sd3_pipeline())


@pytest.fixture(scope="module")
def base(pipe: Any) -> Callable[..., Tensor]:
    """The pipeline without an adapter."""
    plain = sd3_pipeline()
    return lambda steps=3: latents(plain, steps)


def mixed(pipe: Any, w: float, skip: int = 0, steps: int = 3) -> Tensor:
    with guided(pipe, w, skip):
        return latents(pipe, steps)


def test_guided_at_0_is_the_base_and_at_1_the_adapter_bitwise(pipe: Any, base: Callable[..., Tensor]) -> None:
    assert mixed(pipe, 0).equal(base())
    assert mixed(pipe, 1).equal(latents(pipe))
    assert (base() - latents(pipe)).abs().max() > 0.1


def test_guided_is_rlg_of_two_pipelines_with_their_own_guidance(pipe: Any, base: Callable[..., Tensor]) -> None:
    """One step is linear in the guided prediction, so its end is the mix of the two ends."""
    torch.testing.assert_close(mixed(pipe, 1.5, steps=1), 1.5 * latents(pipe, 1) - 0.5 * base(1), rtol=1e-5, atol=1e-4)


def test_skipped_steps_are_the_adapters_and_every_generation_counts_anew(pipe: Any) -> None:
    assert mixed(pipe, 1.5, skip=3).equal(latents(pipe))
    with guided(pipe, 1.5, skip=1):
        first, second = latents(pipe), latents(pipe)
        longer = latents(pipe, 4)
    assert first.equal(second)
    assert not first.equal(mixed(pipe, 1.5)) and not first.equal(mixed(pipe, 1.5, skip=2)) and not first.equal(latents(pipe))
    assert longer.equal(mixed(pipe, 1.5, skip=1, steps=4))


def test_the_pipeline_is_as_it_was_after_an_error(pipe: Any) -> None:
    before = latents(pipe)
    with pytest.raises(RuntimeError, match="halfway"), guided(pipe, 2.0):
        pipe("a red circle", num_inference_steps=2, callback_on_step_end=stumble)
    assert latents(pipe).equal(before)
    assert not pipe.transformer._forward_hooks

    calls = []

    def fail(module: Any, args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the base's call")

    handle = pipe.transformer.proj_out.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the base"), guided(pipe, 2.0):
        latents(pipe)
    handle.remove()
    assert latents(pipe).equal(before)


def stumble(*_: Any) -> dict[str, Any]:
    raise RuntimeError("halfway")


def test_tuples_and_outputs_are_mixed_alike(pipe: Any) -> None:
    call = {"hidden_states": drawn(1, 4, 8, 8), "timestep": torch.tensor([500.0]), "encoder_hidden_states": drawn(1, 5, 48),
            "pooled_projections": drawn(1, 32)}  # fmt: skip
    with torch.no_grad():
        alone = pipe.transformer(**call, return_dict=False)[0]
        with guided(pipe, 1.5):
            whole, pair = pipe.transformer(**call), pipe.transformer(**call, return_dict=False)
    assert type(whole).__name__ == "Transformer2DModelOutput" and whole["sample"] is whole.sample
    assert whole.sample.equal(pair[0]) and len(pair) == 1 and not pair[0].equal(alone)


def test_a_unet_is_guided_too() -> None:
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
        )  # fmt: skip
    place = adapted(SimpleNamespace(unet=unet), ("to_q", "to_v"), "unet")
    x, text = drawn(1, 4, 8, 8), drawn(1, 5, 8)

    @torch.no_grad()
    def run(time: int = 900) -> Tensor:
        return unet(x, time, text).sample

    tuned = run()
    with guided(place, 0.0):
        plain = run()
    with guided(place, 2.0, skip=1):
        skipped, after = run(950), run(900)
    assert skipped.equal(run(950))
    torch.testing.assert_close(after, 2 * tuned - plain)
    assert not tuned.equal(plain)


def test_the_embedded_model_under_guidance(tmp_path: Path) -> None:
    """Plain diffusers, a trained adapter's file, classifier-free guidance; and flowrl's own policy in the same hands."""
    from flowrl.export import save_lora
    from flowrl.models import load_policy
    from flowrl.recipe import LoraSpec, PolicySpec
    from flowrl.sample import load_pipeline

    spec = PolicySpec(dtype="float32", guidance=3.0, max_sequence_length=16, lora=LoraSpec(rank=2, alpha=4.0))
    policy = load_policy(spec)
    excite(policy.trainable(), 0.05)
    save_lora(policy, tmp_path / "lora")
    plain = load_pipeline(spec, "cpu")
    options = {"shape": policy.latent_shape(), "guidance_scale": 3.0}
    start = latents(plain, 2, **options)
    plain.load_lora_weights(str(tmp_path / "lora"))
    tuned = latents(plain, 2, **options)
    with guided(plain, 0.0):
        assert latents(plain, 2, **options).equal(start)
    with guided(plain, 1.0):
        assert latents(plain, 2, **options).equal(tuned)
    assert not start.equal(tuned)

    x, sigma, cond = drawn(1, *policy.latent_shape()), torch.tensor([0.7]), policy.encode(["a red circle"])
    with torch.no_grad():
        ours = policy.velocity(x, sigma, cond)
        with policy.reference():
            frozen = policy.velocity(x, sigma, cond)
        with guided(policy.pipe, 1.5):
            both = policy.velocity(x, sigma, cond)
    torch.testing.assert_close(both, rlg(frozen, ours, 1.5), rtol=1e-5, atol=1e-5)


def test_guided_refuses_what_it_cannot_guide(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(place: Any, w: float = 1.5, skip: int = 0) -> str:
        with pytest.raises(ValueError) as caught, guided(place, w, skip):
            pass
        return str(caught.value)

    assert refused(pipe, math.nan).startswith("rlg is nan; give a finite number")
    assert refused(pipe, math.inf).startswith("rlg is inf")
    assert "is -1; give at least 0" in refused(pipe, skip=-1)
    assert refused(SimpleNamespace()).startswith("SimpleNamespace has no transformer, transformer_2 or unet")
    assert "is missing; call pipe.load_lora_weights(folder)" in refused(sd3_pipeline())
    monkeypatch.setattr(type(pipe.transformer), "is_cache_enabled", True, raising=False)
    assert "caches features" in refused(pipe)
    monkeypatch.undo()
    other = adapted(sd3_pipeline())
    other.transformer.disable_adapters()
    assert "is switched off; call pipe.enable_lora()" in refused(other)
    other.transformer.enable_adapters()
    other.transformer.fuse_lora()
    assert "call pipe.unfuse_lora() first" in refused(other)


# best of n


@given(VALUES)
def test_a_missing_score_is_never_the_best(values: np.ndarray) -> None:
    for row, index in zip(values, best(torch.from_numpy(values)).tolist(), strict=True):
        known = [(value, -i) for i, value in enumerate(row) if value == value]
        assert index == (-max(known)[1] if known else -1)


def test_minus_infinity_still_beats_a_missing_score() -> None:
    assert best(torch.tensor([math.nan, -math.inf])).item() == 1


def test_best_of_more_includes_best_of_fewer() -> None:
    draws = drawn(16).tolist()
    found = [best_of(draws.__getitem__, torch.tensor, n) for n in range(1, 17)]
    assert [b.kept for b in found] == [max(draws[: n + 1]) for n in range(16)]
    assert found[0].index == 0 and found[-1].values.dtype == torch.float64


def test_best_of_nothing_scored_keeps_the_first_and_says_so() -> None:
    found = best_of(lambda i: f"image {i}", lambda samples: torch.full((len(samples),), math.nan), 3)
    assert found.kept == "image 0" and found.index is None


def test_best_of_refuses() -> None:
    for make_one in (lambda: best_of(int, torch.tensor, 0), lambda: kl_bound(0), lambda: success(0.5, 0)):
        with pytest.raises(ValueError, match="the best of 0 images; give at least 1"):
            make_one()
    with pytest.raises(ValueError, match=r"values of 3 samples have shape \[2\]; give one each, \[3\]"):
        best_of(int, lambda samples: torch.zeros(2), 3)


def test_the_bound_holds_and_is_reached_without_ties() -> None:
    """Best of n among k equally likely outcomes in a strict order: the KL is known, and grows to the bound with k."""
    for n in (1, 2, 8):
        gaps = []
        for k in (4, 64, 4096):
            top = torch.arange(k + 1, dtype=torch.float64) / k
            chance = (top**n).diff()
            gaps.append(kl_bound(n) - float((chance * (chance * k).log()).nan_to_num().sum()))
        assert all(gap > -1e-12 for gap in gaps) and abs(gaps[-1]) < 0.01 and gaps == sorted(gaps, reverse=True)


def test_judge_keeps_the_state_of_its_reward_and_marks_what_has_no_score() -> None:
    def red(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | None]:
        return [None if image.max() == 9 else float(image[..., 0].mean()) for image in images]

    score = judge(make(red))
    pixels = torch.zeros(1, 3, 2, 2, 3, dtype=torch.uint8)
    pixels[0, 1, ..., 0], pixels[0, 2] = 4, 9
    with pytest.warns(UserWarning, match="could not score 1 of 3"):
        first = score(pixels, ["a"], [{}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns once
        assert score(pixels, ["a"], [{}]).dtype == torch.float64
    assert first[0, :2].tolist() == [0, 4] and first[0, 2].isnan()


# SVDD

GRID = schedules.linear_shift(8)


def exact(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
    """The velocity of data N(0, 1)."""
    level = sigma[:, None]
    return x * (2 * level - 1) / ((1 - level) ** 2 + level**2)


def first(x0: Tensor, slot: Tensor) -> Tensor:
    return x0[:, 0]


def steered(candidates: int, alpha: float = 0.0, rows: int = 200, value: Any = first, **options: Any) -> Tensor:
    return svdd(exact, value, GRID, drawn(rows, 2), Source(0, 0), candidates=candidates, alpha=alpha, **options)


def test_svdd_raises_the_reward_with_every_candidate_more() -> None:
    means = [float(steered(m)[:, 0].mean()) for m in (1, 2, 4, 16)]
    assert abs(means[0]) < 0.2
    assert all(b > a + 0.2 for a, b in pairwise(means))
    assert abs(float(steered(16)[:, 1].mean())) < 0.25  # what the reward does not see stays


def test_svdd_with_one_candidate_is_plain_sampling() -> None:
    x = drawn(3, 2)
    law, source, grid = laws.flow_sde(0.7), Source(0, 0), GRID.double()
    for i in range(len(grid) - 1):
        c, s = law(grid[i], grid[i + 1], float(grid[1]))
        if i == len(grid) - 2:
            c, s = laws.ode()(grid[i], grid[i + 1], float(grid[1]))
        a, b, s = paths.flow.coefficients(grid[i], grid[i + 1], c, s)
        z = torch.stack([source.normal((2,), p, i, "svdd 0") for p in range(3)])
        x = float(a) * x + float(b) * exact(x, grid[i].float().expand(3), torch.arange(3)) + float(s) * z
    torch.testing.assert_close(steered(1, rows=3), x)


def test_a_small_temperature_is_the_best_and_a_large_one_indifferent() -> None:
    assert steered(4, 1e-9).equal(steered(4))
    means = [float(steered(4, alpha)[:, 0].mean()) for alpha in (1e6, 0.5, 0.1)]
    assert abs(means[0]) < 0.2 and means[0] < means[1] < means[2] < float(steered(4)[:, 0].mean()) + 0.1


def test_svdd_never_follows_a_missing_value() -> None:
    def spotty(x0: Tensor, slot: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x0)) % 4 == 0, x0[:, 0], math.nan)  # the first candidate only

    assert steered(4, value=spotty, rows=5).equal(steered(1, rows=5))
    assert steered(4, 0.5, value=spotty, rows=5).equal(steered(1, rows=5))
    assert steered(4, value=lambda x0, slot: x0[:, 0] * math.nan, rows=5).equal(steered(1, rows=5))


def test_a_prompts_sample_does_not_depend_on_those_after_it() -> None:
    torch.testing.assert_close(steered(4, 0.3, rows=2), steered(4, 0.3, rows=7)[:2])


def test_values_are_asked_of_the_clean_prediction_and_its_prompt() -> None:
    asked: list[tuple[Tensor, Tensor]] = []
    valued: list[tuple[Tensor, list[int]]] = []

    def predict(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        asked.append((x, sigma[:, None]))
        return exact(x, sigma, slot)

    def value(x0: Tensor, slot: Tensor) -> Tensor:
        valued.append((x0, slot.tolist()))
        return x0[:, 0]

    svdd(predict, value, GRID, drawn(2, 2), Source(0, 0), candidates=3)
    assert len(asked) == 8 and [slots for _, slots in valued] == [[0, 0, 0, 1, 1, 1]] * 7  # the last of 8 steps is quiet
    for (x, level), (x0, _) in zip(asked[1:], valued, strict=True):
        torch.testing.assert_close(x0, (1 - level) / ((1 - level) ** 2 + level**2) * x)  # E[x0 | x]


@given(VALUES, st.floats(0, 5))
def test_chances_sum_to_one_and_spare_missing_values(values: np.ndarray, alpha: float) -> None:
    found = chances(torch.from_numpy(values), alpha)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, dtype=torch.float64))
    some = ~np.isnan(values).all(-1)
    assert not found.numpy()[some][np.isnan(values[some])].any()


def test_svdd_refuses() -> None:
    with pytest.raises(ValueError, match="svdd with 0 candidates a step; give at least 1"):
        steered(0)
    for alpha in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="the temperature of the choice, is"):
            steered(2, alpha)
    with pytest.raises(ValueError, match="no step before the last is noisy, so all candidates are equal"):
        steered(2, law=laws.ode())
    with pytest.raises(ValueError, match=r"sigmas \[0.0, 1.0\] do not fall"):
        svdd(exact, first, torch.tensor([0.0, 1.0]), drawn(1, 2), Source(0, 0), candidates=2)


# rankings


def test_a_direction_does_not_see_where_the_codes_were_drawn_around() -> None:
    codes = drawn(6, 3, dtype=torch.float64)
    for ranking in ([4, 1, 0, 2, 5, 3], [2, 0], [5]):
        torch.testing.assert_close(direction(codes, codes[0], ranking), direction(codes, 7 + codes[1], ranking))


def test_a_direction_is_the_mean_of_winner_minus_loser() -> None:
    codes = drawn(4, 3, dtype=torch.float64)
    pairs = [(2, 0), (2, 1), (2, 3), (0, 1), (0, 3)]  # 2 then 0, the others not ranked
    expected = torch.stack([codes[a] - codes[b] for a, b in pairs]).mean(0)
    torch.testing.assert_close(direction(codes, codes[0], [2, 0]), expected)


def test_the_search_finds_the_top_of_a_hill_and_never_steps_down() -> None:
    goal = torch.tensor([1.0, -2.0, 0.5, 0.0])
    rounds = ranked(RankSearch(torch.zeros(4), spread=0.3, step=2.0, shown=6), lambda codes: (codes - goal).square().sum(1))
    search, losses = next(rounds)
    path = [float((search.best - goal).norm())]
    for _ in range(120):
        search, losses = rounds.send(losses.argsort().tolist())
        path.append(float((search.best - goal).norm()))
    assert path == sorted(path, reverse=True)
    assert path[0] > 2 and path[-1] < 0.1


def test_naming_the_best_three_is_enough() -> None:
    rounds = ranked(RankSearch(torch.zeros(2, 2), spread=0.3, shown=8), lambda codes: (codes - 1).flatten(1).norm(dim=1))
    search, losses = next(rounds)
    for _ in range(80):
        search, losses = rounds.send(losses.argsort()[:3].tolist())
    assert float((search.best - 1).norm()) < 0.3


def test_a_search_asks_the_same_until_it_is_told() -> None:
    search = RankSearch(torch.zeros(3))
    assert search.ask().equal(search.ask())
    other = search.tell(search.ask(), [0])
    line = other.ask()
    assert line.equal(other.ask()) and line[-1].equal(search.best) and line[-2].equal(search.ask()[0])
    again = other.tell(line, [len(line) - 1])
    assert again.best.equal(search.best) and again.count == 1 and not again.ask().equal(search.ask())
    moved = other.tell(line, [0])
    assert moved.best.equal(line[0]) and moved.mean is None and moved.count == 0


@pytest.mark.parametrize("ranking", [[], [0, 0], [6], [-1], [1, 2, 1]])
def test_a_ranking_that_is_none_is_refused(ranking: list[int]) -> None:
    search = RankSearch(torch.zeros(3))
    for look in (lambda: search.tell(search.ask(), ranking), lambda: direction(search.ask(), search.best, ranking)):
        with pytest.raises(ValueError, match=r"of 6 codes; name some of 0 to 5, best first, each once"):
            look()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spread": 0.0}, "spread of the search is 0.0"),
        ({"step": math.nan}, "step of the search is nan"),
        ({"shown": 2}, "2 images"),
    ],
)
def test_a_search_that_cannot_search_does_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankSearch(torch.zeros(3), **options)


def test_the_documented_example_runs() -> None:
    found = doctest.testmod(sys.modules[RankSearch.__module__])
    assert found.attempted > 3 and not found.failed


def test_importing_inference_needs_torch_only() -> None:
    code = (
        "import sys, flowrl.inference; print([n for n in ('diffusers', 'peft', 'pydantic', 'flowrl.rewards') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(inference.__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
