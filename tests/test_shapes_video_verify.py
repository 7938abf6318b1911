"""The video verifier accepts what was drawn for a caption and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowrl.rewards import make
from flowrl.rewards.base import Samples
from flowrl.shapes.world import COLORS, SHAPES
from flowrl.shapes_video import verify
from flowrl.shapes_video.render import FRAMES, SIZE, draw, paint, scene
from flowrl.shapes_video.reward import shapes_video
from flowrl.shapes_video.world import DIRECTIONS, SPEEDS, STILL, captions, row

HELD = captions("heldout")
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
FULL = [it for it in HELD if "color" in it and "speed" in it][::2]


def test_renderings_are_accepted_and_blurred_ones_too() -> None:
    videos = draw(HELD, 1)
    assert verify.score(videos, HELD).all() and (verify.score(videos, HELD, "soft") == 1).all()
    assert verify.moves(videos, HELD).all()


@pytest.mark.evidence("real", "shapes_video")
def test_each_single_wrong_attribute_is_rejected() -> None:
    videos = draw(FULL, 2)
    parts = [(it["shape"], it["color"], it["motion"], it["speed"]) for it in FULL]
    wrong = {
        "shape": [row(SHAPES[(SHAPES.index(s) + 1) % 4], c, m, v) for s, c, m, v in parts],
        "colour": [row(s, COLORS[(COLORS.index(c) + 1) % 6], m, v) for s, c, m, v in parts],
        "direction": [row(s, c, list(DIRECTIONS)[(list(DIRECTIONS).index(m) + 2) % 4], v) for s, c, m, v in parts],
        "opposite": [row(s, c, OPPOSITE[m], v) for s, c, m, v in parts],
        "speed": [row(s, c, m, SPEEDS[1 - SPEEDS.index(v)]) for s, c, m, v in parts],
        "still": [row(s, c, STILL, None) for s, c, m, v in parts],
    }
    for name, rows in wrong.items():
        assert not verify.score(videos, rows).any(), name
        soft = verify.score(videos, rows, "soft")
        assert (soft < 1).all() and (soft > 0.3).all(), name
    assert not verify.score(draw([row("circle", "red", STILL, None)] * 4, 0), [row("circle", "red", "left", None)] * 4).any()


def test_a_reversed_video_moves_the_other_way() -> None:
    back = draw(FULL, 3)[:, ::-1]
    assert not verify.score(back, FULL).any()
    turned = [row(it["shape"], it.get("color"), OPPOSITE[it["motion"]], it.get("speed")) for it in FULL]
    assert verify.score(back, turned).all()


def test_motion_is_judged_apart_from_looks() -> None:
    videos = draw(FULL, 4)
    other = [row(SHAPES[(SHAPES.index(it["shape"]) + 1) % 4], None, it["motion"], it.get("speed")) for it in FULL]
    assert verify.moves(videos, other).all() and not verify.score(videos, other).any()


def test_unsteady_videos_are_rejected() -> None:
    videos = draw(FULL, 5)
    jumps = videos[:, [0, 0, 0, 0, 4, 8, 8, 8, 8]]
    shuffled = videos[:, [4, 0, 8, 2, 6, 1, 7, 3, 5]]
    gone = videos.copy()
    gone[:, 4] = gone[:, 4].max((1, 2), keepdims=True)
    flicker = videos.copy()
    others = [row(it["shape"], COLORS[(COLORS.index(it["color"]) + 1) % 6], it["motion"], it["speed"]) for it in FULL]
    flicker[:, 3] = draw(others, 5)[:, 3]
    second = np.minimum(videos, videos[:, :, ::-1, ::-1].copy())
    for name, made in {"jumps": jumps, "shuffled": shuffled, "gone": gone, "flicker": flicker, "second": second}.items():
        fast = [i for i, it in enumerate(FULL) if it["tag"] == "fast"] if name in ("jumps", "shuffled") else range(len(FULL))
        assert verify.score(made, FULL)[list(fast)].mean() <= (0.1 if name == "second" else 0.0), name


def test_a_colour_that_is_not_asked_for_must_stay() -> None:
    rows = [it for it in HELD if "color" not in it]
    assert rows
    a, b = (draw([{**it, "color": color} for it in rows], 6) for color in ("red", "blue"))
    assert verify.score(a, rows).all() and verify.score(b, rows).all()
    changed = np.concatenate([a[:, :5], b[:, 5:]], 1)
    assert not verify.score(changed, rows).any()


def test_blank_and_garbage_videos_earn_next_to_nothing_and_are_scored() -> None:
    rng = np.random.default_rng(0)
    some = HELD[::6]
    n, shape = len(some), (len(some), FRAMES, SIZE, SIZE, 3)
    garbage = {
        "blank": np.full(shape, 240, np.uint8),
        "noise": rng.integers(0, 256, shape, dtype=np.uint8),
        "blocks": rng.integers(0, 256, (n, FRAMES, 8, 8, 3), dtype=np.uint8).repeat(4, 2).repeat(4, 3),
        "stripes": rng.integers(0, 256, (n, 1, SIZE, 1, 3), dtype=np.uint8) + np.zeros(shape, np.uint8),
    }
    for name, videos in garbage.items():
        assert not verify.score(videos, some).any(), name
        soft = verify.score(videos, some, "soft")
        assert np.isfinite(soft).all() and soft.mean() < 0.1, name


def test_the_soft_score_grows_as_the_motion_comes_closer() -> None:
    asked = row("circle", "red", "right", "fast")
    made = scene(asked, np.random.default_rng(0))
    at = np.arange(FRAMES)[:, None] - 4.0

    def soft(velocity: tuple[float, float]) -> float:
        return float(verify.score(paint(replace(made, centres=16 + at * np.array(velocity)))[None], [asked], "soft")[0])

    speeds = [soft((v, 0.0)) for v in (-1.9, 0.3, 0.8, 1.2, 1.9)]
    turns = [soft((1.9 * np.cos(a), 1.9 * np.sin(a))) for a in (np.pi, 2.0, 1.2, 0.8, 0.0)]
    assert speeds == sorted(speeds) and turns == sorted(turns) and speeds[-1] == turns[-1] == 1


def test_strict_is_one_exactly_where_soft_is() -> None:
    videos = draw(HELD, 8)
    mixed = [HELD[i] for i in np.random.default_rng(1).permutation(len(HELD))]
    assert np.array_equal(verify.score(videos, mixed) == 1, verify.score(videos, mixed, "soft") == 1)


def test_wrong_inputs_are_refused_in_sentences() -> None:
    videos = draw(HELD[:2], 0)
    with pytest.raises(ValueError, match="one row a video"):
        verify.score(videos, HELD[:1])
    with pytest.raises(ValueError, match="only 'strict' and 'soft'"):
        verify.score(videos, HELD[:2], "loose")  # pyright: ignore[reportArgumentType]
    for wrong in (videos[:, 0], videos[:, :1], videos.astype(np.float32)):
        with pytest.raises(ValueError, match="give uint8"):
            verify.score(wrong, HELD[:2])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="shapes_video:hard does not exist"):
        shapes_video("hard")


def test_the_reward_reads_metadata_or_the_caption_and_scores_nothing_else() -> None:
    videos = draw(HELD[:3], 9)
    prompts = [it["prompt"] for it in HELD[:3]]
    strict = shapes_video("strict")
    assert strict(videos, ["?"] * 3, HELD[:3]) == strict(videos, prompts, [{}] * 3) == [1.0] * 3
    values = strict(videos, [prompts[0], "a red hexagon moves left", prompts[2]], [{}] * 3)
    assert values[0] == values[2] == 1.0 and np.isnan(values[1])


def test_the_reward_has_its_row_and_marks_what_it_cannot_score_invalid() -> None:
    reward = make("shapes_video:strict")
    videos = torch.from_numpy(draw([HELD[0]] * 4, 10)).view(2, 2, FRAMES, SIZE, SIZE, 3)
    ones = torch.ones(2, 2, dtype=torch.bool)
    samples = Samples(videos, [HELD[0]["prompt"], "another world"], [dict(HELD[0]), {}], ones, torch.zeros(2, dtype=torch.long))
    scores, _ = reward(samples, reward.init())
    assert scores.values[0].tolist() == [1.0, 1.0] and scores.valid.tolist() == [[True, True], [False, False]]
