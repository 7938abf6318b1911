"""One definition of randomness: pinned, keyed, and disjoint between training and held-out images."""

from __future__ import annotations

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl import heldout
from flowrl.samplers import noise
from flowrl.samplers.noise import Source

quick = settings(deadline=None, max_examples=50)  # a shared machine may stall at any moment
keys = st.tuples(
    st.integers(0, 2**40),
    st.integers(0, 2**20),
    st.integers(0, 4096),
    st.integers(0, 4096),
    st.sampled_from(["rollout", "query", "heldout", "sigma", "window"]),
)


def test_the_definition_is_pinned() -> None:
    """Changing any of these changes every run that was ever recorded."""
    assert noise.key(0, 0, 0, 0) == 8701405240444677756
    assert noise.key(7, 3, 2, 1, "heldout") == 2675404188890311118
    assert noise.normal((4,), 0, 0, 0, 0).tolist() == [
        0.8159289360046387,
        1.8469815254211426,
        0.513824999332428,
        -1.2275184392929077,
    ]
    assert noise.normal((2, 2), 7, 3, 2, 1, "heldout").flatten().tolist() == [
        0.8601424098014832,
        -0.07857941091060638,
        0.9548515677452087,
        2.7312116622924805,
    ]
    assert noise.uniform(0, 0, 0, 0) == 0.9434082465366872
    assert noise.uniform(7, 3, 2, 1, "query") == 0.3940031586665147


@quick
@given(keys)
def test_a_draw_depends_on_its_key_alone(key: tuple[int, int, int, int, str]) -> None:
    first = noise.normal((3, 2), *key)
    torch.manual_seed(1)
    noise.normal((3, 2), *key[:3], key[3] + 1, key[4])
    assert torch.equal(noise.normal((3, 2), *key), first)
    assert torch.equal(Source(key[0], key[1]).normal((3, 2), *key[2:]), first)
    assert Source(key[0], key[1]).uniform(*key[2:]) == noise.uniform(*key)
    assert first.dtype == torch.float32 and first.device.type == "cpu"


@quick
@given(keys, keys)
def test_different_keys_give_different_draws(one: tuple[int, int, int, int, str], other: tuple[int, int, int, int, str]) -> None:
    if one != other:
        assert noise.key(*one) != noise.key(*other)
        assert not torch.equal(noise.normal((8,), *one), noise.normal((8,), *other))


@pytest.mark.parametrize("part", range(5))
@quick
@given(key=keys)
def test_every_part_of_a_key_counts(part: int, key: tuple[int, int, int, int, str]) -> None:
    changed = list(key)
    changed[part] = changed[part] + ("x" if part == 4 else 1)
    assert noise.key(*changed) != noise.key(*key)  # pyright: ignore[reportArgumentType]


@quick
@given(keys)
def test_a_key_fits_a_generator_and_a_uniform_its_range(key: tuple[int, int, int, int, str]) -> None:
    assert 0 <= noise.key(*key) < 2**63
    assert 0 <= noise.uniform(*key) < 1


def test_draws_are_standard_normal_and_uniform_across_keys() -> None:
    first = torch.stack([noise.normal((4,), 0, i, s, n) for i in range(5) for s in range(20) for n in range(20)]).double()
    assert first.mean().abs() < 0.03 and (first.std() - 1).abs() < 0.03
    assert (torch.corrcoef(first.T) - torch.eye(4)).abs().max() < 0.07
    place = torch.tensor([noise.uniform(0, i, 0, 0) for i in range(4000)], dtype=torch.float64).sort().values
    assert (place - torch.linspace(0, 1, 4000, dtype=torch.float64)).abs().max() < 0.04  # Kolmogorov-Smirnov at 1e-5


def test_held_out_noise_is_never_training_noise() -> None:
    """Also for a run whose own seed is the held-out one."""
    for seed in (0, heldout.SEED):
        policy = toy.Policy()
        starts: dict[bool, set[bytes]] = {}
        for judged in (False, True):
            with toy.seen(policy) as calls:
                if judged:
                    heldout.judge(policy, toy.TEXTS, {"toy": toy.REWARD}, 6, 4, toy.SIZES, toy.WORLD)
                else:
                    toy.collected(policy, toy.plan("ode", group=6), seed=seed, iteration=0)
            starts[judged] = {row.numpy().tobytes() for x, sigma, _ in calls for row in x[sigma == 1]}
        assert len(starts[False]) == len(starts[True]) == 6 * len(toy.PROMPTS)
        assert not starts[False] & starts[True]
