"""Names, weights, sums, and any function as a reward."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl import rewards
from flowrl.rewards import Reward, RewardError, Samples, Scores, State
from flowrl.rewards.combine import hierarchy
from flowrl.rewards.row import Row

ROOT = Path(__file__).resolve().parent.parent


def samples(prompts: int = 2, leaves: int = 3, scored: list[list[bool]] | None = None, frames: int | None = None) -> Samples:
    """Pixels of leaf (p, l) all equal 10 p + l."""
    middle = (4, 5) if frames is None else (frames, 4, 5)
    level = 10 * torch.arange(prompts)[:, None] + torch.arange(leaves)
    pixels = level.to(torch.uint8).reshape(prompts, leaves, *[1] * (len(middle) + 1)).expand(prompts, leaves, *middle, 3)
    mask = torch.ones(prompts, leaves, dtype=torch.bool) if scored is None else torch.tensor(scored)
    return Samples(
        pixels, [f"p{i}" for i in range(prompts)], [{"n": i} for i in range(prompts)], mask, torch.zeros(leaves, dtype=torch.long)
    )


def score(function: Callable[..., Any], given_samples: Samples | None = None) -> Scores:
    reward = rewards.make(function)
    return reward(given_samples or samples(), reward.init())[0]


def level(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    return [float(image.flat[0]) for image in images]


# --- functions ----------------------------------------------------------------------------------------------------------------


def test_a_function_sees_scored_leaves_only_and_prompt_by_prompt() -> None:
    seen: list[Any] = []

    def spy(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        seen.append((images.shape, images.dtype, prompts, metadata))
        return level(images, prompts, metadata)

    scores = score(spy, samples(scored=[[True, False, True], [False, True, True]]))
    assert seen == [((4, 4, 5, 3), np.uint8, ["p0", "p0", "p1", "p1"], [{"n": 0}, {"n": 0}, {"n": 1}, {"n": 1}])]
    expected = torch.tensor([[0, math.nan, 2], [math.nan, 11, 12]])
    assert torch.equal(scores.values.isnan(), expected.isnan()) and torch.equal(scores.values.nan_to_num(), expected.nan_to_num())
    assert torch.equal(scores.valid, ~expected.isnan()) and scores.values.dtype == torch.float32


def test_a_video_reaches_the_function_with_its_frames() -> None:
    scores = score(lambda images, prompts, metadata: [image.shape[0] for image in images], samples(frames=7))
    assert scores.values.tolist() == [[7, 7, 7], [7, 7, 7]]


def test_nothing_to_score_does_not_call_the_function() -> None:
    scores = score(lambda *_: 1 / 0, samples(scored=[[False] * 3] * 2))
    assert not scores.valid.any() and scores.values.isnan().all()


def test_a_function_cannot_change_the_samples() -> None:
    def vandal(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[int]:
        images[:] = 255
        metadata[0]["n"] = "changed"
        prompts.clear()
        return [0] * len(images)

    before = samples()
    score(vandal, before)
    assert before.pixels.max() == 12 and before.metadata[0] == {"n": 0} and len(before.prompts) == 2


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        np.array,
        lambda x: np.array(x, dtype=np.float16),
        torch.tensor,
        lambda x: torch.tensor(x).bfloat16().requires_grad_(),
        lambda x: [torch.tensor([v]) for v in x],
        lambda x: np.array(x, dtype=int),
        lambda x: np.array(x, dtype=object),
        lambda x: list(np.float32(x)),
    ],
)
def test_every_kind_of_result_gives_the_same_scores(kind: Callable[..., Any]) -> None:
    assert score(lambda *args: kind(level(*args))).values.tolist() == [[0, 1, 2], [10, 11, 12]]


def test_truth_values_are_numbers() -> None:
    assert score(lambda images, *_: [bool(image.max() > 1) for image in images]).values.tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("missing", [None, math.nan, np.nan, torch.tensor(math.nan)])
def test_what_could_not_be_scored_is_invalid_counted_and_warned_about_once(missing: Any) -> None:
    reward = rewards.make(lambda images, prompts, metadata: [missing, 1, 2, 3, missing, 5], name="judge")
    with pytest.warns(UserWarning, match=r"reward 'judge' could not score 2 of 6 images") as caught:
        scores, state = reward(samples(), reward.init())
    assert len(caught) == 1
    assert scores.valid.tolist() == [[False, True, True], [True, False, True]]
    assert scores.values[~scores.valid].isnan().all() and state == {"scored": 6, "failed": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, state = reward(samples(), state)
    assert state == {"scored": 12, "failed": 4}


def test_state_is_returned_and_not_changed() -> None:
    reward = rewards.make(level)
    state: State = reward.init()
    reward(samples(), state)
    assert state == {"scored": 0, "failed": 0}


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        ([1, 2], ValueError, "reward 'judge' returned 2 scores for 6 images; return one number an image"),
        ([1] * 7, ValueError, "returned 7 scores for 6 images"),
        ([], ValueError, "returned 0 scores for 6 images"),
        (np.zeros((6, 1)), ValueError, r"returned an array of shape \[6, 1\]; return shape \[N\]"),
        (torch.zeros(2, 3), ValueError, r"array of shape \[2, 3\]"),
        (0.5, TypeError, r"reward 'judge' returned 0.5 \(float\); return a list, an array or a tensor of N numbers"),
        (None, TypeError, r"returned None \(NoneType\)"),
        ("good", TypeError, r"returned 'good' \(str\)"),
        ({"a": 1}, TypeError, r"\(dict\)"),
        (np.array(["a"] * 6), TypeError, r"\(ndarray\)"),
        ((np.zeros(6), {}), TypeError, r"returned a pair \(scores, dict\); return the scores alone"),
        ([1, 2, "3", 4, 5, 6], TypeError, r"returned '3' \(str\) for image 2; return a number, or NaN or None"),
        ([1, [2, 3], 3, 4, 5, 6], TypeError, r"returned \[2, 3\] \(list\) for image 1"),
        ([1, 2, 3, 4, 5, math.inf], ValueError, "returned inf for image 5 of 6, which is infinite in float32"),
        ([1, 2, 3, 4, 5, 1e39], ValueError, r"returned 1e\+39 for image 5"),
    ],
)
def test_a_bad_result_is_a_sentence(result: Any, kind: type[Exception], message: str) -> None:
    reward = rewards.make(lambda *_: result, name="judge")
    with pytest.raises(kind, match=message):
        reward(samples(), reward.init())


def test_an_exception_inside_keeps_its_cause_and_gets_the_rewards_name() -> None:
    reward = rewards.make(lambda *_: {}["key"], name="judge")
    with pytest.raises(RewardError, match="reward 'judge' failed on 6 images: KeyError: 'key'") as caught:
        reward(samples(), reward.init())
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(2, 3, 4, 5, 3)}, r"pixels are torch.float32 \[2, 3, 4, 5, 3\]; give uint8"),
        ({"pixels": torch.zeros(2, 3, 3, 4, 5, dtype=torch.uint8)}, r"pixels are torch.uint8 \[2, 3, 3, 4, 5\]"),
        ({"scored": torch.ones(2, 2, dtype=torch.bool)}, r"scored is torch.bool \[2, 2\]; give bool \[P, L\] = \[2, 3\]"),
        ({"scored": torch.ones(2, 3)}, "scored is torch.float32"),
        ({"prompts": ["a"]}, "pixels for 2 prompts, but 1 prompts and 2 metadata"),
        ({"metadata": []}, "2 prompts and 0 metadata"),
        ({"rival": torch.zeros(2)}, r"rival has shape \[2\]; give \[L\] = \[3\]"),
    ],
)
def test_samples_that_do_not_fit_together_do_not_exist(change: dict[str, Any], message: str) -> None:
    good = samples()
    fields = {name: getattr(good, name) for name in ("pixels", "prompts", "metadata", "scored", "rival")}
    with pytest.raises(ValueError, match=message):
        Samples(**(fields | change))


# --- sums ---------------------------------------------------------------------------------------------------------------------

number = st.one_of(st.none(), st.floats(-1e3, 1e3, width=32))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_total_equals_a_loop(names: int, prompts: int, leaves: int, data: st.DataObject) -> None:
    grid = st.lists(st.lists(number, min_size=leaves, max_size=leaves), min_size=prompts, max_size=prompts)
    raw = {f"r{i}": data.draw(grid) for i in range(names)}
    weights = {name: data.draw(st.floats(-10, 10).filter(bool)) for name in raw}
    scores = {}
    for name, rows in raw.items():
        values = torch.tensor([[math.nan if v is None else v for v in row] for row in rows])
        scores[name] = Scores(values, ~values.isnan())
    total = rewards.total(scores, weights)
    for p in range(prompts):
        for leaf in range(leaves):
            cells = [raw[name][p][leaf] for name in raw]
            if any(cell is None for cell in cells):
                assert not total.valid[p, leaf] and total.values[p, leaf].isnan()
            else:
                expected = math.fsum(weights[name] * raw[name][p][leaf] for name in raw)
                # float32 rounds once (6e-8 of the result); the float64 sum before it is exact to 1e-9 here
                assert total.valid[p, leaf] and abs(total.values[p, leaf].item() - expected) <= 6e-8 * abs(expected) + 1e-9
    assert total.values.dtype == torch.float32 and all(total.parts[name] is scores[name].values for name in raw)


def test_total_keeps_parts_of_parts_by_name() -> None:
    one = torch.ones(1, 2)
    total = rewards.total({"a": Scores(one, one.bool(), {"x": 3 * one})}, {"a": 2.0})
    assert total.values.tolist() == [[2, 2]] and set(total.parts) == {"a", "a/x"} and total.parts["a/x"].tolist() == [[3, 3]]


@pytest.mark.parametrize(
    ("scores", "weights", "message"),
    [
        ({}, {}, "no scores to add up"),
        ({"a": (1, 2)}, {"b": 1.0}, r"scores are named \['a'\] but weights \['b'\]"),
        ({"a": (1, 2)}, {"a": 1.0, "b": 1.0}, "give one weight a score"),
        ({"a": (1, 2), "b": (2, 1)}, {"a": 1.0, "b": 1.0}, "scores differ in shape"),
        ({"a": (1, 2)}, {"a": math.nan}, "the weight of 'a' is nan; give a finite number"),
    ],
)
def test_a_sum_that_makes_no_sense_is_a_sentence(scores: dict[str, Any], weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.total({n: Scores(torch.zeros(s), torch.ones(s).bool()) for n, s in scores.items()}, weights)


# --- names --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("SCALE = 2\n")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom helper import SCALE\n"
        "def bright(images, prompts, metadata):\n    return [SCALE * int(i.max()) for i in images]\n"
        "@dataclass\nclass Judge:\n    name: str = 'kept'\n    def init(self):\n        return {}\n"
        "    def __call__(self, samples, state):\n        return 'scores', state\n"
        "judge = Judge()\nnumber = 3\n"
    )
    sub = tmp_path / "a=b"
    sub.mkdir()
    (sub / "mine.py").write_text("def dark(images, prompts, metadata):\n    return [-int(i.max()) for i in images]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip", ("clip", 1.0)),
        ("clip=0.5", ("clip", 0.5)),
        ("clip=0", ("clip", 0.0)),
        (" clip=-2e-1 ", ("clip", -0.2)),
        ("clip:ViT-B-32/laion2b_s34b_b79k=3", ("clip:ViT-B-32/laion2b_s34b_b79k", 3.0)),
        ("clip:local-dir:/a=1/b", ("clip:local-dir:/a=1/b", 1.0)),
        ("mine.py:bright", ("mine.py:bright", 1.0)),
        ("a=b/mine.py:dark", ("a=b/mine.py:dark", 1.0)),
        ("a=b/mine.py:dark=2", ("a=b/mine.py:dark", 2.0)),
        ("package.module:f=2", ("package.module:f", 2.0)),
    ],
)
def test_a_spec_is_a_name_and_a_weight(folder: Path, text: str, expected: tuple[str, float]) -> None:
    assert rewards.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("clip=nan", ValueError, "is nan; give a finite number"),
        ("clip=inf", ValueError, "is inf; give a finite number"),
        ("clip=much", ValueError, "the weight of reward 'clip=much' is 'much', not a number; write NAME=0.5"),
        ("clip=", ValueError, "is '', not a number"),
        ("clop", ValueError, "no reward 'clop'; did you mean clip"),
        ("jpeg_compresibility", ValueError, "did you mean jpeg_compressibility"),
        ("zzzz", ValueError, "known are shapes, shapes_video, clip, jpeg_compressibility"),
        ("", ValueError, "there is no reward ''"),
        ("clip:", ValueError, "ends in ':' but names no variant"),
        ("none.py:f", FileNotFoundError, r"reward 'none.py:f': there is no file 'none.py' \(looked in "),
        ("mine.py", ValueError, "names a file but no function in it; write mine.py:FUNCTION"),
    ],
)
def test_a_bad_spec_is_a_sentence(folder: Path, text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        rewards.parse(text)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("mine.py:brigth", ValueError, "'mine.py:brigth': mine.py has no 'brigth'; did you mean bright"),
        ("mine.py:zzz", ValueError, "it has Judge, SCALE, bright, dataclass, judge, number"),
        ("mine.py:number", TypeError, "is a int, which cannot be called; give a function"),
        ("mine.py:Judge", TypeError, "is a class; give an instance"),
        ("no_such_module:f", ValueError, "there is no module 'no_such_module'; .*PYTHONPATH.*file.py:function"),
        ("clop:ViT-B-32", ValueError, "there is no reward 'clop:ViT-B-32'; did you mean clip"),
        ("clop:soft", ValueError, "there is no module 'clop'; did you mean clip"),
        ("math:cosine", ValueError, "math has no 'cosine'; did you mean .*cos"),
        ("jpeg_compressibility:80", ValueError, "has no variants, but 'jpeg_compressibility:80' asks for '80'"),
    ],
)
def test_what_cannot_be_made_is_a_sentence(folder: Path, text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        rewards.make(text)


def test_a_file_gives_a_reward_named_as_written(folder: Path) -> None:
    bright, dark = rewards.make("mine.py:bright"), rewards.make("a=b/mine.py:dark")
    assert isinstance(bright, Reward) and (bright.name, dark.name) == ("mine.py:bright", "a=b/mine.py:dark")
    assert bright(samples(), bright.init())[0].values.tolist() == [[0, 2, 4], [20, 22, 24]]
    assert dark(samples(), dark.init())[0].values.tolist() == [[0, -1, -2], [-10, -11, -12]]
    assert str(folder) not in sys.path


def test_a_file_that_fails_to_load_says_why_itself(folder: Path) -> None:
    (folder / "broken.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        rewards.make("broken.py:f")
    assert not [name for name in sys.modules if name.startswith("broken_")] and str(folder) not in sys.path


def test_a_module_whose_own_import_fails_says_why_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    (folder / "needs_more.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        rewards.make("needs_more:f")


def test_a_reward_object_is_used_as_it_is(folder: Path) -> None:
    judge = rewards.make("mine.py:judge")
    assert judge.name == "kept" and rewards.make(judge) is judge


def test_a_module_and_a_function_give_rewards() -> None:
    assert rewards.make(level).name == "level" and rewards.make(level, name="mean").name == "mean"
    made = rewards.make(f"{rewards.__name__}.rules.jpeg:jpeg_compressibility")
    assert made(samples(), made.init())[0].valid.all()
    with pytest.raises(TypeError, match="cannot be called"):
        rewards.make(3)  # pyright: ignore[reportArgumentType]


def test_a_row_with_variants_is_called_with_the_variant(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "rows.py").write_text(
        "def factory(kind='soft', place=None):\n"
        "    return lambda images, prompts, metadata: [{'soft': 1, 'hard': 2}[kind]] * len(images)\n"
    )
    monkeypatch.setitem(rewards.TABLE, "world", Row("rows.py:factory", "", "soft or hard"))
    monkeypatch.setitem(rewards.TABLE, "placed", Row("rows.py:factory", "", "soft or hard", placed=True))
    for spec, expected in (("world", 1), ("world:hard", 2), ("placed:hard", 2)):
        made = rewards.make(spec)
        assert made.name == spec and made(samples(), made.init())[0].values.eq(expected).all()


def test_importing_rewards_and_parsing_is_cheap() -> None:
    code = (
        "import sys, flowrl.rewards as r; r.parse('clip=0.5'); "
        "heavy = {'open_clip', 'transformers', 'torchvision', 'PIL', 'datasets', 'flowrl.types', 'flowrl.samplers'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=True)
    assert out.stdout.strip() == "[]"


def ruled_as(rules: dict[str, rewards.Rule], **given_scores: list[float]) -> dict[str, list[float]]:
    made = {name: Scores(torch.tensor([v]), ~torch.tensor([v]).isnan()) for name, v in given_scores.items()}
    found = rewards.ruled(made, rules)
    assert all(s.valid.equal(~s.values.isnan()) for s in found.values())
    return {name: s.values[0].tolist() for name, s in found.items()}


def test_a_threshold_makes_a_score_0_or_1() -> None:
    found = ruled_as({"a": rewards.Rule(threshold=0.5)}, a=[0.4, 0.5, 0.6, math.nan])
    assert found["a"][:3] == [0, 0, 1] and math.isnan(found["a"][3])


def test_a_gate_lets_what_comes_after_it_count_only_where_it_is_open() -> None:
    rules = {"safe": rewards.Rule(gate=0.5), "right": rewards.Rule(gate=1.0, threshold=0.2)}
    found = ruled_as(rules, before=[7.0] * 4, safe=[0.5, 0.9, 0.1, 1.0], right=[1.0, 0.5, 1.0, 1.0], fine=[3.0] * 4)
    assert found["before"] == [7] * 4 and found["safe"] == pytest.approx([0.5, 0.9, 0.1, 1.0])
    assert found["right"] == [1, 1, 0, 1], "its own gate looks at the score before the threshold"
    assert found["fine"] == [3, 0, 0, 3]


def test_what_is_behind_a_gate_nobody_could_read_is_invalid() -> None:
    found = ruled_as({"safe": rewards.Rule(gate=0.5)}, safe=[math.nan, 1.0], fine=[1.0, 2.0])
    assert math.isnan(found["fine"][0]) and found["fine"][1] == 2


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6), st.floats(0, 1), st.floats(0.01, 1))
def test_gates_never_help(scores: list[float], gate: float, weight: float) -> None:
    found = ruled_as({"a": rewards.Rule(gate=gate)}, a=scores, b=[weight] * len(scores))
    assert all(0 <= value <= weight + 1e-6 for value in found["b"])
    assert [value > 0 for value in found["b"]] == [np.float32(s) >= gate for s in scores]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_rule_without_a_number_is_refused(number: float) -> None:
    for field in ("threshold", "gate"):
        with pytest.raises(ValueError, match=f"the {field} of a reward is"):
            rewards.Rule(**{field: number})


def test_a_hierarchy_adds_up_whole_subjects_and_relations() -> None:
    nan = math.nan
    found = hierarchy(
        torch.tensor([0.5, 0.5, nan]), torch.tensor([[1.0, 0.0], [0.8, nan], [1.0, 1.0]]), torch.tensor([[1.0], [nan], [1.0]])
    )
    assert found[:2].tolist() == pytest.approx([0.5 + 0.5 + 1, 0.5 + 0.8]) and found[2].isnan()
    weighed = hierarchy(torch.ones(1), torch.ones(1, 1), torch.ones(1, 1), (1.0, 2.0, 4.0))
    assert weighed.tolist() == [7]
