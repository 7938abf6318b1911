"""Videos as rewards get them: from files, and some of their frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl import moving, rewards
from flowrl.rewards import Detailed, Place, Samples, framewise, groupwise, videos
from flowrl.rewards.base import DifferentiableReward


def noisy(count: int, height: int = 12, width: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def samples(pixels: np.ndarray, **metadata: Any) -> Samples:
    """One leaf of each video [P, (T,) H, W, 3]."""
    count = len(pixels)
    return Samples(
        torch.from_numpy(pixels)[:, None],
        [f"p{i}" for i in range(count)],
        [metadata for _ in range(count)],
        torch.ones(count, 1, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long),
    )


def score(reward: Any, pixels: np.ndarray, place: Place | str = "cpu", **metadata: Any) -> list[float]:
    made = rewards.make(reward, place=place)
    found, _ = made(samples(pixels, **metadata), made.init())
    return found.values[:, 0].tolist()


# files


@pytest.mark.parametrize("fps", [16, 23.976, 12.5, 60])
def test_a_saved_video_is_read_back_with_every_frame_and_its_rate(tmp_path: Path, fps: float) -> None:
    video = noisy(19)
    # encoders keep equal neighbours once
    video[4:9], video[-1] = video[4], video[-2]
    path = moving.save(tmp_path / "a.b", video, fps)
    seen = videos.read(path)
    assert path.name == "a.b.webp" and seen.fps == fps and np.array_equal(seen.pixels, video)


def test_a_video_that_stands_still_keeps_its_length(tmp_path: Path) -> None:
    video = noisy(1).repeat(7, 0)
    seen = videos.read(moving.save(tmp_path / "a", video, 8))
    assert np.array_equal(seen.pixels, video)


def test_a_large_video_is_written_smaller_and_nearly_the_same(tmp_path: Path) -> None:
    y, x = np.mgrid[:256, :1024]
    video = np.stack([np.stack([x // 4, (y + 5 * t) % 256, 0 * x + 90], -1) for t in range(17)]).astype(np.uint8)
    assert video[..., 0].size > moving.EXACT
    path = moving.save(tmp_path / "a", video, 16)
    error = np.abs(videos.read(path).pixels.astype(int) - video).mean()
    assert path.stat().st_size < video.size / 20 and 0 < error < 4


def test_other_animations_are_read_at_their_mean_rate(tmp_path: Path) -> None:
    video = noisy(4)
    video[:, 0, 0] = np.arange(4)[:, None]
    pictures = [Image.fromarray(frame) for frame in video]
    for name, kind in (("a.png", "PNG"), ("b.webp", "WEBP")):
        pictures[0].save(
            tmp_path / name, kind, save_all=True, append_images=pictures[1:], duration=[50, 50, 100, 200], lossless=True
        )
        seen = videos.read(tmp_path / name)
        assert np.array_equal(seen.pixels, video) and seen.fps == 10
    pictures[0].save(tmp_path / "c.gif", save_all=True, append_images=pictures[1:], duration=0)
    assert videos.read(tmp_path / "c.gif").pixels.shape == video.shape and videos.read(tmp_path / "c.gif").fps == 10


def test_a_still_is_read_as_one(tmp_path: Path) -> None:
    image = noisy(1)[0]
    for name in ("a.png", "b.webp"):
        Image.fromarray(image).save(tmp_path / name, lossless=True)
        seen = videos.read(tmp_path / name)
        assert seen.fps is None and np.array_equal(seen.pixels, image)
    assert moving.save(tmp_path / "c", image, None).name == "c.png"


def test_a_film_has_its_frames_size_and_rate(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    y, x = np.mgrid[:33, :51]
    video = np.stack([np.stack([128 + 100 * np.sin((x + 4 * t) / 9), 5 * y, 0 * x], -1) for t in range(6)]).astype(np.uint8)
    path = moving.film(tmp_path / "a", video, 16)
    seen = videos.read(path)
    assert path.name == "a.mp4" and seen.fps == 16 and seen.pixels.shape == (6, 34, 52, 3)
    assert np.abs(seen.pixels[:, :33, :51].astype(int) - video).mean() < 8


def test_without_an_encoder_a_film_is_an_animated_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "encoder", lambda: None)
    path = moving.film(tmp_path / "a", noisy(3), 16)
    assert path.name == "a.webp" and len(videos.read(path).pixels) == 3


def test_what_is_no_video_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(b"RIFF1234WEBPjunk")
    (tmp_path / "b.mp4").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"a\.webp cannot be read as a picture"):
        videos.read(tmp_path / "a.webp")
    with pytest.raises(FileNotFoundError, match="there is no video"):
        videos.read(tmp_path / "c.mp4")
    pytest.importorskip("cv2")
    with pytest.raises(ValueError, match=r"b\.mp4 cannot be read as a video; write it"):
        videos.read(tmp_path / "b.mp4")


def test_a_video_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = moving.save(tmp_path / "a", noisy(5), 8)
    monkeypatch.setattr(videos, "MOST", 5 * 12 * 20 - 1)
    with pytest.raises(ValueError, match="has 5 frames of 20 x 12, more than 1199 pixels; cut it"):
        videos.read(path)


# frames


def test_frames_are_spread_from_the_first_to_the_last() -> None:
    assert videos.chosen(33, 8).tolist() == [0, 5, 9, 14, 18, 23, 27, 32]
    assert videos.chosen(2, 8).tolist() == [0, 1] and videos.chosen(5, 1).tolist() == [2]


def levels(*rows: list[int]) -> np.ndarray:
    """Videos whose frames have these levels."""
    return np.array(rows, dtype=np.uint8)[:, :, None, None, None].repeat(2, 2).repeat(2, 3).repeat(3, 4)


def first(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    assert images.ndim == 4
    return [float(level) for level in images[:, 0, 0, 0]]


def test_a_reward_of_single_images_has_the_mean_of_eight_frames() -> None:
    rows = [list(range(33)), [2 * t for t in range(33)]]
    shown = np.array(rows)[:, [0, 5, 9, 14, 18, 23, 27, 32]].mean(1)
    assert score(framewise(first), levels(*rows)) == pytest.approx(shown.tolist())
    assert score(framewise(first), levels(*rows)[:, 0]) == [0, 0]


def test_the_user_says_how_many_frames() -> None:
    video = levels([0, 10, 20, 70])
    assert score(framewise(first), video, Place(frames=2)) == [35]
    assert score(framewise(first), video, Place(frames=1)) == [20]
    with pytest.raises(ValueError, match="frames is 0; show a reward at least 1"):
        Place(frames=0)


def test_frames_that_cannot_be_scored_are_left_out_and_parts_are_averaged() -> None:
    def half(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Detailed:
        level = np.array(first(images, prompts, metadata))
        return Detailed(np.where(level < 50, level, np.nan), {"twice": 2 * level})

    made = rewards.make(framewise(half))
    with pytest.warns(UserWarning, match="could not score 1 of 2"):
        found, _ = made(samples(levels([0, 10, 90], [60, 70, 80])), made.init())
    assert found.values[0, 0] == 5 and found.valid[:, 0].tolist() == [True, False]
    assert found.parts["twice"][:, 0].tolist() == pytest.approx([200 / 3, 140])


def test_your_own_function_sees_every_frame_and_the_rate_of_what_it_sees() -> None:
    seen: list[tuple[int, float]] = []

    def count(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        seen.extend((len(video), m["fps"]) for video, m in zip(images, metadata, strict=True))
        return [0.0] * len(images)

    video = levels(list(range(33)))
    score(count, video, fps=16.0)
    # from the first to the last: the same two seconds in 5 frames
    score(count, video, Place(frames=5), fps=16.0)
    score(groupwise(lambda images, prompt, metadata: count(images, [], [metadata])), video, Place(frames=9), fps=16.0)
    assert seen == [(33, 16.0), (5, 2.0), (9, 4.0)]


def test_what_reads_motion_is_given_every_frame_and_the_others_are_not() -> None:
    whole = {name for name, row in rewards.TABLE.items() if row.whole}
    assert whole == {"motion", "flicker", "videoalign", "ocr", "nsfw", "remote", "votes-known", "winrate"}
    video = levels([0, 100] * 10)
    # the frames shown of it would be 0, 5, 8, 11 ...
    assert score("flicker", video) == pytest.approx([1 - 100 / 255])
    jpeg = rewards.make("jpeg_compressibility")
    assert getattr(jpeg, "frames", None) == 8


def test_the_embedded_verifier_scores_the_frames_of_a_video() -> None:
    white = np.full((2, 3, 64, 64, 3), 245, np.uint8)
    asked: dict[str, Any] = {"include": [{"class": "circle", "count": 1, "color": "red"}], "tag": "single_object", "exclude": []}
    assert score("shapes:soft", white, **asked) == score("shapes:soft", white[:, 0], **asked)


def test_a_gradient_reaches_the_frames_that_are_scored_and_no_others() -> None:
    made = rewards.make(rewards.differentiable(lambda images, prompts, metadata: images.mean((1, 2, 3, 4))), place=Place(frames=3))
    assert isinstance(made, DifferentiableReward)
    video = torch.rand(1, 9, 2, 2, 3, requires_grad=True)
    made.with_graph(video, ["p"], [{}]).sum().backward()
    assert video.grad is not None and video.grad.abs().sum((0, 2, 3, 4)).nonzero().flatten().tolist() == [0, 4, 8]
