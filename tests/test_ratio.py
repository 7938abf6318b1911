"""Before the first update the ratio of replay and rollout is exactly 1, and where it is not the run stops and says what differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tinyrun
import torch

import flowrl.loop
from flowrl import advantage, objectives
from flowrl.loop import begin, iterate
from flowrl.objectives import Clip
from flowrl.recipes.run import train
from flowrl.replay import RatioError
from flowrl.samplers import Plan, Rollout, chains, comb, laws, tree
from flowrl.sizes import Sizes
from flowrl.types import Credit, Method, Outcome, Queries, State

PLANS: dict[str, Callable[[torch.Tensor], Plan]] = {
    "chains": lambda sigmas: chains(sigmas, laws.flow_sde(0.7), (0, 1, 2), 4),
    "tree": lambda sigmas: tree(sigmas, laws.flow_sde(0.7), (0, 1, 2), {0: 2, 1: 2, 2: 2}),
    "comb": lambda sigmas: comb(sigmas, laws.flow_sde(0.7), (0, 1, 2), 3),
}
HARD = {"policy.dtype": "bfloat16", "policy.guidance": 4.5, "policy.checkpointing": True}


def method(plan: str, updates: int = 2) -> Method:
    return Method(lambda iteration, sigmas, slot: PLANS[plan](sigmas), advantage.Group(), objectives.clip(1e-4), updates=updates)


def watched(parts: Any) -> list[tuple[bool, int]]:
    """(with gradients, rows) of every call of the network from now on."""
    calls: list[tuple[bool, int]] = []

    def note(module: object, args: object, kwargs: dict[str, Any]) -> None:
        calls.append((torch.is_grad_enabled(), len(kwargs["hidden_states"])))

    parts.policy.network.register_forward_pre_hook(note, with_kwargs=True)
    return calls


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("changes", [{}, HARD], ids=["float32", "bf16-cfg-checkpointing"])
def test_ratio_is_one_before_any_update(plan: str, changes: dict[str, Any]) -> None:
    parts = tinyrun.parts(changes, method(plan))
    calls = watched(parts)
    row = iterate(parts, begin(parts, Sizes(slice=3, batch=4)))
    assert row["ratio/first_max_abs"] == 0.0 and row["clip/pre_update_fraction"] == 0.0 and row["anchored"] == 0.0
    assert row["ratio/max_abs"] > 0, "the second update must be off-policy, or the test sees nothing"
    # the record came from forwards without gradients, the replay from fresh ones with them, a call a slice
    replayed, walked = [n for grad, n in calls if grad], [n for grad, n in calls if not grad]
    most = 3 * (2 if changes else 1)
    assert replayed and max(replayed) <= most and sum(replayed) <= sum(walked)
    if plan == "chains":
        # 4 chains in slices of 3 and 1, three steps, two prompts; quiet calls are larger
        assert len(replayed) == 2 * 3 * 2 and max(walked) > most


@dataclass(frozen=True)
class Between:
    """Credit, with something done between rollout and replay."""

    act: Callable[[], None]

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        self.act()
        return advantage.Group().apply(outcome, state)


def tampered(act: Callable[[Any], None]) -> Any:
    held: list[Any] = []
    parts = tinyrun.parts({}, replace(method("chains"), advantage=Between(lambda: act(held[0]))))
    held.append(parts.policy)
    return parts


def nudge(name: str) -> Callable[[Any], None]:
    def act(policy: Any) -> None:
        with torch.no_grad():
            policy.network.get_parameter(name).view(-1)[0] += 1e-3

    return act


def spoil(policy: Any) -> None:
    with torch.no_grad():
        policy.network.proj_out.bias[0] = float("nan")


def merge(policy: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in policy.network.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


BEFORE = r"before the first update log p differs from the rollout's by up to ([\d.e-]+|nan), not 0"


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (
            nudge("transformer_blocks.1.attn.to_q.lora_B.default.weight"),
            rf"{BEFORE}: module transformer_blocks\.1\.attn\.to_q\.lora_B\.default is the first that differs",
        ),
        (nudge("proj_out.bias"), rf"{BEFORE}: module proj_out is the first that differs"),
        (spoil, rf"{BEFORE}: the weight 'proj_out\.bias' is not finite \(1 of 16 values are NaN or infinite\)$"),
        (
            merge,
            r"the replay's predictions carry no gradient to the trained weights: module \S+\.lora_\w+\.default ran in the rollout "
            r"and not in the replay: adapters were merged, switched off or replaced in between",
        ),
    ],
    ids=["adapter", "base", "spoilt", "merged"],
)
def test_a_weight_changed_between_rollout_and_replay_is_named(act: Callable[[Any], None], said: str) -> None:
    parts = tampered(act)
    with pytest.raises(RatioError, match=said):
        iterate(parts, begin(parts, Sizes(4, 4)))


def test_the_module_that_makes_nan_of_sound_weights_is_named() -> None:
    parts = tinyrun.parts({}, method("chains"))
    layer = parts.policy.network.transformer_blocks[1].ff.net[2]
    layer.register_forward_hook(lambda module, args, answer: answer * float("inf") * 0)
    with pytest.raises(RatioError, match=rf"{BEFORE}: module transformer_blocks\.1\.ff\.net\.2 is the first whose values are not"):
        iterate(parts, begin(parts, Sizes(4, 4)))


def altered(monkeypatch: pytest.MonkeyPatch, change: Callable[[Rollout], Rollout]) -> None:
    """Every record is changed before it is replayed."""
    collect = flowrl.loop.collect

    def changed(*args: Any, **kwargs: Any) -> Any:
        got = collect(*args, **kwargs)
        return replace(got, rollout=change(got.rollout))

    monkeypatch.setattr(flowrl.loop, "collect", changed)


def rounded(record: Rollout) -> Rollout:
    return replace(record, x=record.x.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (rounded, "input hidden_states is the first that differs between rollout and replay: the stored state was rounded"),
        (
            lambda record: replace(record, u=record.u.bfloat16().float()),
            "every module agrees: the difference lies outside the network",
        ),
    ],
    ids=["states", "predictions"],
)
def test_a_record_in_half_precision_is_named(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Rollout], Rollout], named: str
) -> None:
    altered(monkeypatch, change)
    parts = tinyrun.parts({}, method("chains"))
    with pytest.raises(RatioError, match=named):
        iterate(parts, begin(parts, Sizes(4, 4)))


@dataclass(frozen=True)
class Recut(Clip):
    """Replays single rows whatever the rollout's slices were."""

    def queries(self, rollout: Rollout, credit: Credit, noise: Any) -> Queries:
        q = super().queries(rollout, credit, noise)
        cut = [(row, block) for rows, block in zip(q.slices, q.block, strict=True) for row in rows.split(1)]
        return replace(q, slices=[row for row, _ in cut], block=[block for _, block in cut])


def test_one_row_against_four_is_named() -> None:
    parts = tinyrun.parts({"policy.dtype": "bfloat16"}, replace(method("chains"), objective=Recut(1e-4, 1e-4)))
    said = r"input hidden_states has shape \[4, .*\] in the rollout and \[1, .*the calls hold different rows"
    with pytest.raises(RatioError, match=said):
        iterate(parts, begin(parts, Sizes(4, 4)))


def test_the_optimizer_has_not_moved_when_the_ratio_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    altered(monkeypatch, rounded)
    parts = tinyrun.parts({}, method("chains"))
    before = [p.detach().clone() for _, p in parts.policy.trainable()]
    session = begin(parts, Sizes(4, 4))
    with pytest.raises(RatioError):
        iterate(parts, session)
    assert all(torch.equal(p, q) and p.grad is None for (_, p), q in zip(parts.policy.trainable(), before, strict=True))
    assert not session.optimizer.state and session.iteration == 0


def test_the_ratio_is_checked_at_every_start_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 1}))
    altered(monkeypatch, rounded)
    with pytest.raises(RatioError, match="input hidden_states"):
        train(resume=tmp_path / "run", overrides={"run.iterations": 2})


def test_anchor_replay_trains_on_recomputed_predictions_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    altered(monkeypatch, rounded)
    parts = tinyrun.parts({"run.anchor": "replay"}, method("chains"))
    row = iterate(parts, begin(parts, Sizes(4, 4)))
    assert row["anchored"] == 1.0 and row["ratio/first_max_abs"] == 0.0 and row["ratio/max_abs"] > 0
