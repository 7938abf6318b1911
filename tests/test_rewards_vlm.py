"""The VLM judge: what is asked, how answers are read, and that what cannot be read is no score."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl import rewards
from flowrl.rewards import Samples, referenced
from flowrl.rewards.pairs.winrate import winrate
from flowrl.rewards.vlm import named, read
from flowrl.rewards.vlm.ask import Question, forms
from flowrl.rewards.vlm.checklist import Node, nodes, passed
from flowrl.rewards.vlm.judge import Against, Pair, Point
from flowrl.rewards.vlm.template import Template, template, templates

pytestmark = pytest.mark.filterwarnings("ignore:.*could not be read:UserWarning")
quick = settings(deadline=None, max_examples=60)  # a shared machine may stall at any moment
Say = Callable[[tuple[float, ...], str], Any]


@dataclass(frozen=True)
class Fake:
    """A back end that answers with say(levels of the images, text): text, or probabilities of the words."""

    say: Say
    asked: list[Question] = field(default_factory=list[Question])
    words: list[list[str]] = field(default_factory=list[list[str]])

    def write(self, questions: Sequence[Question]) -> list[str | None]:
        self.asked.extend(questions)
        return [self.say(tuple(float(image.mean()) for image in q.images), q.text) for q in questions]

    def weigh(self, questions: Sequence[Question], words: Sequence[str]) -> list[tuple[float, ...] | None]:
        self.words.append(list(words))
        return self.write(questions)  # pyright: ignore[reportReturnType]


def filled(*levels: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


def point(name: str, say: Say, count: int = 1, metadata: Any = None) -> tuple[list[float], dict[str, list[float]]]:
    told = Point(Fake(say), template(name))(filled(*range(count)), ["a cat"] * count, metadata or [{}] * count)
    return told.values, dict(told.parts)


# templates


@pytest.mark.parametrize("name", templates())
def test_a_template_asks_about_the_prompt_and_leaves_no_brace_open(name: str) -> None:
    one = template(name)
    text = one.filled("a {weird} 100% {0} cat", "is it {odd}?")
    blind = name.startswith("qwen-aesthetics")
    assert ("a {weird} 100% {0} cat" in text) != (blind or one.answer == "checklist") and one.about
    if one.answer == "checklist":
        assert "is it {odd}?" in text
    # an answer in the form that is shown, or its labels, must be known to the reader
    for label in one.axes.values():
        assert label.lower() in text.lower() or one.answer == "winners"


def test_a_template_of_ones_own_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cosy.yaml"
    file.write_text("text: 'Is {prompt} cosy?'\nanswer: digits\nlow: 0\nhigh: 9\n")
    assert template(str(file)) == Template("cosy", "Is {prompt} cosy?", answer="digits", low=0.0, high=9.0)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        template(str(tmp_path / "none.yaml"))
    for text, message in (
        ("- a", "is list; give a mapping"),
        ("answer: 'yes'", "asks nothing"),
        ("{text: a, lo: 1}", "no field 'lo'; did you mean low"),
        ("{text: a, low: x}", "low: 'x'; give a float"),
        ("{text: a, tokens: true}", "give a int"),
        ("{text: a, answer: perhaps}", "answer: 'perhaps'; give one of yes, digits"),
        ("{text: a, shown: film}", "shown: 'film'; give one of image"),
        ("{text: 'a {cat}'}", "double other braces"),
        ("{text: a, answer: digits, low: 1, high: 10}", "from 1 to 10; a grade of one token is 0 to 9"),
        ("{text: a, answer: labelled, low: 3, high: 2}", "from 3 to 2"),
        ("{text: a, answer: checklist, shown: pair}", "a checklist is of one image"),
        ("{text: a, tokens: 0}", "answers of 0 tokens"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            template(str(file))
    with pytest.raises(ValueError, match="no template 'vqascor'; did you mean vqascore"):
        template("vqascor")


# readers of text

ACS = "Alignment Score (1-5): 3.25\nCoherence Score (1-5): 4\nStyle Score (1-5): 1.5"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("unifiedreward-1.5", "cat (object): 1\nFinal Score: 4", 0.8),
        ("unifiedreward-1.5", "**Final Score:** 3.5/5", 0.7),
        ("unifiedreward-1.5", "Final Score: 2\nno, rather\nfinal score : 5", 1.0),
        ("unifiedreward-1.5", "Final Score: 6", math.nan),
        ("unifiedreward-1.5", "Final Score: 0", math.nan),
        ("unifiedreward-1.5", "Final Score: 1-5", math.nan),
        ("unifiedreward-1.5", "Final Score: 1 to 5", math.nan),
        ("unifiedreward-1.5", "Final Score:", math.nan),
        ("unifiedreward-1.5", "4", math.nan),
        ("unifiedreward-1.5", "", math.nan),
        ("unifiedreward-2.0", ACS, (3.25 + 4 + 1.5) / 15),
        ("unifiedreward-2.0", ACS.replace("Style", "Physics"), math.nan),
        ("unifiedreward-2.0", ACS.replace("1.5", "7.5"), math.nan),
        ("qwen-aesthetics-text", "Nice light. <Score>4</Score>", 0.8),
        ("qwen-aesthetics-text", "<score> 2 </score>", 0.4),
        ("qwen-aesthetics-text", "<Score>4", 0.8),
        ("qwen-aesthetics-text", "Score: 4", math.nan),
    ],
)
def test_a_written_grade_is_read_or_no_score(name: str, text: str, value: float) -> None:
    np.testing.assert_allclose(point(name, lambda levels, asked: text)[0], [value], rtol=1e-12)


def test_axes_are_parts_and_one_that_is_missing_is_no_score() -> None:
    _, parts = point("unifiedreward-2.0", lambda levels, asked: ACS)
    assert parts == {"alignment": [0.65], "coherence": [0.8], "style": [0.3]}
    values, parts = point("unifiedreward-2.0", lambda levels, asked: ACS.replace("Style", "Physics"))
    assert math.isnan(values[0]) and parts["alignment"] == [0.65] and math.isnan(parts["style"][0])


FLEX = {
    "categories": [{"name": "A", "cat_winner": "Image 1"}, {"name": "B", "cat_winner": "Image 2"}, {"cat_winner": "Image 1/2"}],
    "winner": "Image 2",
}
PAIR = "\n\n".join(
    f"{axis} Score:\n Image 1: {one}\n Image 2: {two}"
    for axis, one, two in (("Alignment", 0.4, 0.6), ("Coherence", 0.7, 0.3), ("Style", 1, 0))
)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("unifiedreward-pair", "Image 1 is better at first sight, but Image 2 is better.", 0.0),
        ("unifiedreward-pair", "Image 1 is slightly better.", 1.0),
        ("unifiedreward-pair", "Both images are equally good.", 0.5),
        ("unifiedreward-pair", "Image 1 is not better.", math.nan),
        ("unifiedreward-pair", "He wears a tie.", math.nan),
        ("unifiedreward-pair", "Image 3 is better", math.nan),
        ("unifiedreward-think", "<think>Image 1 is better</think><answer>Image 2 is better</answer>", 0.0),
        ("unifiedreward-think", "<think>Image 1 is better, so <answer>", math.nan),
        ("unifiedreward-think", "<answer>Image 1 is better</answer><answer>Image 2 is better</answer>", math.nan),
        ("unifiedreward-flex", "```json\n" + json.dumps(FLEX) + "\n```", 0.0),
        ("unifiedreward-flex", json.dumps({**FLEX, "winner": "both"}), math.nan),
        ("unifiedreward-flex", json.dumps(FLEX)[:-3], math.nan),
        ("unifiedreward-flex", "{" * 5000 + "}", math.nan),
        ("unifiedreward-flex", '{"winner": ["Image 1"], "categories": {}}', math.nan),
        ("unifiedreward-2.0-pair", PAIR, (0.4 + 0.7 + 1) / 3),
        ("unifiedreward-2.0-pair", PAIR.replace("Style Score:\n Image 1: 1\n Image 2: 0", "Style"), math.nan),
    ],
)
def test_a_written_verdict_is_read_or_none(name: str, text: str, value: float) -> None:
    judge = Pair(Fake(lambda levels, asked: text), template(name))
    np.testing.assert_allclose(judge.seated(filled(1, 2), np.array([[0, 1]]), "p", {}).values, [value], rtol=1e-12)


def test_verdicts_of_categories_are_parts() -> None:
    judge = Pair(Fake(lambda levels, asked: json.dumps(FLEX)), template("unifiedreward-flex"))
    parts = judge.seated(filled(1, 2), np.array([[0, 1]]), "p", {}).parts
    np.testing.assert_equal(dict(parts), {"alignment": [1.0], "quality": [0.0], "aesthetics": [math.nan]})


WORDS = ["Score", ":", "5", "-1", ".", "Image 1", "Image 2", "is better", "<answer>", "</answer>", "{", "}", "[", "]", '"winner":']
WORDS += ["(", ")", "*", "\n", " ", "equally good", "<Score>", "9" * 40, "²", "\0"]


@quick
@given(st.sampled_from(sorted(read.READERS)), st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=40))
def test_no_text_raises_or_leaves_the_range(reader: str, words: list[str]) -> None:
    told = read.read(reader, " ".join(words), {"a": "Score", "b": "Score"})
    assert told and all(isinstance(value, float) for value in told.values())
    if reader in ("labelled_pair", "conclusion", "tagged_conclusion", "winners"):
        assert all(math.isnan(value) or 0 <= value <= 1 for value in told.values())


@pytest.mark.parametrize("reader", read.READERS)
@pytest.mark.parametrize(
    "unit", [" ", "Score ", "Score (", "<answer>", "Image 1 ", "{", '"Score": [', "9", "Score:\nImage 1: 1 ", "*"]
)
@pytest.mark.timeout(20)
def test_endless_text_is_read_in_time(reader: str, unit: str) -> None:
    read.read(reader, unit * (100_000 // len(unit)), {"a": "Score"})


# probabilities


@pytest.mark.evidence("arithmetic", "vlm")
def test_yes_is_its_share_of_yes_and_no() -> None:
    fake = Fake(lambda levels, asked: {0: (0.3, 0.1), 1: (0.0, 0.02), 2: (0.5, 0.0), 3: (0.001, 0.001), 4: None}[int(levels[0])])
    told = Point(fake, template("vqascore"))(filled(0, 1, 2, 3, 4), ["a cat"] * 5, [{}] * 5)
    np.testing.assert_allclose(told.values, [0.75, 0.0, 1.0, math.nan, math.nan])
    assert fake.words == [["yes", "no"]] and fake.asked[0].text == 'Does this figure show "a cat"? Please answer yes or no.'
    assert forms("yes") == ("yes", "Yes", "YES", " yes", " Yes", " YES") and forms("3") == ("3", " 3")


@pytest.mark.evidence("arithmetic", "vlm")
def test_the_expected_digit_is_the_mean_under_its_probabilities() -> None:
    fake = Fake(lambda levels, asked: (0.0, 0.1, 0.2, 0.4, 0.1))
    (value,) = Point(fake, template("qwen-aesthetics"))(filled(0), ["a cat"], [{}]).values
    assert value == pytest.approx((2 * 0.1 + 3 * 0.2 + 4 * 0.4 + 5 * 0.1) / 0.8 / 5, rel=1e-12)
    assert fake.words == [["1", "2", "3", "4", "5"]] and fake.asked[0].tokens == 1


# references


def test_beside_a_reference_both_orders_are_averaged() -> None:
    def better(levels: tuple[float, ...], text: str) -> tuple[float, float]:
        p = 0.5 + 0.3 * math.tanh((levels[1] - levels[0]) / 50) + 0.15  # with a liking for the second
        return p, 1 - p

    images, references = filled(10, 60, 60), [[filled(10)[0]], [filled(10)[0]], []]
    fake = Fake(better)
    told = Against(fake, template("rewarddance"))(images, ["p"] * 3, [{}] * 3, references)
    np.testing.assert_allclose(told.values, [0.5, 0.5 + 0.3 * math.tanh(1), math.nan])
    assert [tuple(int(image.mean()) for image in q.images) for q in fake.asked] == [(10, 10), (10, 60), (10, 10), (60, 10)]
    once = Against(Fake(better), template("rewarddance"), both_orders=False)(images, ["p"] * 3, [{}] * 3, references)
    np.testing.assert_allclose(once.values, [0.65, 0.65 + 0.3 * math.tanh(1), math.nan])
    none = Against(Fake(better), template("rewarddance"))(images, ["p"] * 3, [{}] * 3, [[], [], []])
    assert all(map(math.isnan, none.values))


def test_an_edit_is_shown_after_its_source_and_has_the_lesser_of_two_grades() -> None:
    fake = Fake(lambda levels, asked: '{"reasoning": "fine", "score": [20, 15]}' if levels == (10, 60) else '"score": [20]')
    made = rewards.make(referenced(Against(fake, template("unifiedreward-edit"))), "edit")
    one, two = torch.from_numpy(filled(60)), torch.from_numpy(filled(70))
    samples = Samples(
        torch.stack([one, two]), ["brighter"] * 2, [{}] * 2, torch.ones(2, 1).bool(), torch.zeros(1).long(), [[filled(10)[0]]] * 2
    )
    with pytest.warns(UserWarning, match="1 of 2 answers to template 'unifiedreward-edit' could not be read"):
        scores, state = made(samples, made.init())
    assert scores.values[0, 0] == pytest.approx(0.6) and scores.valid.flatten().tolist() == [True, False]
    assert scores.parts["success"][0, 0] == pytest.approx(0.8) and state == {"scored": 2, "failed": 1}


# pairs


@pytest.mark.parametrize(
    ("name", "always"), [("unifiedreward-think", "<answer>Image 1 is better</answer>"), ("rewarddance", (0.0, 1.0))]
)
def test_a_vlm_that_likes_one_place_has_no_say_in_a_win_rate(name: str, always: Any) -> None:
    told = winrate(Pair(Fake(lambda levels, text: always), template(name))).function(filled(1, 2, 3), "p", {})
    assert told.values.tolist() == [0.5] * 3


@pytest.mark.parametrize("name", [name for name, one in templates().items() if one.compares])
def test_a_vlm_that_sees_what_is_better_orders_a_group(name: str) -> None:
    def sees(levels: tuple[float, ...], text: str) -> Any:
        k = 1 + (levels[1] > levels[0])
        return {
            "yes": (k - 1.0, 2.0 - k),
            "labelled_pair": PAIR.replace("0.4", str(2.0 - k)).replace("0.6", str(k - 1.0)),
            "conclusion": f"Image {k} is better.",
            "tagged_conclusion": f"<think>hm</think><answer>Image {k} is better</answer>",
            "winners": json.dumps({"winner": f"Image {k}"}),
        }[template(name).answer]

    told = winrate(Pair(Fake(sees), template(name))).function(filled(30, 10, 20), "p", {})
    assert np.argsort(told.values.tolist()).tolist() == [1, 2, 0]


# checklists


def test_a_question_fails_with_those_it_needs() -> None:
    some = (Node("cat?"), Node("black?", (0,)), Node("asleep?", (1,)), Node("dog?"))
    assert passed(some, [0.9, 0.8, 0.7, 0.6], hard=True) == 1
    assert passed(some, [0.4, 0.8, 0.7, 0.6], hard=True) == 0.25
    assert passed(some, [0.9, 0.3, 0.7, 0.6], hard=False) == pytest.approx((0.9 + 0.3 + 0 + 0.6) / 4)
    assert math.isnan(passed(some, [0.9, math.nan, 0.7, 0.6], hard=True))
    # what is 0 anyway needs no answer
    assert passed(some, [0.4, math.nan, math.nan, 0.6], hard=True) == 0.25
    assert math.isnan(passed((), [], hard=True))
    # the order in which questions are written does not matter
    turned = (Node("asleep?", (1,)), Node("black?", (2,)), Node("cat?"), Node("dog?"))
    assert passed(turned, [0.7, 0.3, 0.9, 0.6], hard=True) == passed(some, [0.9, 0.3, 0.7, 0.6], hard=True) == 0.5


def test_a_checklist_asks_each_question_of_each_image() -> None:
    fake = Fake(lambda levels, text: (0.9, 0.1) if "cat" in text or levels[0] == 1 else (0.2, 0.8))
    known = {"questions": ["Is there a cat?", {"question": "Is it black?", "needs": [0]}]}
    told = Point(fake, template("checklist"))(filled(0, 1, 2), ["p"] * 3, [known, known, {}])
    np.testing.assert_array_equal(told.values, [0.5, 1.0, math.nan])
    assert [q.text for q in fake.asked] == ["Is there a cat? Answer yes or no.", "Is it black? Answer yes or no."] * 2
    soft = Point(Fake(fake.say), template("checklist-soft"))(filled(0, 1), ["p"] * 2, [known, known])
    np.testing.assert_allclose(soft.values, [(0.9 + 0.2) / 2, 0.9])


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ("Is it?", "questions are str"),
        ([3], "question 0 is 3"),
        ([{"ask": "a"}], "question 0 is"),
        ([{"question": "a", "needs": [1]}], r"question 0 needs 1; give numbers of other questions, from 0 to 0"),
        ([{"question": "a", "needs": [0]}], "question 0 needs 0"),
        ([{"question": "a", "needs": [True]}, "b"], "question 0 needs True"),
        (
            [{"question": "a", "needs": [1]}, {"question": "b", "needs": [0]}, "c"],
            r"questions \[0, 1\] need each other in a circle",
        ),
    ],
)
def test_a_checklist_that_makes_no_sense_is_refused(questions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nodes({"questions": questions})


# names


def test_a_judge_is_named_by_template_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def backend(where: str, place: Any = None) -> Fake:
        asked.append(where)
        return Fake(lambda levels, text: (levels[0] / 10, 1 - levels[0] / 10))

    monkeypatch.setattr(named, "backend", backend)
    samples = Samples(torch.from_numpy(filled(1, 3))[None], ["p"], [{}], torch.ones(1, 2).bool(), torch.zeros(2).long())
    made = rewards.make("vlm:vqascore@Qwen/Qwen2.5-VL-7B-Instruct")
    scores, _ = made(samples, made.init())
    assert made.name == "vlm:vqascore@Qwen/Qwen2.5-VL-7B-Instruct" and scores.values[0].tolist() == pytest.approx([0.1, 0.3])
    # a judge of single images compares by its scores, one of pairs by looking at both
    for name, values in (("winrate:vlm:vqascore@m", [0, 1]), ("winrate:1:vlm:rewarddance@m", [0.6, 0.4])):
        made = rewards.make(name)
        assert made(samples, made.init())[0].values[0].tolist() == pytest.approx(values)
    assert asked == ["Qwen/Qwen2.5-VL-7B-Instruct", "m", "m"]
    assert rewards.parse("vlm:vqascore@http://h:8/v1#a/b=0.5") == ("vlm:vqascore@http://h:8/v1#a/b", 0.5)


def test_a_judge_that_is_not_one_is_refused() -> None:
    for spec, message in (
        ("vlm", "a judge is written TEMPLATE@OWNER/NAME"),
        ("vlm:vqascore", "a judge is written TEMPLATE@OWNER/NAME"),
        ("vlm:@m", "a judge is written"),
        ("vlm:unifiedreward-think@m", "compares two images; write winrate:vlm:unifiedreward-think@m"),
        ("vlm:nothing@m", "there is no template 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            rewards.make(spec)
    with pytest.raises(ValueError, match="judges one image alone; those that compare are unifiedreward-2.0-pair"):
        named.pair("vqascore@m")


def test_a_video_has_the_mean_of_what_is_said_of_its_frames() -> None:
    backend = Fake(lambda levels, text: (levels[0] / 10, 1 - levels[0] / 10))
    told = Point(backend, template("vqascore"))(np.stack([filled(1, 2), filled(7, 9)]), ["p", "q"], [{}, {}])
    assert told.values.tolist() == pytest.approx([0.15, 0.8])
    assert [template("vqascore").filled(p) for p in "ppqq"] == [one.text for one in backend.asked]


def test_a_judge_of_pairs_refuses_videos() -> None:
    pair = Pair(Fake(lambda levels, text: ""), template("unifiedreward-think"))
    with pytest.raises(ValueError, match=r"compares images \[N, H, W, 3\], not videos \[1, 2, 4, 4, 3\]"):
        pair.seated(filled(1, 2)[None], np.array([[0, 0]]), "p", {})
