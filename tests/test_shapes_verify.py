"""The verifier accepts what was drawn for a caption and nothing else."""

import time

import numpy as np
import pytest

from flowrl.shapes import verify
from flowrl.shapes.render import draw
from flowrl.shapes.reward import shapes
from flowrl.shapes.world import COLORS, OPPOSITE, SHAPES, TAGS, Row, captions, entry

HELD = captions("heldout")


def row(*include, tag="two_object") -> Row:
    return {"tag": tag, "include": list(include), "prompt": "unread"}


@pytest.mark.parametrize("tag", TAGS)
def test_renderings_are_accepted(tag: str) -> None:
    rows = [it for it in HELD if it["tag"] == tag] * 8
    images, _ = draw(rows, 1)
    assert verify.score(images, rows).mean() >= 0.99
    assert verify.score(images, rows, "soft").mean() >= 0.99


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("name", SHAPES)
def test_an_object_is_named_and_placed(name: str, color: str) -> None:
    images, _ = draw([row(entry(name, 2, color))] * 4, 2)
    for found in verify.find(images):
        assert [(f.name, f.color) for f in found] == [(name, color)] * 2
        assert all(0 < f.x < 64 and 0 < f.y < 64 and 9 <= max(f.width, f.height) <= 22 for f in found)


@pytest.mark.evidence("real", "shapes")
def test_a_wrong_colour_is_rejected() -> None:
    images, _ = draw([row(entry("circle", 1, "red"))] * 8, 3)
    wanted = [row(entry("circle", 1, "blue"))] * 8
    assert not verify.score(images, wanted).any()
    assert np.allclose(verify.score(images, wanted, "soft"), 2 / 3)


def test_swapped_colours_are_rejected() -> None:
    images, _ = draw([row(entry("circle", 1, "red"), entry("square", 1, "blue"))] * 8, 3)
    assert not verify.score(images, [row(entry("circle", 1, "blue"), entry("square", 1, "red"))] * 8).any()


@pytest.mark.parametrize("drawn, wanted", [(2, 3), (3, 2), (4, 3), (1, 4)])
def test_a_wrong_count_is_rejected(drawn: int, wanted: int) -> None:
    images, _ = draw([row(entry("cross", drawn))] * 8, 4)
    assert not verify.score(images, [row(entry("cross", wanted))] * 8).any()


def test_the_soft_score_grows_as_a_count_comes_closer() -> None:
    soft = [
        verify.score(draw([row(entry("cross", n))] * 4, 4)[0], [row(entry("cross", 4))] * 4, "soft").mean() for n in (1, 2, 3, 4)
    ]
    assert soft == sorted(soft) and soft[-1] == 1


@pytest.mark.parametrize("relation", OPPOSITE)
def test_a_wrong_relation_is_rejected(relation: str) -> None:
    right = row(entry("circle"), entry("square", position=(relation, 0)))
    wrong = row(entry("circle"), entry("square", position=(OPPOSITE[relation], 0)))
    images, _ = draw([right] * 8, 5)
    assert verify.score(images, [right] * 8).all()
    assert not verify.score(images, [wrong] * 8).any()
    assert (verify.score(images, [wrong] * 8, "soft") < 1).all()


def test_an_extra_object_is_rejected() -> None:
    images, _ = draw([row(entry("circle"), entry("square"))] * 8, 6)
    assert not verify.score(images, [row(entry("circle"))] * 8).any()


def test_a_wrong_shape_is_rejected() -> None:
    for name in SHAPES:
        images, _ = draw([row(entry(name))] * 4, 7)
        for other in set(SHAPES) - {name}:
            assert not verify.score(images, [row(entry(other))] * 4).any()


def test_blank_and_garbage_pictures_earn_next_to_nothing() -> None:
    rng = np.random.default_rng(0)
    n = len(HELD)
    garbage = {
        "blank": np.full((n, 64, 64, 3), 240, np.uint8),
        "black": np.zeros((n, 64, 64, 3), np.uint8),
        "noise": rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8),
        "blocks": rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2),
    }
    for name, images in garbage.items():
        assert not verify.score(images, HELD).any(), name
        assert verify.score(images, HELD, "soft").mean() < 0.1, name


def test_strict_is_one_exactly_where_soft_is() -> None:
    rng = np.random.default_rng(1)
    images, _ = draw(HELD, 8)
    mixed = [HELD[i] for i in rng.permutation(len(HELD))]
    for rows in (HELD, mixed):
        assert np.array_equal(verify.score(images, rows) == 1, verify.score(images, rows, "soft") == 1)


def test_a_score_does_not_depend_on_the_batch() -> None:
    images, rows = draw(HELD[::12], 9)
    whole = verify.score(images, rows, "soft")
    alone = [verify.score(images[i : i + 1], rows[i : i + 1], "soft")[0] for i in range(len(rows))]
    assert np.array_equal(whole, alone)


def test_ninety_six_pictures_are_scored_quickly() -> None:
    images, rows = draw(HELD[:96], 10)
    verify.score(images, rows)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        verify.score(images, rows)
        seconds.append(time.process_time() - start)
    # 0.02 s on one core; the bar leaves room for a busy machine.
    assert min(seconds) < 0.1


def test_wrong_inputs_are_refused_in_sentences() -> None:
    images, rows = draw(HELD[:2], 0)
    with pytest.raises(ValueError, match="one row a picture"):
        verify.score(images, rows[:1])
    with pytest.raises(ValueError, match="only 'strict' and 'soft'"):
        verify.score(images, rows, "loose")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="give uint8"):
        verify.score(images.astype(np.float32), rows)  # pyright: ignore[reportArgumentType]


def test_the_reward_is_the_verifier() -> None:
    images, rows = draw(HELD[:6], 11)
    prompts = [it["prompt"] for it in rows]
    turned = rows[::-1]
    assert shapes()(images, prompts, turned) == verify.score(images, turned, "soft").tolist()
    assert shapes("strict")(images, prompts, rows) == [1.0] * 6


def test_the_reward_refuses_what_it_cannot_score() -> None:
    images, _ = draw(HELD[:1], 0)
    with pytest.raises(ValueError, match="shapes:hard does not exist"):
        shapes("hard")
    with pytest.raises(ValueError, match="needs GenEval metadata with 'include'"):
        shapes()(images, ["a circle"], [{"tag": "single_object"}])
