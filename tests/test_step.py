"""The step and its density: gradients against autograd in float64, the ratio against the difference of two densities."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from flowrl.kernels import log_density, log_ratio, mean_each, step
from flowrl.samplers import kl, log_prob

SHAPE = (3, 2, 4)


def draws(count: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)))


def numbers(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.tensor([0.9, 1.1, 0.5], dtype=dtype),
        torch.tensor([-0.2, -0.05, -0.4], dtype=dtype),
        torch.tensor([0.3, 0.05, 1.2], dtype=dtype),
    )


def test_a_step_is_three_numbers() -> None:
    x, u, z = (t.numpy() for t in draws(3))
    a, b, s = (t.numpy().reshape(-1, 1, 1) for t in numbers())
    got = step(*(torch.from_numpy(t) for t in (x, u)), *numbers(), torch.from_numpy(z))
    np.testing.assert_allclose(got.numpy(), a * x + b * u + s * z, rtol=1e-14)
    np.testing.assert_allclose(step(*(torch.from_numpy(t) for t in (x, u)), *numbers()).numpy(), a * x + b * u, rtol=1e-14)


def test_a_density_is_the_mean_over_latent_dims() -> None:
    x, mean = draws(2)
    _, _, s = numbers()
    normal = torch.distributions.Normal(mean, s.view(-1, 1, 1))
    torch.testing.assert_close(log_density(x, mean, s), normal.log_prob(x).mean((1, 2)), rtol=1e-13, atol=0)
    each = draws(1)[0].abs() + 0.1
    torch.testing.assert_close(
        log_prob(x, mean, each), torch.distributions.Normal(mean, each).log_prob(x).mean((1, 2)), rtol=1e-13, atol=0
    )


def test_the_three_forms_differ_by_what_they_leave_out() -> None:
    x, mean = draws(2)
    _, _, s = numbers()
    full, quadratic, bare = (log_prob(x, mean, s, form) for form in ("full", "quadratic", "bare"))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(full, quadratic - s.log() - 0.5 * math.log(2 * math.pi), rtol=1e-13, atol=0)
    torch.testing.assert_close(quadratic, bare / (2 * s**2), rtol=1e-13, atol=0)


OPS: dict[str, Callable[..., Tensor]] = {
    "step": lambda x, u, a, b, s, z: step(x, u, a, b, s, z),
    "mean": lambda x, u, a, b, s, z: step(x, u, a, b, s),
    "log_density": lambda x, u, a, b, s, z: log_density(z, step(x, u, a, b, s), s),
    "log_ratio": lambda x, u, a, b, s, z: log_ratio(u, z, x, x.flip(0), a, b, s),
}


@pytest.mark.parametrize("name", OPS)
def test_gradients_are_those_of_the_formula(name: str) -> None:
    assert torch.autograd.gradcheck(OPS[name], [t.requires_grad_() for t in (*draws(2), *numbers(), *draws(1, seed=1))])


def test_the_gradient_of_a_density_is_the_closed_form() -> None:
    x, u, x_next = draws(3)
    a, b, s = numbers()
    u.requires_grad_()
    mean = step(x, u, a, b, s)
    gradient = torch.autograd.grad(log_prob(x_next, mean, s).sum(), u)[0]
    each = u[0].numel()
    torch.testing.assert_close(gradient, (x_next - mean) / s.view(-1, 1, 1) ** 2 * b.view(-1, 1, 1) / each, rtol=1e-12, atol=0)


def test_no_gradient_flows_into_the_state_that_was_reached() -> None:
    x_next, mean = (t.requires_grad_() for t in draws(2))
    for form in ("full", "quadratic", "bare"):
        assert torch.autograd.grad(log_prob(x_next, mean, numbers()[2], form).sum(), x_next, allow_unused=True)[0] is None  # pyright: ignore


@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-8])
def test_the_ratio_is_the_difference_of_two_densities(distance: float) -> None:
    x, u, z, move = draws(4)
    a, b, s = numbers()
    old = u + distance * move
    x_next = step(x, old, a, b, s, z)
    difference = log_prob(x_next, step(x, u, a, b, s), s) - log_prob(x_next, step(x, old, a, b, s), s)
    torch.testing.assert_close(log_ratio(u, old, x, x_next, a, b, s), difference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ratio_is_exactly_0_where_the_prediction_is_the_old_one(dtype: torch.dtype) -> None:
    x, u, z = draws(3, (3, 16, 8, 8), dtype)
    a, b, s = numbers(dtype)
    x_next = step(x, u, a, b, s, z)
    assert (log_ratio(u.clone(), u, x, x_next, a, b, s) == 0).all()
    other = u.clone()
    other[1, 3, 2, 1] += 1e-3
    assert (log_ratio(other, u, x, x_next, a, b, s) != 0).tolist() == [False, True, False]


def test_the_ratio_resolves_what_a_difference_of_densities_cannot() -> None:
    """float32: |log p| is of the order of 1 and rounds at 1e-7; the ratio here is of that order itself."""
    x, u, z, move = draws(4, (3, 16, 8, 8))
    a, b, s = numbers()
    old = u + 1e-6 * move
    x_next = step(x, old, a, b, s, z)
    truth = log_ratio(u, old, x, x_next, a, b, s)
    low = [t.float() for t in (u, old, x, x_next, a, b, s)]
    # what is lost is the rounding of u and old themselves: compare with the exact ratio of the rounded inputs
    exact = log_ratio(*(t.double() for t in low))
    direct = log_ratio(*low).double()
    means = [step(low[2], v, *low[4:]) for v in low[:2]]
    rounded = (log_prob(low[3], means[0], low[6]) - log_prob(low[3], means[1], low[6])).double()
    assert truth.abs().max() < 1e-4
    assert (direct - exact).abs().max() < 0.2 * (rounded - exact).abs().max()


def test_a_row_does_not_depend_on_its_batch() -> None:
    x, u, z = draws(3, (7, 4, 9, 5), torch.float32)
    a, b, s = (torch.rand(7, generator=torch.Generator().manual_seed(k)) + 0.1 for k in range(3))
    x_next = step(x, u, a, b, s, z)
    whole = log_density(x_next, step(x, u, a, b, s), s), log_ratio(u + 1e-3, u, x, x_next, a, b, s)
    for rows in (slice(2, 3), slice(4, 7)):
        mine = [t[rows] for t in (x, u, a, b, s)]
        alone = (
            log_density(x_next[rows], step(*mine), mine[4]),
            log_ratio(mine[1] + 1e-3, mine[1], mine[0], x_next[rows], *mine[2:]),
        )
        assert torch.equal(step(*mine, z[rows]), x_next[rows])
        assert all(torch.equal(w[rows], t) for w, t in zip(whole, alone, strict=True))


def test_the_mean_of_nothing_is_nothing() -> None:
    assert mean_each(torch.zeros(0, 4, 4)).shape == (0,)


def test_kl_identities() -> None:
    mean, other = draws(2)
    _, _, s = numbers()
    assert (kl(mean, mean, s) == 0).all() and (kl(mean, other, s) > 0).all()
    torch.testing.assert_close(kl(mean, other, s), kl(other, mean, s), rtol=1e-13, atol=0)
    torch.testing.assert_close(kl(mean, other, s, s), kl(mean, other, s), rtol=1e-12, atol=0)
    torch.testing.assert_close(kl(mean, mean, s, s), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-15)
    wide = 1.7 * s
    truth = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, s.view(-1, 1, 1)), torch.distributions.Normal(other, wide.view(-1, 1, 1))
    )
    torch.testing.assert_close(kl(mean, other, s, wide), truth.mean((1, 2)), rtol=1e-12, atol=0)


def test_kl_is_minus_the_mean_log_ratio() -> None:
    """Under the distribution itself: E[log p - log q] over its own draws."""
    mean, other = draws(2, (1, 400000))
    _, _, s = (t[:1] for t in numbers())
    x = mean + s * draws(1, (1, 400000), seed=5)[0]
    assert float(log_prob(x, mean, s) - log_prob(x, other, s)) == pytest.approx(float(kl(mean, other, s)), rel=0.02)


def test_a_step_without_noise_has_no_density() -> None:
    x, mean = draws(2)
    s = torch.tensor([0.3, 0.0, 1.0])
    for call in (lambda: log_prob(x, mean, s), lambda: log_prob(x, mean, s, "quadratic"), lambda: kl(mean, x, s)):
        with pytest.raises(ValueError, match="std is 0; train only stochastic steps"):
            call()
    with pytest.raises(ValueError, match="form 'log' of log_prob is unknown"):
        log_prob(x, mean, s + 1, "log")  # pyright: ignore[reportArgumentType]


def test_half_precision_is_scored_in_float32() -> None:
    x, mean = (t.to(torch.bfloat16) for t in draws(2))
    _, _, s = numbers(torch.float32)
    got = log_prob(x, mean, s)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, log_prob(x.float(), mean.float(), s), rtol=0, atol=0)
