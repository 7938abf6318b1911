"""GenEval's rules on hand-worked detections: every task, every edge."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outside import wanted

from flowrl.rewards.geneval.aggregate import overall
from flowrl.rewards.geneval.objects import Detections, Limits, Thing, sorted_things
from flowrl.rewards.geneval.rules import Verdict, judge, read, relations
from flowrl.rewards.geneval.words import CLASSES, COLOURS, RELATIONS, TAGS, labels

quick = settings(deadline=None, max_examples=200)  # a shared machine may stall at any moment

Seen = tuple[str, float, tuple[float, float, float, float]]


def seen(name: str, score: float = 0.95, at: tuple[float, float] = (0, 0), size: float = 10) -> Seen:
    """A square whose top left corner is at (x, y)."""
    return name, score, (at[0], at[1], at[0] + size, at[1] + size)


def found(*some: Seen) -> Detections:
    boxes = np.array([box for _, _, box in some], dtype=np.float64).reshape(-1, 4)
    return Detections([name for name, _, _ in some], boxes, np.array([score for _, score, _ in some], dtype=np.float64))


def by_place(things: Sequence[Thing], kind: str) -> list[str]:
    """What lies left of x = 100 is red, the rest blue."""
    del kind
    return ["red" if thing.box[0] < 100 else "blue" for thing in things]


def asked(tag: str, *include: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def one(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def verdict(task: dict[str, Any], *some: Seen) -> Verdict:
    return judge(read(task), found(*some), by_place)


SINGLE = asked("single_object", one("bench"))
TWO = asked("two_object", one("cat"), one("cup"))
FOUR = asked("counting", one("cup", 4), exclude=[one("cup", 5)])
RED = asked("colors", one("cup", color="red"))
BOTH = asked("color_attr", one("cup", color="red"), one("cat", color="blue"))
LEFT = asked("position", one("cup"), one("cat", position=["left of", 0]))
CUPS = [seen("cup", 0.95, (20 * i, 0)) for i in range(12)]
FAR = (300.0, 0.0)
THIRD = 1 / 3  # of a position's terms only the first count is right

CASES = {
    "single, there": (SINGLE, [seen("bench", 0.31)], (True, True, 1, 1)),
    "single, score at the threshold is not above it": (SINGLE, [seen("bench", 0.3)], (False, False, 0, 0)),
    "single, another class": (SINGLE, [seen("chair")], (False, False, 0, 0)),
    "single, two of them are correct but not strict": (SINGLE, [seen("bench"), seen("bench")], (True, False, 0, 0)),
    "single, four of them go below zero": (SINGLE, [seen("bench")] * 4, (True, False, 0, -2)),
    "two, both": (TWO, [seen("cat"), seen("cup")], (True, True, 1, 1)),
    "two, one is missing": (TWO, [seen("cat")], (False, False, 0.5, 0.5)),
    "two, far too many of one": (TWO, [seen("cat"), *CUPS[:4]], (True, False, 0.5, -0.5)),
    "counting, as many": (FOUR, CUPS[:4], (True, True, 1, 1)),
    "counting, one less": (FOUR, CUPS[:3], (False, False, 0.75, 0.75)),
    "counting, one more is excluded": (FOUR, CUPS[:5], (False, False, 0.75, 0.75)),
    "counting, at 0.9 it does not count": (FOUR, [*CUPS[:3], seen("cup", 0.9)], (False, False, 0.75, 0.75)),
    "counting, others of low score do no harm": (FOUR, [*CUPS[:4], seen("cup", 0.9), seen("cup", 0.5)], (True, True, 1, 1)),
    "counting, three times as many": (FOUR, CUPS, (False, False, 0, -1)),
    "colour, right": (RED, [seen("cup")], (True, True, 1, 1)),
    "colour, wrong": (RED, [seen("cup", at=FAR)], (False, False, 0.5, 0.5)),
    "colour, nothing there": (RED, [], (False, False, 0, 0)),
    "colour, the highest score decides: right": (RED, [seen("cup", 0.9), seen("cup", 0.8, FAR)], (True, False, 0, 0)),
    "colour, the highest score decides: wrong": (RED, [seen("cup", 0.8), seen("cup", 0.9, FAR)], (False, False, 0, 0)),
    "attribution, right": (BOTH, [seen("cup"), seen("cat", at=FAR)], (True, True, 1, 1)),
    "attribution, swapped": (BOTH, [seen("cat"), seen("cup", at=FAR)], (False, False, 0.5, 0.5)),
    "attribution, one is missing": (BOTH, [seen("cup")], (False, False, 0.5, 0.5)),
    "position, holds": (LEFT, [seen("cup", at=FAR), seen("cat")], (True, True, 1, 1)),
    # counts 1 and 1; the relation 0, or 0 and then 1
    "position, other way round": (LEFT, [seen("cat", at=FAR), seen("cup")], (False, False, 2 / 3, 3 / 4)),
    "position, no target": (LEFT, [seen("cat")], (False, False, 1 / 3, 1 / 3)),
    "position, nothing to place": (LEFT, [seen("cup")], (False, False, 1 / 3, 1 / 3)),
    # a second cup or cat of lower score is no rival to the official judgement; to flow_grpo's it is no longer what was asked for
    "position, two targets": (
        LEFT, [seen("cup", 0.9, FAR), seen("cup", 0.8), seen("cat", at=(100, 0))], (True, False, THIRD, THIRD)),
    "position, the better cat is right": (
        LEFT, [seen("cup", at=FAR), seen("cat"), seen("cat", 0.5, (600, 0))], (True, False, THIRD, THIRD)),
    "position, the better cat is wrong": (
        LEFT, [seen("cup", at=FAR), seen("cat", 0.5), seen("cat", at=(600, 0))], (False, False, THIRD, THIRD)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.evidence("arithmetic", "geneval")
def test_hand_worked_cases_are_judged_as_by_hand(name: str) -> None:
    task, things, (correct, strict, soft, flow_grpo) = CASES[name]
    told = verdict(task, *things)
    assert (told.correct, told.strict) == (correct, strict)
    assert (told.soft, told.flow_grpo) == pytest.approx((soft, flow_grpo), abs=1e-12)


def test_each_of_several_objects_must_lie_so_of_each_target() -> None:
    task = asked("position", one("cup", 2), one("cat", 2, position=["left of", 0]))
    cups, cats = [seen("cup", at=(300, 0)), seen("cup", at=(330, 0))], [seen("cat", at=(0, 0)), seen("cat", at=(40, 0))]
    assert verdict(task, *cups, *cats) == Verdict(True, True, 1.0, 1.0)
    for stray in ([cups[0], seen("cup", at=(20, 0)), *cats], [*cups, cats[0], seen("cat", at=(310, 0))]):
        assert astuple(verdict(task, *stray)) == pytest.approx((0, 0, 2 / 3, 3 / 4))


def test_a_target_clause_that_failed_is_no_target() -> None:
    task = asked("position", one("cup", color="red"), one("cat", position=["left of", 0]))
    # the cup is there, but blue: 1, 0; the cat is there, but has no target: 1, 0
    assert verdict(task, seen("cup", at=FAR), seen("cat")) == Verdict(False, False, 0.5, 0.5)


def test_a_wrong_colour_leaves_the_relation_unasked() -> None:
    task = asked("position", one("cup"), one("cat", color="blue", position=["left of", 0]))
    assert astuple(verdict(task, seen("cup", at=FAR), seen("cat"))) == pytest.approx((0, 0, 2 / 3, 2 / 3))


def test_every_one_of_a_colour_must_have_it() -> None:
    task = asked("colors", one("cup", 2, color="red"))
    assert verdict(task, seen("cup"), seen("cup", at=(50, 0))).correct
    assert verdict(task, seen("cup"), seen("cup", at=FAR)) == Verdict(False, False, 0.75, 0.75)


def test_an_excluded_class_of_its_own_fails_at_its_count() -> None:
    task = asked("two_object", one("cat"), exclude=[one("dog", 2)])
    assert verdict(task, seen("cat"), seen("dog")).correct
    told = verdict(task, seen("cat"), seen("dog"), seen("dog"))
    assert not told.correct and told.strict and told.soft == 1, "flow_grpo's strict score does not read exclude clauses"


def test_sixteen_objects_of_a_class_are_kept() -> None:
    many = found(*(seen("cup", 0.5 + i / 100, (i, 0)) for i in range(20)), *(seen("cat", at=(i, 0)) for i in range(3)))
    kept = sorted_things(many, 0.3, Limits().most)
    assert [thing.box[0] for thing in kept["cup"]] == list(range(19, 3, -1)) and len(kept["cat"]) == 3
    seventeen = asked("counting", one("cup", 16), exclude=[one("cup", 17)])
    assert verdict(seventeen, *(seen("cup", at=(i, 0)) for i in range(20))).strict


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        # a is the square [0, 10]^2: two squares of 10 make a margin of 0.1 * 20 = 2
        ((2.0, 0.0, 12.0, 10.0), set()),
        ((2.0009, 0.0, 12.0009, 10.0), set()),  # 0.0009 is no offset yet
        ((4.0, 0.0, 14.0, 10.0), set()),  # o' = 2, |o| = 4: exactly 1/2, which is not above it
        ((4.01, 0.0, 14.01, 10.0), {"left of"}),
        ((3.99, 0.0, 13.99, 10.0), set()),
        ((-4.01, 0.0, 5.99, 10.0), {"right of"}),
        ((0.0, 4.01, 10.0, 14.01), {"above"}),
        ((0.0, -4.01, 10.0, 5.99), {"below"}),
        ((100.0, 100.0, 110.0, 110.0), {"left of", "above"}),
        ((-100.0, 100.0, -90.0, 110.0), {"right of", "above"}),
        ((100.0, 50.0, 110.0, 60.0), {"left of"}),  # 48 / 111.8 = 0.43 upwards
        ((0.0, 0.0, 10.0, 10.0), set()),
    ],
)
@pytest.mark.evidence("arithmetic", "geneval")
def test_relations_at_the_margin(b: tuple[float, ...], expected: set[str]) -> None:
    assert relations(np.array([0.0, 0.0, 10.0, 10.0]), np.array(b)) == expected


def test_a_share_of_exactly_one_half_is_no_relation() -> None:
    # o = (-3, -4), |o| = 5; widths 2 and 3 leave 2.5 of 3, and 2.5 / 5 = 1/2; heights 0
    a, b = np.array([-1.0, 0.0, 1.0, 0.0]), np.array([1.5, 4.0, 4.5, 4.0])
    assert relations(a, b) == {"above"}
    assert relations(a, b + np.array([1, 0, 1, 0]) * 1e-6) == {"above", "left of"}


def test_the_share_is_of_the_offset_before_the_margin() -> None:
    # o' = (-2, -0.5) over |o| = 4.7: 0.42; over |o'| it would be 0.97
    assert relations(np.array([0.0, 0.0, 10.0, 10.0]), np.array([4.0, 2.5, 14.0, 12.5])) == set()


boxes = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 40)] * 2).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
some_things = st.lists(
    st.tuples(st.sampled_from(["cup", "cat"]), st.sampled_from([0.2, 0.3, 0.5, 0.9, 0.95]), boxes), max_size=8
)  # fmt: skip
clauses = st.tuples(st.integers(1, 3), st.sampled_from([None, "red", "blue"]), st.sampled_from([None, *RELATIONS]))


@st.composite
def tasks(draw: st.DrawFn) -> dict[str, Any]:
    first, second = draw(clauses), draw(clauses)
    place = {} if second[2] is None else {"position": [second[2], 0]}
    include = [one("cup", first[0], color=first[1]), one("cat", second[0], color=second[1], **place)]
    return asked(draw(st.sampled_from(TAGS)), *include, exclude=[one("cup", first[0] + 1)])


def by_number(things: Sequence[Thing], kind: str) -> list[str]:
    del kind
    return ["red" if int(thing.box[0]) % 2 else "blue" for thing in things]


@quick
@given(tasks(), some_things, st.randoms())
def test_what_holds_of_every_judgement(task: dict[str, Any], things: list[Seen], random: Any) -> None:
    told = judge(read(task), found(*things), by_number)
    assert 0 <= told.soft <= 1 and told.flow_grpo <= 1
    assert told.strict == (told.soft == 1) == (told.flow_grpo == 1)
    assert told.correct or not told.strict, "exactly as many, and excluded from one more on, is correct"
    mixed = list(things)
    random.shuffle(mixed)
    assert judge(read(task), found(*mixed), by_number) == told


@quick
@given(boxes, boxes)
def test_relations_turn_round_with_their_sides(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    other = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    one_way = relations(np.array(a, dtype=float), np.array(b, dtype=float))
    assert {other[name] for name in one_way} == relations(np.array(b, dtype=float), np.array(a, dtype=float))
    assert not {"left of", "right of"} <= one_way and not {"above", "below"} <= one_way


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({}, "needs metadata with 'tag' and 'include'.*has nothing"),
        ({"prompt": "a cat", "tag": "colors"}, "has prompt, tag"),
        (asked("color", one("cat")), "no tag 'color'; did you mean 'colors'"),
        (asked("colors"), "'include' is empty"),
        (asked("colors", one("catt")), "no class 'catt'; did you mean 'cat'"),
        (asked("colors", one("cat", color="crimson")), "no color 'crimson'; there are red, orange"),
        (asked("colors", one("cat", 0)), "asks for 0 of class 'cat'"),
        (asked("colors", one("cat", 1.5)), "asks for 1.5 of class"),  # pyright: ignore[reportArgumentType]
        (asked("colors", one("cat", True)), "asks for True of class"),
        (asked("position", one("cup"), one("cat", position=["beside", 0])), "no relation 'beside'"),
        (asked("position", one("cup"), one("cat", position=["above", 1])), "clause 1 beside clause 1"),
        (asked("position", one("cup"), one("cat", position=["above", -1])), "clause 1 beside clause -1"),
        (asked("position", one("cup"), one("cat", position="above")), "position 'above'; give"),
        ({"tag": "colors", "include": {"class": "cat"}}, "give a list of"),
        ({"tag": "colors", "include": [one("cat")], "exclude": ["cat"]}, "give a list of"),
    ],
)
def test_metadata_that_asks_for_nothing_clear_is_a_sentence(metadata: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read(metadata)


def test_detections_that_cannot_be_are_refused() -> None:
    for boxes, scores, match in (
        (np.zeros((1, 3)), np.zeros(1), r"boxes \[1, 3\]"),
        (np.zeros((1, 4)), np.zeros(2), r"scores \[2\]"),
        (np.zeros((1, 4)), np.array([np.nan]), "not a finite number"),
        (np.array([[5.0, 0, 1, 1]]), np.zeros(1), "ends before it begins"),
    ):
        with pytest.raises(ValueError, match=match):
            Detections(["cat"], boxes, scores)
    with pytest.raises(ValueError, match="and 2 masks"):
        Detections(["cat"], np.zeros((1, 4)), np.zeros(1), np.zeros((2, 3, 3), dtype=bool))


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in wanted(f"data/geneval/{name}").read_text().splitlines()]


def test_the_official_prompts_are_read_whole() -> None:
    lines = _lines("evaluation_metadata.jsonl")
    read_ = [read(line) for line in lines]
    count = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert len(read_) == 553 and Counter(task.tag for task in read_) == count
    counting = [task for task in read_ if task.tag == "counting"]
    assert Counter(task.include[0].count for task in counting) == {2: 26, 3: 28, 4: 26}
    assert all(task.exclude[0].count == task.include[0].count + 1 for task in counting)
    places = Counter(clause.relation for task in read_ for clause in task.include if clause.relation)
    assert places == {"below": 28, "right of": 27, "above": 26, "left of": 19}
    assert {clause.colour for task in read_ for clause in task.include} - {None} == set(COLOURS)


@pytest.mark.evidence("arithmetic", "geneval")
def test_a_picture_that_is_what_was_asked_for_is_right_in_every_official_prompt() -> None:
    offset = {"left of": (-900, 0), "right of": (900, 0), "above": (0, -900), "below": (0, 900)}
    for line in _lines("evaluation_metadata.jsonl"):
        task = read(line)
        things = [
            seen(clause.name, 0.95, (x + 20 * i, y))
            for clause in task.include for x, y in [offset.get(clause.relation or "", (0, 0))] for i in range(clause.count)
        ]  # fmt: skip
        wanted = {clause.name: clause.colour for clause in task.include}

        def right(things: Sequence[Thing], kind: str, wanted: dict[str, Any] = wanted) -> list[str]:
            return [wanted[kind]] * len(things)

        assert judge(task, found(*things), right) == Verdict(True, True, 1.0, 1.0), line
        # a class may be asked for twice; without its things nothing is right
        assert not judge(task, found(*[thing for thing in things if thing[0] != task.include[-1].name]), right).correct, line


def test_the_classes_are_those_of_the_official_list() -> None:
    assert list(CLASSES) == wanted("data/geneval/object_names.txt").read_text().split("\n")[:80]


def test_detectors_names_become_genevals() -> None:
    coco = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
    old = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant", "tv": "tvmonitor"}
    plain = dict(enumerate(CLASSES))
    assert len(set(CLASSES)) == 80
    assert labels(plain, "it") == labels({k: coco.get(v, v) for k, v in plain.items()}, "it") == plain
    assert labels({k: old.get(v, v) for k, v in plain.items()}, "it") == plain
    assert labels({k: f"LABEL_{k}" for k in range(80)}, "it") == plain
    assert labels({0: "banner", **{k + 1: v for k, v in plain.items()}}, "it") == {k + 1: v for k, v in plain.items()}
    with pytest.raises(ValueError, match="it cannot judge GenEval: it has no class for bicycle, car"):
        labels({0: "person"}, "it")


def test_the_overall_number_is_the_plain_mean_of_tasks() -> None:
    tags = ["colors"] * 4 + ["counting"] * 2 + ["position"] * 2
    prompts = ["a"] * 2 + ["b"] * 2 + ["c"] * 2 + ["d", "e"]
    told = overall(tags, [1, 0, 0, 0, 1, 1, math.nan, 0], prompts)
    assert told.tasks == {"counting": 1.0, "colors": 0.25, "position": 0.0}
    assert told.overall == pytest.approx(1.25 / 3) and told.images == pytest.approx(3 / 7)
    assert told.prompts == 0.5 and told.invalid == 1, "d was never judged; of a, b, c and e two have a correct image"


def test_what_cannot_be_added_up_is_a_sentence() -> None:
    for tags, correct, prompts, match in (
        (["colors"], [1, 0], ["a"], "1 tags, 2 judgements and 1 prompts"),
        (["colors"], [0.5], ["a"], "is 0.5, neither 0 nor 1"),
        (["colour"], [1.0], ["a"], "no tag 'colour'"),
        (["colors"], [math.nan], ["a"], "none of 1 images"),
        ([], [], [], "none of 0 images"),
    ):
        with pytest.raises(ValueError, match=match):
            overall(tags, correct, prompts)
