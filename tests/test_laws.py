"""Laws against closed forms: for Gaussian data the velocity is exact and linear, so mean and variance follow a recursion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowrl.samplers import Law, laws, levels, paths, schedules, solvers, windows

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
    "dgpo, noise of a diffusion": (lambda n: laws.dgpo(0.8 * math.sqrt(10 / n)), 1.0),
    "wan_sde": (lambda n: laws.wan_sde(), 1.0),
    "ddim": (lambda n: laws.ddim(1.0), 1.0),
    "ddim, mild": (lambda n: laws.ddim(0.3), 1.0),
    "precise": (lambda n: laws.precise(1.5), 1.0),
    "precise, mild": (lambda n: laws.precise(0.5), 1.0),
    "dance_precise": (lambda n: laws.dance_precise(0.3), 1.0),
    "sage": (lambda n: laws.sage(0.7), 0.98),
    "longcat": (lambda n: laws.longcat(1.0, 0.45), 0.98),
    "decaying dance": (lambda n: laws.decaying(laws.dance_sde, levels.cosine(1.0)), 1.0),
    "decaying flow": (lambda n: laws.decaying(laws.flow_sde, levels.linear(0.9, 0.1)), 0.98),
}


def precisely(names: Iterable[str]) -> list[object]:
    """Parameters, of which Precise's law is a part of what is known of that method."""
    return [pytest.param(n, marks=[pytest.mark.evidence("derived", "precise")] if n == "precise" else []) for n in names]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", precisely(FIRST_ORDER))
def test_a_law_reaches_the_data_with_first_order(name: str, shift: float) -> None:
    make, start = FIRST_ORDER[name]
    found = errors(make, [640, 1280, 2560], start, shift)
    assert found[-1] < 2e-3
    # dance_precise draws all of the noise below sigma = eta^2 afresh at each step: first order up to a logarithm
    slowest = 0.8 if name == "dance_precise" else 0.9
    assert all(slowest < order < 1.1 for order in orders(found)), orders(found)


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


sigmas = st.floats(0.01, 0.99)


EXACT = {
    "ode": lambda level: laws.ode(),
    "cps": laws.cps,
    "dgpo": laws.dgpo,
    "ddim": laws.ddim,
    "precise": laws.precise,
    "dance_precise": laws.dance_precise,
}


@pytest.mark.parametrize("path", [paths.flow, paths.vp()], ids=["flow", "vp"])
@pytest.mark.parametrize("name", precisely(EXACT))
@quick
@given(sigma=sigmas, share=st.floats(0, 0.99), level=st.floats(0, 1))
def test_coefficients_are_preserved(name: str, path: paths.Path, sigma: float, share: float, level: float) -> None:
    at, to = torch.tensor([sigma], dtype=torch.float64), torch.tensor([sigma * share], dtype=torch.float64)
    c, s = EXACT[name](level)(at, to, 0.9, alpha=path.alpha)
    torch.testing.assert_close(c**2 + s**2, to**2, rtol=1e-12, atol=1e-200)


@pytest.mark.parametrize("name", EXACT)
def test_exact_laws_are_regular_at_both_ends(name: str) -> None:
    """From pure noise, and to data: no guard, no NaN; at sigma' = 0 nothing is added."""
    at, to = torch.tensor([1.0, 1.0, 0.3], dtype=torch.float64), torch.tensor([0.9, 0.0, 0.0], dtype=torch.float64)
    c, s = EXACT[name](0.7)(at, to, float("nan"))
    torch.testing.assert_close(c**2 + s**2, to**2, rtol=1e-14, atol=0)
    assert s[1] == s[2] == 0
    if name in ("precise", "ddim"):
        assert float(s[0]) == pytest.approx(0.9 if name == "precise" else 0.7 * 0.9)  # precise re-noises x0_hat afresh


@pytest.mark.parametrize("name", ["flow_sde", "wan_sde", "dance_sde", "sage", "longcat"])
def test_an_sde_is_regular_at_both_ends(name: str) -> None:
    make = {
        "flow_sde": laws.flow_sde,
        "wan_sde": laws.wan_sde,
        "dance_sde": laws.dance_sde,
        "sage": laws.sage,
        "longcat": laws.longcat,
    }
    at, to = torch.tensor([1.0, 0.3], dtype=torch.float64), torch.tensor([0.9, 0.0], dtype=torch.float64)
    c, s = make[name](0.7)(at, to, 0.9)
    assert torch.isfinite(c).all() and torch.isfinite(s).all() and (s > 0).all()
    torch.testing.assert_close(c, to - s**2 / (2 * at), rtol=1e-14, atol=1e-14)


def test_small_steps_of_one_family_agree() -> None:
    """To first order precise and sage are flow_sde, ddim(eta) is flow_sde(sqrt(2) eta), dance_precise is dance_sde."""
    at = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    to = at * (1 - 1e-6)
    pairs = [
        (laws.precise(0.8), laws.flow_sde(0.8)),
        (laws.ddim(0.5), laws.flow_sde(math.sqrt(2) * 0.5)),
        (laws.dance_precise(0.3), laws.dance_sde(0.3)),
        (laws.sage(0.8), laws.flow_sde(0.8)),
        (laws.dgpo(math.sin(0.3 * math.pi / 2)), laws.cps(0.3)),
        (laws.longcat(0.8, 1e9), laws.flow_sde(0.8)),
    ]
    for one, other in pairs:
        (c, s), (c_, s_) = one(at, to, 0.95), other(at, to, 0.95)
        torch.testing.assert_close(s, s_, rtol=1e-4, atol=0)
        torch.testing.assert_close(c - to, c_ - to, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, torch.tensor([0.3, -0.2])], ids=str)
@pytest.mark.parametrize(
    "name", ["flow_sde", "dance_sde", "longcat", "sage", "cps", "dgpo", "ddim", "precise", "dance_precise", "wan_sde"]
)
def test_a_level_that_makes_no_sense_is_a_sentence(name: str, value: float | Tensor) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* is .*; give "):
        getattr(laws, name)(value)


NONSENSE: dict[str, tuple[Callable[[], object], str]] = {
    "ceiling": (lambda: laws.sage(0.3, ceiling=1.0), "ceiling is 1; give one above 0 and below 1"),
    "cap": (lambda: laws.longcat(0.3, cap=-1.0), "cap is -1; give"),
    "rate": (lambda: levels.exponential(1.0, -1.0), "rate -1 would grow"),
    "shift 0": (lambda: schedules.sd3(4, 0.0), "shifted by 0: give a number above 0"),
    "shift nan": (lambda: schedules.linear_shift(4, math.nan), "shifted by nan"),
    "end": (lambda: schedules.vp(4, paths.alphas_cumprod(), end="last"), "end 'last' of a schedule is unknown"),  # pyright: ignore
    "strategy": (lambda: windows.sliding(0, 8, 4, strategy="x"), "strategy 'x' is unknown to sliding"),  # pyright: ignore
}


@pytest.mark.parametrize("name", NONSENSE)
def test_numbers_and_names_that_make_no_sense_are_sentences(name: str) -> None:
    build, message = NONSENSE[name]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("make", [laws.cps, laws.dgpo, laws.ddim])
def test_a_share_above_1_is_a_sentence(make: Callable[[float], Law]) -> None:
    make(1.0)
    with pytest.raises(ValueError, match=r"is 1.2; give one in \[0, 1\]"):
        make(1.2)


@pytest.mark.evidence("derived", "longcat")
def test_longcat_never_steps_wider_than_its_cap() -> None:
    grid = schedules.linear_shift(10, 3.0)
    s = laws.longcat(1.0, 0.6)(grid[:-1], grid[1:], float(grid[1]))[1]
    free = laws.flow_sde(1.0)(grid[:-1], grid[1:], float(grid[1]))[1]
    assert (s <= 0.6 + 1e-15).all() and (s == free)[free < 0.6].all() and (free > 0.6).any() and (free < 0.6).any()


def test_a_step_of_sage_that_ends_above_its_ceiling_adds_nothing() -> None:
    c, s = laws.sage(0.7)(torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.999], dtype=torch.float64), 0.999)
    assert s == 0 and c == 0.999


# ------------------------------------------------------------------ levels
@pytest.mark.evidence("derived", "hicogen")
def test_levels_fall_as_they_say() -> None:
    at = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    assert levels.constant(0.3)(at).tolist() == [0.3] * 3
    assert levels.linear(0.8, 0.2)(at).tolist() == pytest.approx([0.8, 0.5, 0.2])
    assert levels.cosine(1.0)(at).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert levels.exponential(0.9, 2.0)(at).tolist() == pytest.approx([0.9, 0.9 / math.e, 0.9 / math.e**2])


@pytest.mark.evidence("derived", "tree_rpo")
def test_levels_by_step_and_by_depth() -> None:
    grid = schedules.linear_shift(5, 3.0)
    assert levels.by_step(grid, [1, 2, 3, 4, 5])(grid[:-1]).tolist() == [1, 2, 3, 4, 5]
    assert levels.by_depth(grid, range(1, 4), 0.9, 0.3)(grid[:-1]).tolist() == pytest.approx([0.3, 0.5, 0.7, 0.9, 0.3])
    with pytest.raises(ValueError, match="2 levels for a schedule of 5 steps"):
        levels.by_step(grid, [0.1, 0.2])


@pytest.mark.evidence("derived", "hicogen", "tree_rpo")
def test_a_decaying_law_is_the_law_at_each_steps_level() -> None:
    grid = schedules.linear_shift(6, 3.0)
    law = laws.decaying(laws.dance_sde, levels.cosine(1.0))
    c, s = law(grid[:-1], grid[1:], float(grid[1]))
    for i in range(6):
        one = laws.dance_sde(float(levels.cosine(1.0)(grid[i])))(grid[i : i + 1], grid[i + 1 : i + 2], float(grid[1]))
        assert float(c[i]) == pytest.approx(float(one[0])) and float(s[i]) == pytest.approx(float(one[1]))


def test_a_learned_std_stays_in_its_range() -> None:
    law = laws.flow_noise(0.1, 0.4)
    assert law.std(torch.tensor([-1e9, 0.0, 1e9])).tolist() == pytest.approx([0.1, 0.2, 0.4])
    assert law(torch.tensor([0.5]), torch.tensor([0.25]), 0.9)[0] == 0.25
    with pytest.raises(ValueError, match="0 < low < high"):
        laws.flow_noise(0.4, 0.1)


@pytest.mark.parametrize(
    "make",
    [laws.flow_sde, laws.dance_sde, laws.cps, laws.dgpo, laws.ddim, laws.precise, laws.dance_precise, laws.sage, laws.longcat],
)
@pytest.mark.parametrize("grid", [schedules.sd3(10), schedules.linear_shift(7, 3.0)])
def test_level_0_is_the_ode(make: Callable[[float], Law], grid: Tensor) -> None:
    for ours, ode in zip(
        make(0.0)(grid[:-1], grid[1:], float(grid[1])), laws.ode()(grid[:-1], grid[1:], float(grid[1])), strict=True
    ):
        assert torch.equal(ours, ode)


@quick
@given(sigma=sigmas, share=st.floats(0.01, 0.99), level=st.floats(0.05, 1.5), x=st.floats(-3, 3), u=st.floats(-3, 3))
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
    for make in (
        laws.flow_sde,
        laws.dance_sde,
        laws.cps,
        laws.dgpo,
        laws.ddim,
        laws.precise,
        laws.dance_precise,
        laws.sage,
        laws.longcat,
    ):
        both = make(torch.tensor([0.3, 0.7], dtype=torch.float64))(at, to, 0.9)
        for i, level in enumerate((0.3, 0.7)):
            alone = make(level)(at[i : i + 1], to[i : i + 1], 0.9)
            assert all(torch.allclose(x[i], y[0], rtol=1e-14) for x, y in zip(both, alone, strict=True))


@pytest.mark.parametrize("path", [paths.flow, paths.vp("epsilon"), paths.vp("sample"), paths.vp("v_prediction")], ids=str)
def test_the_path_reads_a_prediction_back(path: paths.Path) -> None:
    draw = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 4, 3, dtype=torch.float64, generator=draw)
    sigma = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64).view(-1, 1)
    x, u = path.alpha(sigma) * x0 + sigma * x1, path.target(x0, x1, sigma)
    torch.testing.assert_close(path.x0(x, u, sigma), x0)
    assert torch.equal(path.snap(sigma), sigma)
    at, to = torch.full((4,), 0.8, dtype=torch.float64), torch.full((4,), 0.3, dtype=torch.float64)
    state = path.alpha(at)[:, None] * x0 + at[:, None] * x1
    for law in (laws.ode(), laws.cps(0.5), laws.ddim(0.5)):  # x' = alpha' x0 + c x1 where the prediction is exact
        c, s = law(at, to, 0.9, alpha=path.alpha)
        a, b, _ = path.coefficients(at, to, c, s)
        u = path.target(x0, x1, at[:, None])
        torch.testing.assert_close(a[:, None] * state + b[:, None] * u, path.alpha(to)[:, None] * x0 + c[:, None] * x1)
    nudge = 1e-6
    above, below = (path.alpha(at + d)[:, None] * x0 + (at + d)[:, None] * x1 for d in (nudge, -nudge))
    u = path.target(x0, x1, at[:, None])
    torch.testing.assert_close(path.slope(state, u, at[:, None]), (above - below) / (2 * nudge), rtol=1e-6, atol=1e-8)


def test_a_discrete_diffusion_snaps_to_its_times() -> None:
    table = paths.alphas_cumprod()
    path = paths.vp("epsilon", table)
    trained = (1 - table).sqrt()
    off = trained[[3, 500, 999]] + torch.tensor([1e-5, -1e-5, 1e-4], dtype=torch.float64)
    assert path.time(off).tolist() == [3, 500, 999] and torch.equal(path.snap(off), trained[[3, 500, 999]])
    with pytest.raises(ValueError, match="no table of trained times"):
        paths.vp().time(off)
    with pytest.raises(ValueError, match="'v' is unknown"):
        paths.vp("v")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="says nothing about the data"):
        path.coefficients(torch.tensor([1.0]), torch.tensor([0.9]), torch.tensor([0.9]), torch.tensor([0.0]))


def test_ddim_with_eta_1_is_ddpms_posterior() -> None:
    """q(x_{t-1} | x_t, x0) of the discrete chain, in its own betas."""
    bar = paths.alphas_cumprod()
    t = torch.tensor([1, 10, 500, 999])
    beta, before = 1 - bar[t] / bar[t - 1], bar[t - 1]
    path = paths.vp("sample")
    at, to = (1 - bar[t]).sqrt(), (1 - before).sqrt()
    a, b, s = path.coefficients(at, to, *laws.ddim(1.0)(at, to, 1.0, alpha=path.alpha))
    torch.testing.assert_close(s**2, beta * (1 - before) / (1 - bar[t]), rtol=1e-9, atol=0)
    torch.testing.assert_close(b, before.sqrt() * beta / (1 - bar[t]), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(a, (1 - beta).sqrt() * (1 - before) / (1 - bar[t]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_reaches_the_data_on_the_diffusion_path(eta: float) -> None:
    """Gaussian data again; E[x1 | x] = sigma (x - alpha MEAN) / (alpha^2 STD^2 + sigma^2)."""
    found = []
    for n in (250, 500, 1000):
        grid = schedules.vp(n, paths.alphas_cumprod(4000, 0.0002, 0.006))
        path = paths.vp()
        a, b, s = (
            t.tolist() for t in path.coefficients(grid[:-1], grid[1:], *laws.ddim(eta)(grid[:-1], grid[1:], 1.0, alpha=path.alpha))
        )
        alpha = path.alpha(grid).tolist()
        mean, variance = alpha[0] * MEAN, alpha[0] ** 2 * STD**2 + float(grid[0]) ** 2
        for i, sigma in enumerate(grid[:-1].tolist()):
            k = sigma / (alpha[i] ** 2 * STD**2 + sigma**2)
            mean, variance = (
                a[i] * mean + b[i] * k * (mean - alpha[i] * MEAN),
                (a[i] + b[i] * k) ** 2 * variance + s[i] ** 2,
            )
        assert mean == pytest.approx(MEAN, abs=1e-9)
        found.append(abs(math.sqrt(variance) - STD))
    # the jump from the lowest trained level to 0 stays as it is, however many steps there are
    assert found[-1] < 5e-3 and all(0.7 < order < 1.15 for order in orders(found)), found


# ------------------------------------------------------------------ solvers
def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact velocity for Gaussian data."""
    s = sigma.to(x).view(-1, *[1] * (x.ndim - 1))
    return (s - (1 - s) * STD**2) / ((1 - s) ** 2 * STD**2 + s**2) * (x - (1 - s) * MEAN) - MEAN


ORDERS = {"euler": (solvers.euler, 1.0), "heun": (solvers.heun, 2.0)} | {
    # the third order starts with a first-order step, whose error stays: between second and third
    f"dpm {order} {kind}": (solvers.dpm(order, kind), (1.0, 2.0, 2.7)[order - 1])
    for order in (1, 2, 3)
    for kind in ("midpoint", "heun")
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_solver_has_its_order(name: str) -> None:
    """Against the closed form of the flow: quantiles of a Gaussian stay quantiles. From 0.9, away from the singular start."""
    solver, order = ORDERS[name]
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    sigma, end = 0.9, 0.05
    spread = [math.sqrt((1 - level) ** 2 * STD**2 + level**2) for level in (sigma, end)]
    found = []
    for n in (16, 32, 64):
        grid = torch.linspace(sigma, end, n + 1, dtype=torch.float64)
        x, past = ((1 - sigma) * MEAN + spread[0] * start)[:, None], []
        for at, to in itertools.pairwise(grid):
            at, to, u = at.expand(9), to.expand(9), gaussian(x, at.expand(9))
            # far from both ends, so that no order is lowered there
            left, steps = torch.full((9,), 5), torch.full((9,), 99)
            here = solvers.Start(x, u, at, to, paths.flow, past, left, steps, predict=lambda x, s, rows: gaussian(x, s))
            x, past = solver.move(here), [(at, paths.flow.x0(x, u, at[:, None])), *past][: solver.memory]
        found.append(float((x[:, 0] - ((1 - end) * MEAN + spread[1] * start)).abs().max()))
    assert all(order - 0.35 < got < order + 0.6 for got in orders(found)), (found, orders(found))


@pytest.mark.parametrize(
    ("order", "kind", "message"), [(4, "midpoint", "order 4 does not exist"), (2, "euler", "'euler' of DPM-Solver")]
)
def test_a_solver_that_does_not_exist_is_a_sentence(order: int, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solvers.dpm(order, kind)  # pyright: ignore[reportArgumentType]


def test_a_tail_solver_starts_with_the_noise() -> None:
    at, to = torch.tensor([0.6, 0.6], dtype=torch.float64), torch.tensor([0.3, 0.3], dtype=torch.float64)
    x, u, old = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    past, many = [(torch.tensor([0.8, 0.8], dtype=torch.float64), old)], torch.tensor([3, 3])
    here = solvers.Start(x, u, at, to, paths.flow, past, many, 3 * many, torch.tensor([False, True]))
    both = solvers.tail(solvers.dpm(2)).move(here)
    assert torch.equal(both[0], solvers.euler.move(here)[0]) and torch.equal(both[1], solvers.dpm(2).move(here)[1])
    assert not torch.allclose(both[1], solvers.euler.move(here)[1])
    with pytest.raises(ValueError, match="more than once"):
        solvers.tail(solvers.heun)


def test_the_quiet_solver_is_the_ode() -> None:
    at, to = torch.tensor([1.0, 0.6], dtype=torch.float64), torch.tensor([0.6, 0.0], dtype=torch.float64)
    x, u = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(solvers.euler.move(solvers.Start(x, u, at, to, paths.flow)), x + ((to - at)[:, None] * u).float())


# ------------------------------------------------------------------ schedules
SCHEDULES: dict[str, Callable[[int, float], Tensor]] = {
    "sd3": schedules.sd3,
    "linear_shift": schedules.linear_shift,
    "dynamic": lambda n, shift: schedules.dynamic(n, math.log(shift)),
    "wan": schedules.wan,
}


@pytest.mark.parametrize("name", SCHEDULES)
@quick
@given(n=st.integers(1, 60), shift=st.floats(0.5, 10))
def test_a_schedule_falls_from_1_to_0(name: str, n: int, shift: float) -> None:
    grid = SCHEDULES[name](n, shift)
    assert grid.dtype == torch.float64 and len(grid) == n + 1 and grid[0] == 1 and grid[-1] == 0
    assert (grid.diff() < 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_without_steps_is_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match="0 steps: give at least 1"):
        SCHEDULES[name](0, 3.0)


@quick
@given(n=st.integers(2, 50), shift=st.floats(0.5, 8), share=st.floats(0, 1), ratio=st.floats(0.05, 1))
def test_a_flash_tail_falls_to_0_and_keeps_what_came_before(n: int, shift: float, share: float, ratio: float) -> None:
    grid = schedules.linear_shift(n, shift)
    last = int(share * (n - 1))
    short = schedules.flash_tail(grid, last, ratio)
    assert torch.equal(short[: last + 1], grid[: last + 1]) and short[-1] == 0 and (short.diff() < 0).all()
    assert len(short) <= len(grid)
    if last + 1 < n:
        assert float(short[last + 1]) == pytest.approx(float(grid[last + 1]), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last": 8}, "step 8 does not exist"),
        ({"ratio": 0.0}, "ratio 0"),
        ({"ratio": 1.5}, "ratio 1.5"),
        ({"compat": "mix"}, "unknown to flash_tail"),
    ],
)
def test_a_flash_tail_that_makes_no_sense_is_a_sentence(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedules.flash_tail(schedules.linear_shift(8), **{"last": 3, "ratio": 0.4, **change})  # pyright: ignore[reportArgumentType]


def test_schedules_are_those_of_diffusers() -> None:
    """The schedulers themselves, at the sizes of FLUX, Qwen-Image, FLUX.2 and Wan."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    for tokens, n in ((1024, 28), (4096, 4), (256, 10)):
        assert schedules.linear_mu(tokens) == pytest.approx(calculate_shift(tokens))
        assert schedules.flux2_mu(tokens, n) == pytest.approx(compute_empirical_mu(tokens, n))
        for terminal in (None, 0.02):
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal)
            mu = schedules.linear_mu(tokens)
            scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / n, n, dtype=torch.float64).numpy(), mu=mu)
            torch.testing.assert_close(schedules.dynamic(n, mu, terminal), scheduler.sigmas.double(), rtol=0, atol=1e-6)
    assert schedules.flux2_mu(5000, 20) == pytest.approx(compute_empirical_mu(5000, 20))
    for n, shift in ((20, 3.0), (50, 5.0)):
        scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        scheduler.set_timesteps(n)
        torch.testing.assert_close(schedules.wan(n, shift), scheduler.sigmas.double(), rtol=0, atol=2e-6)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, set_alpha_to_one=False
    )
    scheduler.set_timesteps(50)
    grid = schedules.vp(50, paths.alphas_cumprod(), end="first")
    assert paths.vp("epsilon", paths.alphas_cumprod()).time(grid[:-1]).tolist() == scheduler.timesteps.tolist()
    torch.testing.assert_close(grid[:-1] ** 2, 1 - scheduler.alphas_cumprod.double()[scheduler.timesteps], rtol=0, atol=1e-6)


def test_a_schedule_that_cannot_be_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="cannot be stretched"):
        schedules.dynamic(1, 0.5, terminal=0.02)
    with pytest.raises(ValueError, match="20 steps on a diffusion of 10 times"):
        schedules.vp(20, paths.alphas_cumprod(10))


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


def test_a_jumping_window_can_be_drawn_for_every_prompt() -> None:
    """Flash-GRPO: one stochastic step a prompt, the same for all its images."""
    starts = {windows.jumping(3, 0, 10, 1, slot=slot).start for slot in range(100)}
    assert starts == set(range(10))
    assert windows.jumping(3, 0, 10, 1, slot=7) == windows.jumping(3, 0, 10, 1, slot=7)


def test_branch_windows() -> None:
    assert windows.recurring(20, 4, 30, [6, 9]) == [0, 1, 2, 3, 6, 9]
    assert windows.recurring(10, 2, 5) == [0, 1, 5, 6]
    assert windows.evenly(4, 18) == [0, 4, 8, 12]
    with pytest.raises(ValueError, match="at least 0 of every 1"):
        windows.recurring(10, 2, 0)


def test_pruned_depths_slide_towards_the_root_and_stop() -> None:
    depths = [15, 16, 17, 18]
    assert windows.pruned(0, depths, 30, 9) == depths
    assert windows.pruned(60, depths, 30, 9) == [13, 14, 15, 16]
    assert windows.pruned(10**6, depths, 30, 9) == [9, 10, 11, 12]
    assert windows.pruned(5, [], 30, 9) == []
    with pytest.raises(ValueError, match="slides every 0"):
        windows.pruned(0, depths, 0, 9)
