"""The video world: disjoint splits, captions that say what is drawn, a deterministic renderer, imperfect captions."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from flowrl.shapes_video import protocol
from flowrl.shapes_video.mislabel import RATES, mislabel
from flowrl.shapes_video.render import EXTENT, FRAMES, SIZE, VELOCITY, draw, scene
from flowrl.shapes_video.world import DIRECTIONS, HELD_OUT, SPEEDS, STILL, asked, captions, composition, row, wording

TRAIN, HELD = captions("train"), captions("heldout")


def test_no_held_out_composition_is_trained_on() -> None:
    assert Counter(it["tag"] for it in HELD) == HELD_OUT
    assert not {composition(it) for it in TRAIN} & {composition(it) for it in HELD}
    assert len({composition(it) for it in HELD}) == len(HELD) and len({it["prompt"] for it in TRAIN}) == len(TRAIN)


def test_every_held_out_word_occurs_in_training() -> None:
    words = {word for it in TRAIN for word in it["prompt"].split()}
    assert {word for it in HELD for word in it["prompt"].split()} <= words


def test_a_caption_says_what_its_row_asks() -> None:
    assert row("circle", "red", "left", "slowly")["prompt"] == "a red circle moves left slowly"
    assert row("square", None, STILL, None, 2)["prompt"] == "a video of a square standing still"
    for it in TRAIN + HELD:
        assert asked(it["prompt"]) == it and row(it["shape"], it.get("color"), it["motion"], it.get("speed"), wording(it)) == it
    assert asked("a red hexagon moves left") is None
    with pytest.raises(ValueError, match="only 'train' and 'heldout'"):
        captions("test")  # pyright: ignore[reportArgumentType]


def test_objects_stay_inside_and_move_as_asked() -> None:
    for k, it in enumerate(TRAIN[::3]):
        made = scene(it, np.random.default_rng(k))
        assert made.centres.min() >= EXTENT / 2 and made.centres.max() <= SIZE - EXTENT / 2
        steps = np.diff(made.centres, axis=0)
        assert np.allclose(steps, steps[0])
        pace = float(np.abs(steps[0]).max())
        if it["motion"] == STILL:
            assert pace == 0
            continue
        assert np.allclose(steps[0] / pace, DIRECTIONS[it["motion"]], atol=1e-9)
        assert min(abs(pace - VELOCITY[name]) for name in ([it["speed"]] if "speed" in it else SPEEDS)) <= 0.1 + 1e-9


def test_a_video_depends_on_seed_index_and_row_only() -> None:
    videos = draw(HELD[:6], 3)
    assert videos.shape == (6, FRAMES, SIZE, SIZE, 3) and videos.dtype == np.uint8
    assert np.array_equal(draw(HELD[:3], 3), videos[:3]) and not np.array_equal(draw(HELD[:3], 4), videos[:3])
    with pytest.raises(ValueError, match="at least one row"):
        draw([], 0)


def test_captions_are_wrong_as_often_as_the_rates_say() -> None:
    rng = np.random.default_rng(0)
    rows = [it for it in TRAIN if "color" in it and "speed" in it] * 8
    said = [mislabel(it, rng) for it in rows]
    pairs = list(zip(rows, said, strict=True))
    moving = [(a, b) for a, b in pairs if b["motion"] != STILL]
    found = {
        "swap_color": np.mean(["color" in b and a["color"] != b["color"] for a, b in pairs]),
        "drop_color": np.mean(["color" not in b for _, b in pairs]),
        "stop": np.mean([b["motion"] == STILL for _, b in pairs]),
        "swap_direction": np.mean([b["motion"] not in (STILL, a["motion"]) for a, b in pairs]),
        "swap_speed": np.mean(["speed" in b and a["speed"] != b["speed"] for a, b in moving]),
        "drop_speed": np.mean(["speed" not in b for _, b in moving]),
    }
    # 5 deviations of the greatest rate's mean
    assert all(abs(float(found[name]) - RATES[name]) < 5 * 0.5 / len(rows) ** 0.5 for name in found)
    still = [it for it in TRAIN if it["motion"] == STILL] * 10
    started = np.mean([mislabel(it, rng)["motion"] != STILL for it in still])
    assert abs(float(started) - RATES["start"]) < 0.05
    assert all(asked(it["prompt"]) == it for it in said) and all(a["shape"] == b["shape"] for a, b in pairs)


def test_the_protocol_is_fixed_and_loads_no_torch() -> None:
    seeds = protocol.seeds()
    assert seeds.shape == (len(HELD), protocol.VIDEOS) and len(np.unique(seeds)) == seeds.size and seeds.min() >= 2**40
    assert protocol.rows() == HELD and protocol.training() == TRAIN
    code = "import sys, flowrl.shapes_video.protocol, flowrl.shapes_video.reward, flowrl.shapes_video.render;"
    code += "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
