"""Each check of the conformance suite sees the fault it is there for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families.sd3 import CASES
from test_conformance import subject
from torch import Tensor

from flowrl import export
from flowrl.conformance import CHECKS, Subject, examine
from flowrl.conformance.subject import run
from flowrl.models import load_policy
from flowrl.models.policy import DiffusersPolicy
from flowrl.models.prompts import Cond
from flowrl.recipe import PolicySpec

Plant = Callable[[DiffusersPolicy], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """SD3, drawn by its own pipeline once for all faults."""
    one = subject(CASES[0], tmp_path_factory.mktemp("sd3"))
    run(one.jobs, one.work)
    return one


def planted(made: Subject, plant: Plant) -> Subject:
    """The same subject, whose policies have the fault."""

    def build(spec: PolicySpec) -> DiffusersPolicy:
        policy = load_policy(spec)
        plant(policy)
        return policy

    faulty = Subject(made.folder, build, made.spec, made.prompts, made.images, made.work)
    faulty.jobs = made.jobs
    return faulty


def call(change: Callable[[Callable[..., Tensor], Tensor, Tensor, Mapping[str, Tensor]], Tensor]) -> Plant:
    """A fault in a network call."""

    def plant(policy: DiffusersPolicy) -> None:
        right: Any = policy.family.call
        policy.family.call = lambda network, x, sigma, given, guidance: change(
            lambda x, sigma, given: right(network, x, sigma, given, guidance), x, sigma, given
        )

    return plant


wrong_sign = call(lambda right, x, sigma, given: -right(x, sigma, given))
unit_time = call(lambda right, x, sigma, given: right(x, sigma / 1000, given))
leaky = call(lambda right, x, sigma, given: right(x - x.mean(0, keepdim=True) * 1e-3, sigma, given))
mean_level = call(lambda right, x, sigma, given: right(x, sigma.mean().expand_as(sigma), given))
detached = call(lambda right, x, sigma, given: right(x, sigma, given).detach())


def wrong_shift(policy: DiffusersPolicy) -> None:
    policy.pipe.scheduler.set_shift(2.5)


def swapped_halves(policy: DiffusersPolicy) -> None:
    right = policy.encode

    def encode(*given: Any, **named: Any) -> Cond:
        cond = right(*given, **named)
        return cond if cond.negatives is None else replace(cond, rows=cond.negatives, negatives=cond.rows)

    policy.encode = encode


def zero_based(policy: DiffusersPolicy) -> None:
    right = policy.family.guider
    policy.family.guider = replace(right, combine=lambda p, n, w, x, s: p + w * (p - n))


def no_vae_shift(policy: DiffusersPolicy) -> None:
    policy.pipe.vae.register_to_config(shift_factor=0.0)


def no_clamp(policy: DiffusersPolicy) -> None:
    right = policy.family.decode
    policy.family.decode = lambda latents: right(latents) * 2 - 0.5


def squared_pixels(policy: DiffusersPolicy) -> None:
    right = policy.decode
    policy.decode = lambda x0, cond=None: right(x0, cond).flatten(1, 2)


def floored(policy: DiffusersPolicy) -> None:
    policy.decode = lambda x0, cond=None: (policy.images(x0, cond) * 254).to(torch.uint8)


def company(policy: DiffusersPolicy) -> None:
    right = policy.encode

    def encode(prompts: list[str], *given: Any) -> Cond:
        cond = right(prompts, *given)
        return replace(cond, rows=tuple({k: p + 1e-4 * (len(prompts) - 1) for k, p in row.items()} for row in cond.rows))

    policy.encode = encode


def drifting(policy: DiffusersPolicy) -> None:
    """Given latents that the state moves."""
    right = policy.family.whole
    policy.family.whole = lambda x, given: torch.cat([right(x, given), x[:, :1]], 1)


def thawed(policy: DiffusersPolicy) -> None:
    next(p for n, p in policy.modules["transformer"].named_parameters() if "lora" not in n).requires_grad_(True)
    named = policy.trainable()
    policy.trainable = lambda: [pair for pair in named if "lora" in pair[0]]


def half_trained(policy: DiffusersPolicy) -> None:
    """A layer whose adapter is cut out of the graph."""
    layer = policy.modules["transformer"].transformer_blocks[0].attn.to_q
    right = layer.forward
    layer.forward = lambda x: right(x).detach()


def noisy_answer(policy: DiffusersPolicy) -> None:
    """A kernel that is not deterministic."""
    right, draw = policy._lane, torch.Generator().manual_seed(0)
    policy._lane = lambda x, *given: right(x, *given) + 1e-6 * torch.randn(x.shape, generator=draw)


FAULTS: list[tuple[str, Plant]] = [
    ("schedule", wrong_shift),
    ("pipeline", wrong_sign),
    ("pipeline", wrong_shift),
    ("pipeline", unit_time),
    ("pipeline", swapped_halves),
    ("pipeline", zero_based),
    ("pipeline", no_vae_shift),
    ("ratio", noisy_answer),
    ("ratio", detached),
    ("encode", company),
    ("encode", leaky),
    ("decode", no_clamp),
    ("decode", squared_pixels),
    ("decode", floored),
    ("frozen", drifting),
    ("lanes", mean_level),
    ("gradients", thawed),
    ("gradients", half_trained),
    ("adapter", wrong_sign),
]


@pytest.mark.parametrize(("check", "plant"), FAULTS)
def test_a_planted_fault_fails_its_check(made: Subject, check: str, plant: Plant) -> None:
    assert all(finding.passed for finding in CHECKS[check](made))
    try:
        assert not all(finding.passed for finding in CHECKS[check](planted(made, plant)))
    except (RuntimeError, AssertionError) as error:
        assert "shape" in str(error) or "size" in str(error), error  # a wrong shape cannot even be compared


@pytest.mark.parametrize("check", ["quiet", "memory"])
def test_a_wrong_step_or_state_is_seen(made: Subject, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowrl.conformance import checks

    right_law, right_record = checks._law, checks.record
    monkeypatch.setattr(checks, "_law", lambda policy, level: right_law(policy, level + 0.1))
    monkeypatch.setattr(checks, "record", lambda policy, cond: replace(ro := right_record(policy, cond), x=ro.x.double()))
    assert not all(finding.passed for finding in CHECKS[check](made))


def test_a_lora_with_a_missing_layer_is_seen(made: Subject, tmp_path: Path) -> None:
    """The pipeline loads a file without one layer: its image is another."""
    from safetensors.torch import load_file, save_file

    faulty = Subject(made.folder, load_policy, made.spec, made.prompts, made.images, tmp_path)
    jobs = faulty.jobs
    file = Path(str(jobs[-1]["lora"])) / export.LORA_FILE
    weights = load_file(file)
    with open(file, "rb") as handle:
        import json
        import struct

        (size,) = struct.unpack("<Q", handle.read(8))
        metadata = json.loads(handle.read(size)).get("__metadata__")
    left = {name: p for name, p in weights.items() if "transformer_blocks.0.attn.to_v" not in name}
    assert len(left) == len(weights) - 2
    save_file(left, file, metadata)
    run(jobs, tmp_path)
    assert not all(finding.passed for finding in CHECKS["adapter"](faulty))


def test_the_first_module_that_differs_is_named(made: Subject) -> None:
    def plant(policy: DiffusersPolicy) -> None:
        with torch.no_grad():
            policy.modules["transformer"].transformer_blocks[1].ff.net[2].weight.mul_(1.5)

    said = [f.said for f in CHECKS["pipeline"](planted(made, plant)) if not f.passed]
    assert any("first module that differs: transformer_blocks.1.ff.net.2, of norm" in line for line in said), said


def spoilt(policy: DiffusersPolicy) -> None:
    with torch.no_grad():
        policy.modules["transformer"].transformer_blocks[1].ff.net[2].weight[0, 0] = float("nan")


def test_a_weight_that_is_no_number_is_named_and_nothing_is_well_because_of_it(made: Subject) -> None:
    found = list(examine(planted(made, spoilt)))
    assert found[0].check == "weights" and not found[0].passed
    assert "'transformer_blocks.1.ff.net.2.weight' of transformer is not finite (1 of" in found[0].said
    # of these none compares a prediction of ours (the pipeline drew with sound weights)
    untouched = {"encode, alone and together", "decode, shape", "frozen, size", "frozen, bits", "gradients, frozen", "memory"}
    untouched.add("adapter, matters")
    well = {f.check for f in found if f.passed}
    assert {name for name in well if not name.startswith("schedule")} <= untouched, well
    said = [f.said for f in found if f.check.startswith("pipeline") and f.check.endswith("latents")]
    assert all("first module that is not finite: transformer_blocks.1.ff.net.2, of norm nan here" in line for line in said), said


def test_the_weights_of_other_parts_are_looked_at(made: Subject) -> None:
    def plant(policy: DiffusersPolicy) -> None:
        with torch.no_grad():
            policy.pipe.vae.decoder.conv_in.bias[0] = float("inf")

    (found,) = CHECKS["weights"](planted(made, plant))
    assert not found.passed and "'decoder.conv_in.bias' of vae is not finite" in found.said
