"""Motion and flicker of videos."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowrl import rewards
from flowrl.rewards.rules.flicker import flicker

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
from flowrl.rewards.rules.motion import dis, dynamic, motion, pair

SIDE, FRAMES = 96, 6


def texture(height: int, width: int, seed: int, cell: int = 6) -> np.ndarray:
    """Smooth random colours, as a photograph's: uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(30, 226, (height // cell + 3, width // cell + 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


STILL, WIDE, PATCH = texture(SIDE, SIDE, 0), texture(SIDE + 40, SIDE + 40, 1), texture(28, 28, 2)


def square(frame: int, speed: int = 4) -> np.ndarray:
    picture = STILL.copy()
    picture[30:58, 8 + speed * frame : 36 + speed * frame] = PATCH
    return picture


def video(draw: Callable[[int], np.ndarray]) -> np.ndarray:
    return np.stack([draw(frame) for frame in range(FRAMES)])[None]


def score(images: np.ndarray, variant: str | None = None) -> float:
    return motion(variant)(images, ["p"] * len(images), [{}] * len(images)).values[0]


@pytest.mark.evidence("real", "motion")
def test_a_moving_square_scores_by_its_speed_and_a_still_video_has_nothing() -> None:
    fast, slow = score(video(square)), score(video(lambda k: square(k, 1)))
    assert fast > 0.9
    assert 0.2 < slow < 0.5
    assert score(video(lambda k: STILL)) < 0.01
    assert score(video(lambda k: square(0))) < 0.01


GRAIN = np.random.default_rng(5)
HACKS: dict[str, Callable[[int], np.ndarray]] = {
    "flash": lambda k: STILL if k % 2 else STILL // 2,
    "strobe": lambda k: STILL if k % 2 else np.full_like(STILL, 255),
    "faint flash": lambda k: STILL if k % 2 else (STILL * 0.9).astype(np.uint8),
    "noise": lambda k: GRAIN.integers(0, 256, STILL.shape, dtype=np.uint8),
    "blotches": lambda k: texture(SIDE, SIDE, 10 + k, 20),
    "film grain": lambda k: np.clip(STILL + GRAIN.normal(0, 8, STILL.shape), 0, 255).astype(np.uint8),
    "pan": lambda k: WIDE[10 : 10 + SIDE, 5 * k : 5 * k + SIDE],
    "shake": lambda k: WIDE[10 + 5 * (k % 2) :, 5:][:SIDE, :SIDE],
    "cut": lambda k: STILL if k < 3 else WIDE[:SIDE, :SIDE],
}


@pytest.mark.evidence("real", "motion")
@pytest.mark.parametrize("hack", HACKS)
def test_what_only_looks_like_motion_has_next_to_nothing(hack: str) -> None:
    assert score(video(HACKS[hack])) < 0.1


def test_a_zoom_of_the_camera_is_its_own_motion() -> None:
    def zoomed(frame: int) -> np.ndarray:
        cut = WIDE[3 * frame : len(WIDE) - 3 * frame, 3 * frame : len(WIDE) - 3 * frame]
        return np.asarray(Image.fromarray(cut).resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    images = video(zoomed)
    assert score(images) < 0.2
    assert score(images, "vbench") == 1


def test_an_object_counts_beside_a_panning_camera() -> None:
    def followed(frame: int) -> np.ndarray:
        picture = WIDE[10 : 10 + SIDE, 3 * frame : 3 * frame + SIDE].copy()
        picture[30:58, 60 - 5 * frame : 88 - 5 * frame] = PATCH
        return picture

    assert score(video(followed)) > 0.5


def test_vbench_is_unguarded_and_its_rule_is_a_part_of_the_default() -> None:
    noise, still = video(HACKS["noise"]), video(lambda k: STILL)
    assert (score(noise, "vbench"), score(still, "vbench")) == (1, 0)
    parts = motion()(np.concatenate([noise, still]), ["", ""], [{}, {}]).parts
    assert parts["dynamic"] == [1, 0]
    assert parts["consistent"][0] < 0.1 and parts["consistent"][1] > 0.99


@pytest.mark.parametrize(
    ("fast", "pairs", "moves"),
    [(4, 15, True), (3, 15, False), (1, 1, True), (0, 1, False), (2, 9, True), (1, 9, False), (0, 15, False)],
)
def test_a_video_is_dynamic_when_a_quarter_of_its_frames_move(fast: int, pairs: int, moves: bool) -> None:
    # 16 frames need 4 fast pairs, 10 need round(2.5) = 2, 2 need 1
    assert dynamic([2.1] * fast + [2.0] * (pairs - fast), 2.0) is moves


def shifted(amount: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A flow whose left half goes right by that many pixels forth, and back by as many: an estimator of our own."""
    sign = iter([1, -1] * 100)

    def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        field = np.zeros((*a.shape[:2], 2), np.float32)
        field[:, : a.shape[1] // 4, 0] = next(sign) * amount
        return field

    return flow


def test_speed_is_the_mean_of_the_fastest_twentieth_of_the_pixels() -> None:
    flat = np.full((2, 64, 64, 3), 9, np.uint8)
    field = np.zeros((64, 64, 2), np.float32)
    field.reshape(-1, 2)[: int(64 * 64 * 0.05) // 2] = 3, 4
    assert pair(lambda a, b: field, *flat).raw == pytest.approx(2.5, rel=0.02)
    assert pair(shifted(1.0), *flat).true == pytest.approx(1.0)


def test_motion_that_does_not_lead_back_is_not_counted() -> None:
    flat = np.full((2, 64, 64, 3), 9, np.uint8)
    field = np.zeros((64, 64, 2), np.float32)
    field[:, :16, 0] = 3
    there = pair(lambda a, b: field, *flat)
    assert (there.true, there.raw) == (0, 3)
    assert there.consistent == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize(("fps", "expected"), [(None, 0.5), (8, 0.5), (16, 0.5), (4, 0.25)])
def test_the_threshold_is_six_pixels_of_256_an_eighth_of_a_second(fps: float | None, expected: float) -> None:
    flat = np.full((1, 5, 128, 128, 3), 9, np.uint8)
    told = motion(flow=shifted(1.5))(flat, ["p"], [{} if fps is None else {"fps": fps}])
    assert told.values[0] == pytest.approx(expected * told.parts["consistent"][0])
    assert told.parts["consistent"][0] > 0.95


def test_frames_are_an_eighth_of_a_second_apart() -> None:
    images = np.zeros((1, 9, 64, 64, 3), np.uint8)
    images += np.arange(9, dtype=np.uint8)[:, None, None, None]
    seen: list[tuple[int, int]] = []

    def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        seen.append((int(a.flat[0]), int(b.flat[0])))
        return np.zeros((64, 64, 2), np.float32)

    motion(flow=flow)(images, ["p"], [{"fps": 30}])
    assert seen == [(0, 4), (4, 0), (4, 8), (8, 4)]
    seen.clear()
    motion(flow=flow)(images[:, :3], ["p"], [{"fps": 60}])
    assert seen == [(0, 2), (2, 0)]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(16, 40), st.integers(16, 40), st.integers(2, 4))
def test_scores_are_between_0_and_1(seed: int, height: int, width: int, frames: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (1, frames, height, width, 3), dtype=np.uint8)
    told = motion()(images, ["p"], [{}])
    for name in ("motion", "dynamic", "consistent"):
        assert 0 <= told.parts[name][0] <= 1
    assert 0 <= flicker(images, ["p"], [{}])[0] <= 1


@pytest.mark.evidence("real", "flicker")
def test_flicker_is_the_mean_difference_of_neighbours() -> None:
    images = np.zeros((3, 3, 8, 8, 3), np.uint8)
    images[1, 1] = 51
    images[2, 1:] = 255
    assert flicker(images, [], []) == pytest.approx([1, 0.8, 0.5])
    # unsigned differences would wrap
    assert flicker(images[:, ::-1], [], []) == pytest.approx([1, 0.8, 0.5])


@pytest.mark.parametrize("name", ["motion", "flicker"])
def test_images_and_single_frames_are_refused(name: str) -> None:
    function = motion() if name == "motion" else flicker
    with pytest.raises(ValueError, match=rf"reward {name} compares the frames of a video, but was given images \[2, 8, 8, 3\]"):
        function(np.zeros((2, 8, 8, 3), np.uint8), ["p"] * 2, [{}] * 2)
    with pytest.raises(ValueError, match=r"the videos \[2, 1, 8, 8, 3\] have 1; give at least 2"):
        function(np.zeros((2, 1, 8, 8, 3), np.uint8), ["p"] * 2, [{}] * 2)


@pytest.mark.parametrize("fps", [0, -8, float("nan"), float("inf"), "8", True])
def test_an_fps_that_is_no_rate_is_a_sentence(fps: object) -> None:
    with pytest.raises(ValueError, match="metadata 'fps' is .*; give the frames a second of the video, above 0"):
        motion()(np.zeros((1, 2, 32, 32, 3), np.uint8), ["p"], [{"fps": fps}])


def test_other_mistakes_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no variant 'raft'; write motion or motion:vbench"):
        motion("raft")
    with pytest.raises(ValueError, match="frames of 12 x 8 pixels are too small; give at least 16 x 16"):
        motion()(np.zeros((1, 2, 8, 12, 3), np.uint8), ["p"], [{}])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match='pip install "opencv-python-headless"'):
        dis()


@pytest.mark.parametrize("name", ["motion", "motion:vbench", "flicker"])
def test_the_names_give_rewards(name: str) -> None:
    import torch

    pixels = torch.from_numpy(video(square)).unsqueeze(1)
    samples = rewards.Samples(pixels, ["a"], [{}], torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    reward = rewards.make(name)
    scores, _ = reward(samples, reward.init())
    assert scores.valid.all() and scores.values.item() > 0.85
