"""GenEval as a reward: names, metadata, colours, and photographs that score as they must."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geneval_photos as photos
import numpy as np
import pytest
import torch

from flowrl import rewards
from flowrl.rewards import Place, Samples
from flowrl.rewards.geneval.colours import ClipColours, PixelColours, clip_colours, cut_out
from flowrl.rewards.geneval.objects import Detections, Limits, Thing
from flowrl.rewards.geneval.reward import Choice, GenEval, geneval, parse
from flowrl.rewards.geneval.words import COLOURS

ROOT = Path(__file__).parent.parent
CAT = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}


class Planted:
    """Sees one cat of the size of the picture wherever a picture's first pixel is above 0, and as many as it says."""

    name = "planted"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: np.ndarray) -> list[Detections]:
        self.seen += len(images)
        counts = images[:, 0, 0, 0].tolist()
        return [Detections(["cat"] * n, np.tile([0.0, 0, 4, 4], (n, 1)), np.full(n, 0.95)) for n in counts]


def pictures(*counts: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), count, dtype=np.uint8) for count in counts])


def planted(rule: str = "soft") -> GenEval:
    return GenEval(rule, Planted(), PixelColours())


@pytest.mark.parametrize(("rule", "expected"), [("soft", [0, 1, 0, 0]), ("official", [0, 1, 1, 1]), ("flow_grpo", [0, 1, 0, -2])])
def test_a_rule_chooses_the_score_and_parts_are_always_told(rule: str, expected: list[float]) -> None:
    told = planted(rule)(pictures(0, 1, 2, 4), [""] * 4, [CAT] * 4)
    assert list(told.values) == expected
    assert {name: list(some) for name, some in told.parts.items()} == {
        "correct": [0, 1, 1, 1], "strict": [0, 1, 0, 0], "soft": [0, 1, 0, 0],
    }  # fmt: skip


def test_what_cannot_be_judged_is_never_scored_and_told_of_once() -> None:
    made = rewards.make(planted(), name="judge")
    pixels = torch.from_numpy(pictures(1, 1, 1, 1)).view(4, 1, 4, 4, 3)
    metadata = [CAT, {}, {"tag": "single_object", "include": [{"class": "catt", "count": 1}]}, {}]
    told = Samples(pixels, ["a"] * 4, metadata, torch.ones(4, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        scores, state = made(told, made.init())
        made(told, state)
    assert scores.valid[:, 0].tolist() == [True, False, False, False] and state == {"scored": 4, "failed": 3}
    assert all(part[1:].isnan().all() for part in scores.parts.values())
    messages = [str(warning.message) for warning in caught if "GenEval" in str(warning.message)]
    assert len(messages) == 2 and "needs metadata with 'tag' and 'include'" in messages[0] and "did you mean 'cat'" in messages[1]


def test_pictures_nobody_asks_of_are_not_looked_at() -> None:
    made = planted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = made(pictures(1, 1), ["", ""], [{}, {}])
    assert all(math.isnan(value) for value in told.values) and made.detector.seen == 0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_video_is_the_mean_of_its_frames() -> None:
    told = planted("official")(np.stack([pictures(1, 0, 0, 1), pictures(0, 0, 0, 1)]), ["", ""], [CAT] * 2)
    assert list(told.values) == [0.5, 0.25]


def test_many_pictures_are_judged_each_by_its_own_metadata() -> None:
    dog = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    counts = [i % 2 for i in range(150)]
    told = planted("official")(pictures(*counts), [""] * 150, [CAT if i % 3 else dog for i in range(150)])
    assert list(told.values) == [float(count == 1 and i % 3 > 0) for i, count in enumerate(counts)]


def test_a_detector_is_part_of_the_name_and_what_is_not_official_too() -> None:
    assert planted().name == "geneval:soft@planted+hsv"
    limits = Limits(counting=0.5)
    assert GenEval("official", Planted(), PixelColours("clip"), limits).name == "geneval:official@planted,counting 0.5"
    with pytest.raises(ValueError, match="no rule 'strct'; there are soft, official, flow_grpo"):
        planted("strct")


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("", Choice("soft", "mask2former", None, "clip", None)),
        ("official", Choice("official", "mask2former", None, "clip", None)),
        ("flow_grpo@mask2former:/a/b", Choice("flow_grpo", "mask2former", "/a/b", "clip", None)),
        ("soft@yolox:/a+b/c.onnx+hsv", Choice("soft", "yolox", "/a+b/c.onnx", "hsv", None)),
        ("@yolox+clip:local-dir:/a+b", Choice("soft", "yolox", None, "clip", "local-dir:/a+b")),
        ("+hsv", Choice("soft", "mask2former", None, "hsv", None)),
    ],
)
def test_a_variant_is_read(variant: str, expected: Choice) -> None:
    assert parse(variant) == expected


def test_a_weight_follows_a_detectors_file() -> None:
    assert rewards.parse("geneval:soft@yolox:a/nano.onnx+hsv=0.5") == ("geneval:soft@yolox:a/nano.onnx+hsv", 0.5)
    assert rewards.parse("geneval:soft@yolox:nano.onnx") == ("geneval:soft@yolox:nano.onnx", 1.0)


@pytest.mark.parametrize(
    ("variant", "match"),
    [
        ("sofft", "no rule 'sofft'; did you mean 'soft'?"),
        ("soft@yolo:x.onnx", "no detector 'yolo'; there are mask2former"),
        ("soft@", "no detector ''"),
        ("soft+hsv:9", "hsv has no models, but 'soft.hsv:9' asks for '9'"),
        ("soft@yolox", "has no file; write geneval:soft@yolox:FILE.onnx, or set FLOWRL_YOLOX"),
    ],
)
def test_a_variant_that_cannot_be_is_a_sentence(variant: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWRL_YOLOX", raising=False)
    with pytest.raises(ValueError, match=match):
        geneval(variant)


PLAIN = {
    "red": (220, 20, 30), "orange": (255, 140, 0), "yellow": (255, 230, 30), "green": (30, 160, 50), "blue": (30, 60, 220),
    "purple": (130, 30, 180), "pink": (255, 150, 190), "brown": (120, 70, 30), "black": (15, 15, 15), "white": (245, 245, 245),
}  # fmt: skip


@pytest.mark.parametrize("colour", COLOURS)
def test_plain_colours_are_named(colour: str) -> None:
    image = np.full((20, 20, 3), (0, 255, 0), dtype=np.uint8)
    image[5:15, 5:15] = PLAIN[colour]
    around = Thing(np.array([0.0, 0, 20, 20]), 1.0)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    assert PixelColours()(image, [around, Thing(around.box, 1.0, mask)], "cup") == [colour, colour]


def test_pixel_colours_tie_to_the_earlier_colour_and_see_any_box() -> None:
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0], image[1] = PLAIN["blue"], PLAIN["orange"]
    whole = Thing(np.array([-1.0, -1, 3, 3]), 1.0)
    assert PixelColours()(image, [whole], "cup") == ["orange"]
    odd = [np.array(box, dtype=float) for box in ([0, 0, 0, 0], [9, 9, 12, 12], [-5, -5, -2, -2], [0.4, 0.4, 0.6, 0.6])]
    assert PixelColours()(image, [Thing(box, 1.0) for box in odd], "cup") == ["blue", "orange", "blue", "blue"]
    assert PixelColours()(image, [Thing(whole.box, 1.0, np.zeros((2, 2), dtype=bool))], "cup") == ["orange"], "an empty mask"


def test_an_object_is_cut_out_over_grey() -> None:
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 3:5] = True
    out = cut_out(image, Thing(np.array([2.5, 1.5, 5.5, 4.4]), 1.0, mask))
    assert out.shape == (2, 4, 3) and (out[:, 1:3] == image[2:4, 3:5]).all() and (out[:, [0, 3]] == 153).all()
    assert (cut_out(image, Thing(np.array([-3.0, -3, 99, 99]), 1.0)) == image).all()
    assert cut_out(image, Thing(np.array([8.0, 6, 8, 6]), 1.0)).shape == (1, 1, 3)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def embedded() -> ClipColours:
    pytest.importorskip("open_clip")
    return clip_colours(f"local-dir:{ROOT / 'assets' / 'shapes-clip'}", Place())


def test_clip_asks_three_templates_of_each_colour(embedded: ClipColours) -> None:
    assert embedded.name == "clip-shapes-clip", "not the official one, so it is told"
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    things = [Thing(np.array([0.0, 0, 40, 64]), 1.0), Thing(np.array([10.0, 10, 60, 30]), 0.5, np.ones((64, 64), dtype=bool))]
    model = embedded.encoder
    with torch.no_grad():
        sums = 0
        for before, after in (("a photo of a ", " circle"), ("a photo of a ", "-colored circle"), ("a photo of a ", " object")):
            text = model.tokenize([before + colour + after for colour in COLOURS])
            sums = sums + _unit(model.network.model.encode_text(text))  # pyright: ignore[reportCallIssue]
        shown = [image[:, :40], image[10:30, 10:60]]
        seen = _unit(model.network.model.encode_image(model.preparation(shown)))  # pyright: ignore[reportCallIssue]
    told = [embedded(image, some, "circle") for some in (things, things[::-1])]  # the second from what was kept of the class
    assert told[0] == told[1][::-1] and set(embedded.held) == {"circle"}
    texts = _unit(sums)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(embedded.held["circle"], texts, atol=1e-5)
    likeness = seen @ texts.T
    # the tiny model has no words for some colours, which are equally like then
    chosen = likeness[torch.arange(2), torch.tensor([COLOURS.index(colour) for colour in told[0]])]
    assert torch.allclose(chosen, likeness.amax(1), atol=1e-5)
    assert likeness.amax(1).gt(likeness.amin(1) + 1e-3).all()


def scored(picture: np.ndarray, metadata: dict[str, Any], limits: Limits | None = None) -> tuple[float, float, float, float]:
    """(correct, strict, soft, flow_grpo) of one picture by the real light detector and pixel colours."""
    made = GenEval("flow_grpo", photos.detector(), PixelColours(), limits or Limits())
    told = made(picture[None], [""], [metadata])
    return tuple(float(some[0]) for some in (*told.parts.values(), told.values))  # pyright: ignore[reportReturnType]


def asked(tag: str, *include: Sequence[Any], exclude: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    names = ("class", "count", "color", "position")
    return {
        "tag": tag,
        "include": [{k: v for k, v in zip(names, one, strict=False) if v is not None} for one in include],
        "exclude": [{"class": name, "count": count} for name, count in exclude],
    }


def cat_and_cup(cat: tuple[int, int], cup: tuple[int, int], shown: np.ndarray | None = None) -> np.ndarray:
    picture = photos.cup() if shown is None else shown
    return photos.composite(512, 512, (photos.photo("cat"), cat, (240, 180)), (picture, cup, (210, 210)))


RIGHT, HALF = (1, 1, 1, 1), (0, 0, 0.5, 0.5)


def test_photographs_of_one_and_two_objects_score_as_they_must() -> None:
    assert scored(photos.photo("cat"), CAT) == RIGHT
    assert scored(photos.photo("person"), CAT) == (0, 0, 0, 0)
    both = cat_and_cup((10, 150), (290, 150))
    assert scored(both, asked("two_object", ("cat", 1), ("cup", 1))) == RIGHT
    assert scored(both, asked("two_object", ("cat", 1), ("motorcycle", 1))) == HALF
    ride = photos.composite(
        700, 700, (photos.photo("motorcycle"), (0, 0), (600, 400)), (photos.photo("cat"), (100, 420), (400, 266))
    )
    assert scored(ride, asked("two_object", ("motorcycle", 1), ("cat", 1))) == RIGHT


@pytest.mark.parametrize(
    ("cat", "cup", "holds"),
    [
        ((10, 150), (290, 150), "left of"),
        ((262, 150), (10, 150), "right of"),
        ((130, 10), (150, 260), "above"),
        ((130, 310), (150, 40), "below"),
    ],
)
def test_a_cat_beside_a_cup_is_where_it_is(cat: tuple[int, int], cup: tuple[int, int], holds: str) -> None:
    picture = cat_and_cup(cat, cup)
    for relation in ("left of", "right of", "above", "below"):
        told = scored(picture, asked("position", ("cup", 1), ("cat", 1, None, [relation, 0])))
        assert told == (RIGHT if relation == holds else pytest.approx((0, 0, 2 / 3, 3 / 4))), relation


def test_photographs_are_counted_at_the_official_threshold() -> None:
    shown = photos.photo("cup")
    cups = photos.composite(512, 512, (shown, (0, 0), (360, 240)), (shown, (0, 256), (360, 240)))
    assert scored(cups, asked("counting", ("cup", 2), exclude=[("cup", 3)])) == RIGHT
    assert scored(cups, asked("counting", ("cup", 3), exclude=[("cup", 4)])) == pytest.approx((0, 0, 2 / 3, 2 / 3))
    assert scored(cups, asked("counting", ("cup", 1), exclude=[("cup", 2)])) == (0, 0, 0, 0)
    cat = photos.photo("cat")
    cats = photos.composite(512, 512, (cat, (0, 0), (360, 240)), (cat[:, ::-1], (100, 260), (360, 240)))
    two = asked("counting", ("cat", 2), exclude=[("cat", 3)])
    assert scored(cats, two) == (0, 0, 0, 0), "the light detector is 0.8 sure of these cats, and 0.9 is asked for"
    assert scored(cats, two, Limits(counting=0.5)) == RIGHT


@pytest.mark.parametrize("colour", ["red", "green", "blue", "purple"])
def test_a_dyed_cup_has_its_colour(colour: str) -> None:
    picture = cat_and_cup((10, 150), (290, 150), photos.dyed(photos.cup(), PLAIN[colour]))
    for other in ("red", "green", "blue", "purple"):
        right = other == colour
        assert scored(picture, asked("colors", ("cup", 1, other))) == (RIGHT if right else HALF)
        told = scored(picture, asked("color_attr", ("cup", 1, other), ("cat", 1, "brown")))
        assert told == (RIGHT if right else (0, 0, 0.75, 0.75))
    assert scored(picture, asked("color_attr", ("cup", 1, "brown"), ("cat", 1, colour))) == HALF, "swapped"


def test_the_light_reward_is_made_by_its_name() -> None:
    photos.detector()
    made = rewards.make(f"geneval:soft@yolox:{photos.WEIGHTS}+hsv")
    assert made.name == "geneval:soft@yolox_nano_416_coco80-boxes+hsv"
    pixels = torch.from_numpy(np.array([photos.photo("cat"), photos.photo("cat") // 40]))[None]
    told = Samples(pixels, ["a cat"], [CAT], torch.ones(1, 2, dtype=torch.bool), torch.zeros(2, dtype=torch.long))
    scores, _ = made(told, made.init())
    assert scores.values.tolist() == [[1, 0]] and scores.parts["strict"].tolist() == [[1, 0]]
