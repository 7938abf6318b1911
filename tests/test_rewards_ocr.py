"""Text rendering: what is asked for, what is read, and how they are compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from outside import wanted
from PIL import Image, ImageDraw, ImageFont

from flowrl import rewards
from flowrl.rewards.rules.edits import levenshtein, within
from flowrl.rewards.rules.ocr import Ocr, ocr
from flowrl.rewards.rules.quotes import normal, targets
from flowrl.rewards.rules.reading import Line, orders, rapid

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")
SIZES = (24, 40)
SIDE = 512
BLANK = np.zeros((8, 8, 3), np.uint8)
quick = settings(deadline=None, max_examples=100)
words = st.text("abc", max_size=7)


# what a prompt asks for
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('a sign "Open"', ["Open"]),
        ('"A" over "B"', ["A", "B"]),
        ("a sign “Open Now”", ["Open Now"]),
        ("ein Schild „Offen“ und „Zu”", ["Offen", "Zu"]),
        ("en skylt ”Öppet”", ["Öppet"]),
        ("une enseigne « Ouvert »", ["Ouvert"]),
        ("ein Schild »Offen«", ["Offen"]),
        ("‹Ouvert› et ›Offen‹", ["Ouvert", "Offen"]),
        ("看板「営業中」と『休み』", ["営業中", "休み"]),
        ('写着"开门"的招牌', ["开门"]),
        ("a sign 'Open'", ["Open"]),
        ("a sign ‘Don’t Stop’.", ["Don’t Stop"]),
        ("a sign 'Don't Stop', lit", ["Don't Stop"]),
        ("a dog's bowl and a cat's toy", []),
        ("the dogs' bowls", []),
        ("rock 'n' roll", []),
        ("a '90s poster in the kids' room", []),
        ("the dog's sign \"Cat's\"", ["Cat's"]),
        ("the word \"I said 'no'\"", ["I said 'no'"]),
        ('a 5" x 7" card reading "Hi"', ["Hi"]),
        ('"Exit 24" and "Gate 7"', ["Exit 24", "Gate 7"]),
        ('"Open," it says', ["Open"]),
        ('"Stop!" and "Stop!"', ["Stop!"]),
        ('"OPEN" and the open sign "Open"', ["OPEN"]),
        ('an unclosed "quote', []),
        ('nothing in "" or " "', []),
        ("a plain prompt", []),
        ("", []),
    ],
)
def test_the_texts_asked_for_stand_between_quotes(prompt: str, expected: list[str]) -> None:
    assert targets(prompt, {}) == expected


def test_metadata_may_name_the_texts() -> None:
    assert targets('a "sign"', {"text": "Open"}) == ["Open"]
    assert targets('a "sign"', {"text": ["Open", "Open"]}) == ["Open", "Open"]
    assert targets('a "sign"', {"text": None}) == ["sign"]
    assert targets('a "sign"', {"text": ""}) == []
    for wrong in (3, ["a", 1], {"a": 1}):
        with pytest.raises(ValueError, match="metadata 'text' is .*; give the text the image should show, or a list of texts"):
            targets("", {"text": wrong})


@quick
@given(st.text())
def test_any_prompt_has_a_list_of_texts_that_are_not_empty(prompt: str) -> None:
    found = targets(prompt, {})
    assert all(normal(text) for text in found)
    assert len({normal(text) for text in found}) == len(found)


def test_case_space_and_typography_are_no_difference() -> None:
    assert normal("World’s  Best\nDELI – 24") == normal("world's best deli - 24")
    assert normal("ＡＢＣ…") == "abc..."
    assert normal("Stop!") != normal("Stop")


# distances
@cache
def distance(a: str, b: str) -> int:
    """By its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


@pytest.mark.parametrize(("a", "b", "far"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)])
def test_known_distances(a: str, b: str, far: int) -> None:
    assert levenshtein(a, b) == far


@quick
@given(words, words, words)
def test_levenshtein_is_the_least_number_of_edits_and_a_metric(a: str, b: str, c: str) -> None:
    assert levenshtein(a, b) == distance(a, b) == levenshtein(b, a)
    assert (levenshtein(a, b) == 0) == (a == b)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)
    assert abs(len(a) - len(b)) <= levenshtein(a, b) <= max(len(a), len(b))


@quick
@given(words, words)
@example("abc", "xxabxx")
def test_within_is_the_least_distance_to_any_stretch(part: str, whole: str) -> None:
    stretches = {whole[i:j] for i in range(len(whole) + 1) for j in range(i, len(whole) + 1)}
    assert within(part, whole) == min(distance(part, stretch) for stretch in stretches)


# reading order
def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def test_lines_are_read_by_rows_and_by_blocks() -> None:
    places = {"a": (0, 0, 90, 20), "c": (0, 25, 90, 45), "b": (200, 3, 290, 23), "d": (200, 27, 290, 47), "e": (0, 200, 90, 220)}
    lines = [Line(text, 1.0, box(*place)) for text, place in reversed(places.items())]
    assert ["".join(line.text for line in order) for order in orders(lines)] == ["abcde", "acbde"]
    assert orders([]) == [[], []]


@quick
@given(st.lists(st.tuples(*[st.integers(0, 300)] * 4), max_size=8))
def test_every_line_is_read_once_in_each_order(places: list[tuple[int, int, int, int]]) -> None:
    lines = [Line(str(i), 1.0, box(x, y, x + w, y + h)) for i, (x, y, w, h) in enumerate(places)]
    for order in orders(lines):
        assert sorted(line.text for line in order) == sorted(line.text for line in lines)


# formulas
Read = Sequence[str | tuple[str, float]]


def stub(*frames: Read, variant: str | None = None) -> Ocr:
    """The reward with an engine that reads these lines, one below the other, of one frame after the other."""
    turn = iter(frames)

    def engine(image: np.ndarray) -> list[tuple[str, float, list[list[float]]]]:
        told = [line if isinstance(line, tuple) else (line, 1.0) for line in next(turn)]
        return [(text, sure, box(0, 30 * row, 100, 30 * row + 20)) for row, (text, sure) in enumerate(told)]

    return ocr(variant, engine)


HELLO = 'a sign "Hello World" in the sun'


@pytest.mark.evidence("arithmetic", "ocr")
@pytest.mark.parametrize(
    ("prompt", "read", "image", "frame"),
    [
        (HELLO, ["Hello World"], 1, 1),
        (HELLO, ["HELLO", "world"], 1, 1),
        (HELLO, [], 0, 0),
        # helloworld has 10 characters; two are wrong
        (HELLO, ["Hallo Wrld"], 0.8, 0.8),
        # part of what was read: free in an image; 6 further characters in a frame
        (HELLO, ["say Hello World now"], 1, 0.4),
        (HELLO, ["Hello World"] * 3, 1, 0),
        (HELLO, ["something else that is long"], 0, 0),
        # confidence above 0 is enough
        (HELLO, [("Hello", 0.01), ("World", 0.0)], 0.5, 0.5),
        # the first text only
        ('"A1" and "B2"', ["B2"], 0, 0),
        ('"A1" and "B2"', ["A1"], 1, 1),
        # punctuation counts, spaces do not
        ('"Stop!"', ["s t o p"], 0.8, 0.8),
        ('an unclosed "Hello', ["hello"], 1, 1),
    ],
)
def test_flow_grpo_has_its_hand_worked_scores(prompt: str, read: Read, image: float, frame: float) -> None:
    assert stub(read, variant="flow_grpo")(BLANK[None], [prompt], [{"text": "ignored"}]).values == pytest.approx([image])
    video = stub(read, variant="flow_grpo")(BLANK[None, None], [prompt], [{}])
    assert video.values == pytest.approx([frame])


@pytest.mark.evidence("arithmetic", "ocr")
def test_flow_grpo_scores_a_video_by_the_fourth_frames_that_have_something() -> None:
    video = np.zeros((1, 10, 8, 8, 3), np.uint8)
    told = stub(["Hello World"], [], ["Hello"], variant="flow_grpo")(video, [HELLO], [{}])
    assert told.values == pytest.approx([0.75])
    assert stub([], ["xyz"], [], variant="flow_grpo")(video, [HELLO], [{}]).values == pytest.approx([0])


@pytest.mark.evidence("arithmetic", "ocr")
@pytest.mark.parametrize(
    ("prompt", "read", "expected", "found"),
    [
        (HELLO, ["Hello World"], 1, 1),
        (HELLO, ["HELLO", "world"], 1, 1),
        (HELLO, [], 0, 0),
        (HELLO, ["Hallo Wrld"], 0.8, 0.8),
        (HELLO, ["Hello"], 0.5, 0.5),
        # further text costs what it has of all that was read
        (HELLO, ["Hello World", "now"], 10 / 13, 1),
        (HELLO, ["Hello World"] * 2, 1 / 2, 1),
        (HELLO, ["Hello World"] * 10, 1 / 10, 1),
        # what is not legible is no text, asked for or not
        (HELLO, [("Hello World", 0.5), ("hubbub", 0.49)], 1, 1),
        (HELLO, [("Hello", 0.3), ("World", 0.9)], 0.5, 0.5),
        # several texts, in any order, each of them once
        ('"Open" over "Daily"', ["Open", "Daily"], 1, 1),
        ('"Open" over "Daily"', ["Daily", "Open"], 1, 1),
        ('"Open" over "Daily"', ["Daily"], 5 / 9, 5 / 9),
        ('"Open" over "Opening"', ["Opening"], 7 / 11, 1),
        ("“Stop!”", ["Stop"], 0.8, 0.8),
    ],
)
def test_the_default_has_its_hand_worked_scores(prompt: str, read: Read, expected: float, found: float) -> None:
    told = stub(read)(BLANK[None], [prompt], [{}])
    assert told.values == pytest.approx([expected])
    assert told.parts["found"] == pytest.approx([found])
    assert told.parts["exact"] == [float(expected == 1)]


@quick
@given(
    st.text("ab ", min_size=1, max_size=6), st.lists(st.text("ab ", max_size=6), max_size=4), st.sampled_from([None, "flow_grpo"])
)
def test_scores_are_between_0_and_1_and_one_is_exact(asked: str, read: list[str], variant: str | None) -> None:
    told = stub(read, variant=variant)(BLANK[None], [f'"{asked}"'], [{}])
    value, parts = told.values[0], {name: some[0] for name, some in told.parts.items()}
    if not asked.strip():
        assert np.isnan(value)
        return
    assert all(0 <= number <= 1 for number in (value, *parts.values()))
    if variant is None:
        assert (value == 1) == (parts["exact"] == 1)
        assert parts["exact"] <= parts["found"]


def test_a_video_is_the_mean_over_every_fourth_frame() -> None:
    told = stub(["Hello World"], [], ["Hello"])(np.zeros((1, 10, 8, 8, 3), np.uint8), [HELLO], [{}])
    assert told.values == pytest.approx([0.5])
    assert told.parts["exact"] == pytest.approx([1 / 3])


@pytest.mark.parametrize("variant", [None, "flow_grpo"])
def test_without_a_text_to_show_there_is_no_score_and_nothing_is_read(variant: str | None) -> None:
    told = stub(["Hello World"], variant=variant)(np.stack([BLANK] * 3), ["a sign", HELLO, '" "'], [{}] * 3)
    assert np.isnan(told.values).tolist() == [True, False, True]
    assert np.isnan(told.parts["exact"]).tolist() == [True, False, True]


@pytest.mark.parametrize("variant", [None, "flow_grpo"])
def test_an_image_the_engine_fails_on_has_no_score_and_the_others_keep_theirs(variant: str | None) -> None:
    def engine(image: np.ndarray) -> list[tuple[str, float, list[list[float]]]]:
        if image.max():
            raise RuntimeError("engine broke")
        return [("Hello World", 1.0, box(0, 0, 9, 9))]

    images = np.stack([BLANK, BLANK + 1, BLANK])
    with pytest.warns(UserWarning, match="reward ocr could not read 1 of 3 images; the first: RuntimeError: engine broke"):
        told = ocr(variant, engine)(images, [HELLO] * 3, [{}] * 3)
    assert np.array_equal(told.values, [1, np.nan, 1], equal_nan=True)
    video = np.stack([BLANK, BLANK, BLANK, BLANK, BLANK + 1])[None]
    with pytest.warns(UserWarning, match="1 of 1 images"):
        assert np.isnan(ocr(variant, engine)(video, [HELLO], [{}]).values).all()


def test_mistakes_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no variant 'paddle'; write ocr or ocr:flow_grpo"):
        ocr("paddle")
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs the package rapidocr; pip install "flowrl-toolkit\[rewards\]"'):
        rapid()


# with the real engine
def drawn(text: str, face: str = "DejaVuSans", size: int = 40, height: float = 0.5) -> np.ndarray:
    """Dark text in a frame on a light page, broken into lines where it is too wide: uint8 [512, 512, 3]."""
    font = ImageFont.truetype(FONTS / f"{face}.ttf", size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= SIDE - 48:
            lines[-1] = longer
        else:
            lines.append(word)
    page = Image.new("RGB", (SIDE, SIDE), (225, 219, 200))
    pen = ImageDraw.Draw(page)
    pen.rectangle((8, 8, SIDE - 9, SIDE - 9), fill=(250, 248, 240), outline=(120, 90, 60), width=4)
    middle = (SIDE / 2, SIDE * height)
    pen.multiline_text(middle, "\n".join(lines), (20, 20, 20), font, anchor="mm", align="center", spacing=size // 3)
    return np.array(page)


@pytest.fixture(scope="module")
def engine():
    for name in ("rapidocr", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    return rapid(1)


def read_back(engine, texts: Sequence[str]) -> tuple[list[float], list[float]]:
    """Scores of every text in every face and size, by the default and by flow_grpo's formula; read once."""
    seen: dict[bytes, list[Line]] = {}

    def once(image: np.ndarray) -> list[Line]:
        key = image.tobytes()
        return seen[key] if key in seen else seen.setdefault(key, engine(image))

    scores: tuple[list[float], list[float]] = ([], [])
    for index, text in enumerate(texts):
        images = np.stack([drawn(text, face, size, (0.3, 0.5, 0.7)[index % 3]) for face in FACES for size in SIZES])
        seen.clear()
        for column, variant in zip(scores, (None, "flow_grpo"), strict=True):
            column += ocr(variant, once)(images, [f'a page that says "{text}"'] * 6, [{}] * 6).values.tolist()
    return scores


@pytest.mark.evidence("real", "ocr")
def test_drawn_text_is_read(engine) -> None:
    for scores in read_back(engine, ["Gas Next Exit 2 Miles", "World's Best Deli"]):
        assert len(scores) == 12 and np.mean(scores) >= 0.98


@pytest.mark.parametrize("count", [pytest.param(20, marks=pytest.mark.ci), pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.timeout(7200)
@pytest.mark.evidence("real", "ocr")
def test_the_first_texts_of_flow_grpo_are_read(engine, count: int) -> None:
    """All 200 are 1200 images, 12 minutes of one core."""
    file = wanted("data/flow_grpo/ocr_test.txt")
    texts = [line.split('"')[1] for line in file.read_text(encoding="utf-8").splitlines()[:count]]
    for scores in read_back(engine, texts):
        assert len(scores) == 6 * count
        by_kind = np.reshape(scores, (count, 6)).mean(0)
        assert by_kind.min() >= 0.98, by_kind


@pytest.mark.evidence("real", "ocr")
def test_the_engine_tells_wrong_twofold_columned_and_missing_text(engine) -> None:
    page = drawn("Fresh Bread")
    twice = np.concatenate([page[128:384], page[128:384]])
    columns = drawn("")
    columns[200:300] = np.concatenate([drawn(word, size=28)[206:306, 128:384] for word in ("Open", "Daily")], 1)
    images = np.stack([page, twice, page, columns, drawn(""), page[:, ::-1]])
    prompts = ['"Fresh Bread"', '"Fresh Bread"', '"Closed"', '"Daily" and "Open"', '"Fresh Bread"', "no text"]
    scores = ocr(engine=engine)(images, prompts, [{}] * 6).values
    assert scores[:2] == pytest.approx([1, 0.5])
    assert 0 <= scores[2] < 0.4
    assert scores[3] == 1
    # nothing was read where something was asked for: a score;  nothing was asked for: none
    assert scores[4] == 0
    assert np.isnan(scores[5])


def test_the_engine_takes_red_for_red() -> None:
    seen: list[np.ndarray] = []

    class Network:
        boxes = None

        def __call__(self, image: np.ndarray) -> Network:
            seen.append(image)
            return self

    from flowrl.rewards.rules.reading import Rapid

    red = BLANK.copy()
    red[..., 0] = 255
    assert Rapid(Network())(red) == []
    assert seen[0][0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", ["ocr", "ocr:flow_grpo"])
def test_the_names_give_rewards(name: str) -> None:
    for package in ("rapidocr", "onnxruntime"):
        pytest.importorskip(package)
    samples = rewards.Samples(
        torch.from_numpy(drawn("Open"))[None, None],
        ['a sign "Open"'],
        [{}],
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long),
    )
    reward = rewards.make(name)
    scores, _ = reward(samples, reward.init())
    assert scores.values.tolist() == [[1]]
