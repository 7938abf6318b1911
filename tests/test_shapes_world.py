"""The world: GenEval's format, disjoint splits, a deterministic renderer."""

import json
from collections import Counter

import numpy as np
import pytest

from flowrl.shapes.mislabel import mislabel
from flowrl.shapes.render import draw, render
from flowrl.shapes.world import COLORS, OPPOSITE, SHAPES, TAGS, asked, captions, composition, unit, wording

TRAIN, HELD = captions("train"), captions("heldout")


def test_held_out_captions_are_balanced_over_the_six_tasks() -> None:
    assert Counter(row["tag"] for row in HELD) == dict.fromkeys(TAGS, 28)
    assert set(TAGS) == {row["tag"] for row in TRAIN}
    assert len({row["prompt"] for row in HELD}) == len(HELD)


def test_no_held_out_composition_is_trained_on() -> None:
    assert not {unit(row) for row in TRAIN} & {unit(row) for row in HELD}
    assert not {row["prompt"] for row in TRAIN} & {row["prompt"] for row in HELD}
    compositional = [row for row in HELD if row["tag"] != "single_object"]
    assert not {composition(row) for row in TRAIN} & {composition(row) for row in compositional}


def test_every_held_out_word_occurs_in_training() -> None:
    words = {word for row in TRAIN for word in row["prompt"].split()}
    assert {word for row in HELD for word in row["prompt"].split()} <= words
    assert max(len(row["prompt"].split()) for row in TRAIN + HELD) <= 14


def test_a_relation_seen_from_either_side_is_one_composition() -> None:
    rows = [row for row in TRAIN + HELD if row["tag"] == "position"]
    for row in rows[::50]:
        first, second = row["include"]
        relation = second["position"][0]
        turned = [
            {k: v for k, v in second.items() if k != "position"},
            {**first, "position": [OPPOSITE[relation], 0]},
        ]
        assert composition({**row, "include": turned}) == composition(row)


def test_rows_have_the_keys_and_values_of_geneval() -> None:
    for row in TRAIN + HELD:
        assert set(row) == {"tag", "include", "prompt"}
        json.dumps(row)
        for i, e in enumerate(row["include"]):
            assert {"class", "count"} <= set(e) <= {"class", "count", "color", "position"}
            assert e["class"] in SHAPES and e.get("color", "red") in COLORS and 1 <= e["count"] <= 4
            if "position" in e:
                assert i == 1 and e["position"][0] in OPPOSITE and e["position"][1] == 0


def test_captions_returns_its_own_copies() -> None:
    captions("heldout")[0]["include"][0]["count"] = 9
    assert captions("heldout")[0]["include"][0]["count"] == 1


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="only 'train' and 'heldout'"):
        captions("test")  # pyright: ignore[reportArgumentType]


def test_a_picture_depends_on_seed_index_and_row_only() -> None:
    images, rows = draw(HELD[:12], 3)
    assert images.shape == (12, 64, 64, 3) and images.dtype == np.uint8 and rows == HELD[:12]
    assert np.array_equal(images, draw(HELD[:12], 3)[0])
    assert np.array_equal(images[:5], draw(HELD[:5], 3)[0])
    assert not np.array_equal(images, draw(HELD[:12], 4)[0])
    assert np.array_equal(images[7], render({**HELD[7], "prompt": "unread"}, np.random.default_rng((3, 7))))


def test_drawing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        draw([], 0)


def test_a_wording_is_recovered_from_its_caption() -> None:
    for row in HELD:
        prefix, article = wording(row)
        assert row["prompt"].startswith(prefix)
        assert row["tag"] not in ("single_object", "colors") or row["prompt"].removeprefix(prefix).startswith(article)


def test_about_a_third_of_the_training_captions_are_imperfect() -> None:
    rng = np.random.default_rng(0)
    rows = [TRAIN[i] for i in rng.integers(len(TRAIN), size=4000)]
    said = [mislabel(row, rng) for row in rows]
    changed = np.mean([a["prompt"] != b["prompt"] for a, b in zip(rows, said, strict=True)])
    assert 0.25 < changed < 0.5
    words = {word for row in TRAIN for word in row["prompt"].split()}
    assert {word for row in said for word in row["prompt"].split()} <= words


def test_a_caption_is_known_by_its_text_in_either_split_and_in_none() -> None:
    for split in ("train", "heldout"):
        for row in captions(split)[::97]:
            assert asked(row["prompt"]) == row
    assert asked("a red circle") == {
        "tag": "colors",
        "include": [{"class": "circle", "count": 1, "color": "red"}],
        "prompt": "a red circle",
    }
    assert asked("a red bicycle") is None
    asked("a red circle")["include"][0]["count"] = 9
    assert asked("a red circle")["include"][0]["count"] == 1
