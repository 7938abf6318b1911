"""Sizes are derived, printed and shrink with memory; what is computed does not depend on them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinyrun
import torch
from diffusers import StableDiffusion3Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

import flowrl.loop
from flowrl.loop import begin, iterate
from flowrl.models import DiffusersPolicy
from flowrl.recipe import SizesSpec
from flowrl.recipes.run import train
from flowrl.samplers import chains, laws, schedules, units
from flowrl.sizes import Sizes, cut, derive, describe


@settings(max_examples=150, deadline=None)
@given(
    prompts=st.integers(1, 12),
    group=st.integers(1, 12),
    updates=st.integers(1, 6),
    processes=st.integers(1, 5),
    slice=st.none() | st.integers(1, 40),
    batch=st.none() | st.integers(1, 100),
    most=st.integers(1, 32),
)
def test_every_unit_is_walked_once_and_parts_are_balanced(
    prompts: int, group: int, updates: int, processes: int, slice: int | None, batch: int | None, most: int
) -> None:
    count, spec = prompts * group, SizesSpec(prompts=prompts, group=group, slice=slice, batch=batch)
    if updates > count:
        with pytest.raises(ValueError, match=f"{updates} optimizer steps a rollout, but only {count} chains"):
            derive(spec, count, updates, processes, most)
        return
    sizes = derive(spec, count, updates, processes, most)
    plan = chains(schedules.sd3(2), laws.ode(), (), group)
    blocks = cut(plan, prompts, sizes, updates, processes)
    assert 1 <= sizes.slice <= sizes.batch and sizes.slice <= (slice or most) and sizes.batch <= (batch or count)
    assert torch.cat([b.units for b in blocks]).tolist() == units(plan, prompts).tolist()
    parts = [sum(len(b.units) for b in blocks if b.part == part) for part in range(updates)]
    assert sum(parts) == count and max(parts) - min(parts) <= 1
    assert all(0 < len(b.units) <= sizes.batch and b.owner < processes for b in blocks)
    for part in range(updates):
        dealt = Counter(b.owner for b in blocks if b.part == part)
        assert max(dealt.values()) - min(dealt[p] for p in range(processes)) <= 1


def test_sizes_are_derived_and_printed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    spec = SizesSpec(prompts=3, group=4)
    plan = chains(schedules.sd3(4), laws.flow_sde(0.7), (0, 1), 4)
    sizes = derive(spec, 12, 2, 1)
    assert sizes == Sizes(slice=6, batch=6)
    text = describe(sizes, cut(plan, 3, sizes, 2, 1), plan, 3, 1, 2)
    assert text == (
        "3 prompts x 4 images = 12 images an iteration on 1 process(es); rollout in 2 blocks of <= 6, "
        "training in slices of <= 6 rows (4 recorded calls), 2 optimizer step(s)"
    )
    with caplog.at_level(logging.INFO, logger="flowrl"):
        train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 0}, tinyrun.NFT))
    assert "2 prompts x 4 images = 8 images an iteration on 1 process(es)" in caplog.text
    # a frozen adapter costs nothing: it is the adapter switched off
    assert "weight set old: " in caplog.text and "reference" not in caplog.text


def test_text_encoders_run_once_a_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    encode = StableDiffusion3Pipeline.encode_prompt

    def counted(self: Any, prompt: list[str], *args: Any, **kwargs: Any) -> Any:
        seen.update(prompt)
        return encode(self, prompt, *args, **kwargs)

    monkeypatch.setattr(StableDiffusion3Pipeline, "encode_prompt", counted)
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 5, "policy.guidance": 2.0}))
    assert set(seen) == {*tinyrun.PROMPTS, ""} and set(seen.values()) == {1}


def short(policy: Any, most: Callable[[bool], int]) -> None:
    """Calls of more than most(with gradients) rows run out of memory."""
    predict = policy.predict

    def small(x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        if len(x) > most(torch.is_grad_enabled()):
            raise torch.OutOfMemoryError("injected")
        return predict(x, sigma, cond)

    policy.predict = small


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What every iteration from now on collects."""
    kept: list[Any] = []
    collect = flowrl.loop.collect
    monkeypatch.setattr(flowrl.loop, "collect", lambda *a, **k: kept.append(collect(*a, **k)) or kept[-1])
    return kept


def same_states(a: Any, b: Any) -> bool:
    scores = zip(a.outcome.scores.values(), b.outcome.scores.values(), strict=True)
    return (
        torch.equal(a.rollout.x, b.rollout.x)
        and torch.equal(a.rollout.u, b.rollout.u)
        and torch.equal(a.rollout.log_prob, b.rollout.log_prob)
        and all(torch.equal(x.values, y.values) for x, y in scores)
    )


def weights(parts: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for _, p in parts.policy.trainable()])


@pytest.mark.parametrize("spec", tinyrun.METHODS.values(), ids=tinyrun.METHODS)
def test_out_of_memory_in_the_rollout_restarts_with_half_sizes_and_the_same_noise(
    monkeypatch: pytest.MonkeyPatch, spec: Any
) -> None:
    kept, rows, ends = recorded(monkeypatch), [], []
    for sizes, most in ((Sizes(4, 4), 1), (Sizes(1, 1), 99)):
        parts = tinyrun.parts({"method": spec})
        short(parts.policy, lambda grad, most=most: most)
        session = begin(parts, sizes)
        rows.append([iterate(parts, session) for _ in range(2)])
        ends.append((weights(parts), session.sizes))
    assert same_states(kept[0], kept[2]) and same_states(kept[1], kept[3])
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1] == Sizes(1, 1)
    assert [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows[0]] == [
        {k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows[1]
    ]


def test_out_of_memory_in_training_goes_on_from_the_stored_states(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept, rows, ends, grad_rows = recorded(monkeypatch), [], [], []
    for most in (99, 1):
        parts = tinyrun.parts()
        short(parts.policy, lambda grad, most=most: most if grad else 99)
        parts.policy.network.register_forward_pre_hook(
            lambda m, a, k: grad_rows.append(len(k["hidden_states"])) if torch.is_grad_enabled() else None, with_kwargs=True
        )
        session = begin(parts, Sizes(4, 4))
        rows.append(iterate(parts, session))
        ends.append(weights(parts))
    assert same_states(kept[0], kept[1]), "the iteration went on from its stored states"
    assert rows[0]["anchored"] == 0.0 and rows[1]["anchored"] == 1.0 and rows[1]["ratio/first_max_abs"] == 0.0
    assert session.sizes == Sizes(1, 1), "halved as often as training needed"
    assert "out of memory: going on with slices of <= 1 rows" in caplog.text
    grad_rows.clear()
    assert iterate(parts, session)["anchored"] == 0.0 and set(grad_rows) == {1}


@pytest.mark.parametrize("spec", [tinyrun.MIX, tinyrun.NFT], ids=["mix_grpo", "diffusion_nft"])
def test_a_single_row_that_does_not_fit_is_a_sentence(spec: Any) -> None:
    for phase, told in (
        (False, "out of memory with one row a call; use a smaller image"),
        (True, "out of memory while training on a single row"),
    ):
        parts = tinyrun.parts({"method": spec})
        short(parts.policy, lambda grad, phase=phase: 0 if grad == phase else 99)
        with pytest.raises(torch.OutOfMemoryError, match=told):
            iterate(parts, begin(parts, Sizes(4, 4)))


def test_out_of_memory_in_the_held_out_evaluation_shrinks_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predict = DiffusersPolicy.predict

    def small(self: Any, x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("injected")
        return predict(self, x, sigma, cond)

    monkeypatch.setattr(DiffusersPolicy, "predict", small)
    result = train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 1}))
    assert result.after is not None and tinyrun.final(tmp_path / "run")[1]["sizes"] == [1, 2]


def gradient(changes: dict[str, Any], sizes: Sizes) -> torch.Tensor:
    """Of one optimizer step: plain descent with rate 1 moves the weights by it. The reward does not look at the images, whose
    pixels are
    rounded and so make a small difference of states a large one of scores."""
    parts = tinyrun.parts(
        {**changes, "optim.max_norm": 1e9, "optim.lr": 1.0, "method.args.updates": 1},
        reward=lambda images, prompts, metadata: [float(i * i % 7) for i in range(len(images))],
    )
    session = begin(parts, sizes)
    session.optimizer = torch.optim.SGD(session.weights.parameters, lr=1.0)
    start = weights(parts)
    iterate(parts, session)
    return start - weights(parts)


def test_gradients_do_not_depend_on_checkpointing_or_slices() -> None:
    whole = gradient({}, Sizes(8, 8))
    assert whole.abs().max() > 1e-3
    assert torch.equal(whole, gradient({"policy.checkpointing": True}, Sizes(8, 8)))
    for sizes in (Sizes(3, 8), Sizes(2, 3), Sizes(1, 1)):
        # float32 sums in another order, and weights of the order of 1 that round the difference taken above
        assert (whole - gradient({}, sizes)).norm() <= 1e-5 * whole.norm(), sizes
