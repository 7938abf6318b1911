"""Laws against closed forms: for Gaussian data the velocity is exact and linear, so mean and variance follow a recursion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowrl.samplers import Law, laws, paths, schedules, solvers, windows

MEAN, STD = 1.5, 0.5
quick = settings(deadline=None, max_examples=50)  # a shared machine may stall at any moment


def sampled(law: Law, grid: Tensor) -> tuple[float, float]:
    """Mean and std of what a sampler with this law draws, if data are N(MEAN, STD^2), in float64 and without sampling."""
    a, b, s = (t.tolist() for t in paths.flow.coefficients(grid[:-1], grid[1:], *law(grid[:-1], grid[1:], float(grid[1]))))
    sigma = float(grid[0])
    mean, variance = (1 - sigma) * MEAN, (1 - sigma) ** 2 * STD**2 + sigma**2
    for i, sigma in enumerate(grid[:-1].tolist()):
        # E[x1 - x0 | x] = k (x - (1 - sigma) MEAN) - MEAN
        k = (sigma - (1 - sigma) * STD**2) / ((1 - sigma) ** 2 * STD**2 + sigma**2)
        mean, variance = (
            a[i] * mean + b[i] * (k * (mean - (1 - sigma) * MEAN) - MEAN),
            (a[i] + b[i] * k) ** 2 * variance + s[i] ** 2,
        )
    return mean, math.sqrt(variance)


def errors(make: Callable[[int], Law], steps: list[int], start: float = 1.0, shift: float = 1.0) -> list[float]:
    out = []
    for n in steps:
        mean, std = sampled(make(n), start * schedules.linear_shift(n, shift))
        assert mean == pytest.approx(MEAN, abs=1e-12)  # each law moves the mean along the ODE
        out.append(abs(std - STD))
    return out


def orders(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


FIRST_ORDER: dict[str, tuple[Callable[[int], Law], float]] = {
    "ode": (lambda n: laws.ode(), 1.0),
    "dance_sde": (lambda n: laws.dance_sde(0.3), 1.0),
    "dance_sde, strong": (lambda n: laws.dance_sde(1.0), 1.0),
    "flow_sde": (lambda n: laws.flow_sde(0.7), 0.98),
    "flow_sde, strong": (lambda n: laws.flow_sde(1.2), 1.0),
    "cps, noise of a diffusion": (lambda n: laws.cps(0.8 * math.sqrt(10 / n)), 1.0),
}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_a_law_reaches_the_data_with_first_order(name: str, shift: float) -> None:
    make, start = FIRST_ORDER[name]
    found = errors(make, [640, 1280, 2560], start, shift)
    assert found[-1] < 1.5e-3
    assert all(0.9 < order < 1.1 for order in orders(found)), orders(found)


@pytest.mark.parametrize("level", [0.3, 0.7, 1.2])
def test_flow_sde_forgets_the_guarded_first_step(level: float) -> None:
    """At sigma = 1 the guard gives one step of std `level` whatever the grid; what it distorts decays like steps^-level^2."""
    found = errors(lambda n: laws.flow_sde(level), [320, 1280, 20480])
    assert max(found) < 3e-3 and found[-1] < 1e-3
    if level >= 0.7:  # at 0.3 the decay is too slow to be told from its change of sign
        assert orders(found[-2:])[0] > 0.8 * 4 * min(1, level**2)


@pytest.mark.parametrize("level", [0.3, 0.8])
def test_cps_at_a_fixed_level_keeps_the_mean_but_not_the_spread(level: float) -> None:
    """A known property of coefficient preservation: x0_hat spreads too little, and more steps of a fixed level do not mend it."""
    _, std = sampled(laws.cps(level), schedules.linear_shift(50000))
    assert (std / STD) ** 2 == pytest.approx(1 - (1 - math.cos(level * math.pi / 2)) / 2, rel=0.01)


levels = st.floats(0.01, 0.99)


@quick
@given(sigma=levels, share=st.floats(0, 0.99), level=st.floats(0, 1))
def test_cps_preserves_coefficients(sigma: float, share: float, level: float) -> None:
    at, to = torch.tensor([sigma], dtype=torch.float64), torch.tensor([sigma * share], dtype=torch.float64)
    c, s = laws.cps(level)(at, to, 0.9)
    torch.testing.assert_close(c**2 + s**2, to**2, rtol=1e-14, atol=0)


@pytest.mark.parametrize("make", [laws.flow_sde, laws.dance_sde, laws.cps])
@pytest.mark.parametrize("grid", [schedules.sd3(10), schedules.linear_shift(7, 3.0)])
def test_level_0_is_the_ode(make: Callable[[float], Law], grid: Tensor) -> None:
    for ours, ode in zip(
        make(0.0)(grid[:-1], grid[1:], float(grid[1])), laws.ode()(grid[:-1], grid[1:], float(grid[1])), strict=True
    ):
        assert torch.equal(ours, ode)


@quick
@given(sigma=levels, share=st.floats(0.01, 0.99), level=st.floats(0.05, 1.5), x=st.floats(-3, 3), u=st.floats(-3, 3))
def test_an_sde_step_is_euler_maruyama_of_the_reverse_sde(sigma: float, share: float, level: float, x: float, u: float) -> None:
    """x + (v - g^2 score / 2)(sigma' - sigma) with score = -x1_hat / sigma, against the coefficients of the step."""
    at, to = torch.tensor([sigma], dtype=torch.float64), torch.tensor([sigma * share], dtype=torch.float64)
    for law, g in ((laws.flow_sde(level), level * math.sqrt(sigma / (1 - sigma))), (laws.dance_sde(level), level)):
        a, b, s = (float(t) for t in paths.flow.coefficients(at, to, *law(at, to, 0.9)))
        score = -(x + (1 - sigma) * u) / sigma
        assert a * x + b * u == pytest.approx(x + (u - g**2 * score / 2) * (sigma * share - sigma), rel=1e-9, abs=1e-9)
        assert s == pytest.approx(g * math.sqrt(sigma * (1 - share)), rel=1e-12)


def test_the_guard_is_used_at_sigma_1_only() -> None:
    at, to = torch.tensor([1.0, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.25], dtype=torch.float64)
    first, second = (laws.flow_sde(0.7)(at, to, guard)[1] for guard in (0.5, 0.9))
    assert first[0] != second[0] and first[1] == second[1]
    assert float(first[0]) == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.5) * 0.5))


def test_a_level_may_be_a_tensor() -> None:
    at, to = torch.tensor([0.9, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.25], dtype=torch.float64)
    for make in (laws.flow_sde, laws.dance_sde, laws.cps):
        both = make(torch.tensor([0.3, 0.7], dtype=torch.float64))(at, to, 0.9)
        for i, level in enumerate((0.3, 0.7)):
            alone = make(level)(at[i : i + 1], to[i : i + 1], 0.9)
            assert all(torch.allclose(x[i], y[0], rtol=1e-14) for x, y in zip(both, alone, strict=True))


def test_the_path_reads_a_prediction_back() -> None:
    draw = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 5, 3, dtype=torch.float64, generator=draw)
    sigma = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64).view(-1, 1)
    x, u = paths.flow.alpha(sigma) * x0 + sigma * x1, paths.flow.target(x0, x1, sigma)
    torch.testing.assert_close(paths.flow.x0(x, u, sigma), x0)
    assert torch.equal(paths.flow.snap(sigma), sigma)
    for law in (laws.ode(), laws.cps(0.5)):  # x' = alpha' x0 + c x1 where the prediction is exact
        at, to = torch.full((5,), 0.8, dtype=torch.float64), torch.full((5,), 0.3, dtype=torch.float64)
        c, s = law(at, to, 0.9)
        a, b, _ = paths.flow.coefficients(at, to, c, s)
        state = 0.2 * x0 + 0.8 * x1
        torch.testing.assert_close(a[:, None] * state + b[:, None] * (x1 - x0), 0.7 * x0 + c[:, None] * x1)


def test_the_quiet_solver_is_the_ode() -> None:
    at, to = torch.tensor([1.0, 0.6], dtype=torch.float64), torch.tensor([0.6, 0.0], dtype=torch.float64)
    x, u = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(solvers.euler.move(solvers.Start(x, u, at, to, paths.flow)), x + ((to - at)[:, None] * u).float())


@pytest.mark.parametrize("make", [schedules.sd3, schedules.linear_shift])
@quick
@given(n=st.integers(1, 60), shift=st.floats(0.5, 10))
def test_a_schedule_falls_from_1_to_0(make: Callable[[int, float], Tensor], n: int, shift: float) -> None:
    grid = make(n, shift)
    assert grid.dtype == torch.float64 and len(grid) == n + 1 and grid[0] == 1 and grid[-1] == 0
    assert (grid.diff() < 0).all()


@pytest.mark.parametrize("make", [schedules.sd3, schedules.linear_shift])
def test_a_schedule_without_steps_is_a_sentence(make: Callable[[int], Tensor]) -> None:
    with pytest.raises(ValueError, match="0 steps: give at least 1"):
        make(0)


# ------------------------------------------------------------------ windows
strategies = st.sampled_from(["progressive", "decay", "exp_decay"])


@quick
@given(
    iteration=st.integers(0, 300),
    steps=st.integers(1, 12),
    size=st.integers(1, 12),
    every=st.integers(1, 9),
    stride=st.integers(1, 4),
    roll_back=st.booleans(),
    strategy=strategies,
)
def test_a_sliding_window_keeps_its_size_and_its_place(
    iteration: int, steps: int, size: int, every: int, stride: int, roll_back: bool, strategy: windows.Strategy
) -> None:
    if size > steps:
        with pytest.raises(ValueError, match="does not fit"):
            windows.sliding(iteration, steps, size, every, stride, roll_back, strategy)
        return
    window = windows.sliding(iteration, steps, size, every, stride, roll_back, strategy)
    assert len(window) == size and window.start >= 0 and window.stop <= steps


def test_a_progressive_window_stands_and_then_moves() -> None:
    starts = [windows.sliding(i, 6, 3, every=2, stride=2).start for i in range(8)]
    assert starts == [0, 0, 2, 2, 0, 0, 2, 2]
    assert [windows.sliding(i, 6, 3, every=2, stride=2, roll_back=False).start for i in range(8)] == [0, 0, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "does not fit"),
        ({"stride": 0}, "never moves on"),
        ({"every": 0}, "never moves on"),
        ({"compat": "mixgrpo"}, "unknown to sliding"),
    ],
)
def test_a_window_that_makes_no_sense_is_a_sentence(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        windows.sliding(0, **{"steps": 8, "size": 4, **change})  # pyright: ignore[reportArgumentType]


def test_a_jumping_window_visits_every_place_alike_and_repeats() -> None:
    starts = [windows.jumping(i, 0, 5, 3).start for i in range(3000)]
    counts = [starts.count(k) for k in range(5)]
    assert counts[3:] == [0, 0] and min(counts[:3]) > 900
    assert starts == [windows.jumping(i, 0, 5, 3).start for i in range(3000)]
    assert starts != [windows.jumping(i, 0, 5, 3, seed=1).start for i in range(3000)]
    assert all(len(windows.jumping(i, 1, 4, 2)) == 2 and windows.jumping(i, 1, 4, 2).start in (1, 2) for i in range(50))
    with pytest.raises(ValueError, match="no window of 4 steps"):
        windows.jumping(0, 0, 3, 4)
