"""flowrl sample, score and vote with videos."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from flowrl import moving
from flowrl import sample as sampling
from flowrl.choice import Choice
from flowrl.cli import scoring
from flowrl.cli.app import app
from flowrl.rewards import Place, make, videos


class Films:
    """What a pipeline of videos looks like to flowrl sample. pictures: it answers with pictures, not numbers."""

    pictures = False

    def __call__(
        self, prompt: str, num_inference_steps: int, generator: Any, num_frames: int = 9, guidance_scale: float = 1.0
    ) -> Any:
        start = torch.randn(1, generator=generator).item()
        level = (0.1 + 0.8 * (torch.arange(num_frames) / num_frames + start)) % 1
        video = level[:, None, None, None].expand(num_frames, 16, 24, 3).numpy()
        answer = BaseOutput()
        answer["frames"] = [[Image.fromarray((f * 255).round().astype(np.uint8)) for f in video]] if self.pictures else video[None]
        return answer


class Pictures(Films):
    pictures = True


def sampled(folder: Path, pipe: Films, monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[dict[str, Any]]:
    monkeypatch.setattr(sampling, "load_pipeline", lambda spec, device: pipe)
    sampling.sample("films", ["a dawn", "a dusk"], seeds=[0, 1], out=folder, device="cpu", **how)
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pipe", [Films(), Pictures()])
def test_sample_writes_films_and_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: Films) -> None:
    pytest.importorskip("cv2")
    told: list[str] = []
    rows = sampled(tmp_path, pipe, monkeypatch, frames=5, fps=12, progress=told.append)
    assert told[0].startswith("videos are written as .mp4") and len(rows) == 4
    seen = videos.read(tmp_path / rows[0]["file_name"])
    assert rows[0]["file_name"] == "0000-a-dawn-0.mp4" and rows[0]["fps"] == 12 == seen.fps
    assert seen.pixels.shape == (5, 16, 24, 3)
    generator = torch.Generator().manual_seed(0)
    right = sampling.first(pipe("", 1, generator, 5))
    assert right.dtype == np.uint8 and np.abs(seen.pixels.astype(int) - right).max() < 8
    with Image.open(tmp_path / "grid.png") as grid:
        # three frames of each, enlarged
        assert grid.width >= 2 * (3 * 24 + 4)


def test_numbers_and_pictures_of_a_pipeline_are_the_same_bytes() -> None:
    numbers, drawn = (sampling.first(pipe("", 1, torch.Generator().manual_seed(3))) for pipe in (Films(), Pictures()))
    assert numbers.dtype == np.uint8 and np.array_equal(numbers, drawn)


def test_sample_without_an_encoder_writes_animated_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "encoder", lambda: None)
    told: list[str] = []
    rows = sampled(tmp_path, Films(), monkeypatch, progress=told.append)
    assert told[0] == "videos are written as animated .webp (pip install imageio-ffmpeg for .mp4)"
    assert {Path(row["file_name"]).suffix for row in rows} == {".webp"}
    assert len(videos.read(tmp_path / rows[0]["file_name"]).pixels) == 9


def test_sample_keeps_the_best_of_several_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: set[float] = set()

    def last(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        rates.update(m["fps"] for m in metadata)
        return images[:, -1].mean((1, 2, 3)).tolist()

    rows = sampled(tmp_path, Films(), monkeypatch, choice=Choice(make(last), best_of=3), fps=10.0)
    for row in rows:
        assert row["score"] == max(row["scores"]) and len(row["scores"]) == 3
    assert rates == {10.0}


def test_frames_of_a_model_of_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stills:
        def __call__(self, prompt: str, num_inference_steps: int, generator: Any) -> None: ...

    with pytest.raises(ValueError, match="frames 5: Stills draws images; take them out"):
        sampled(tmp_path, Stills(), monkeypatch, frames=5)  # pyright: ignore[reportArgumentType]


# score


def clip(level: int, count: int = 4) -> np.ndarray:
    """Brighter from frame to frame."""
    return (level + 10 * np.arange(count))[:, None, None, None].astype(np.uint8).repeat(16, 1).repeat(24, 2).repeat(3, 3)


def folder(where: Path, **metadata: Any) -> Path:
    """Two videos and an image, with prompts."""
    where.mkdir()
    files = [
        moving.save(where / "a", clip(20), 12.5),
        moving.save(where / "b", clip(120), 12.5),
        moving.save(where / "c", clip(9)[0], None),
    ]
    rows = [{"file_name": file.name, "prompt": f"p{file.stem}", **metadata} for file in files]
    (where / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


def last(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    rates = [m.get("fps", 0.0) for m in metadata]
    return [float((x[-1] if x.ndim == 4 else x).mean()) + rate for x, rate in zip(images, rates, strict=True)]


def test_score_reads_videos_with_their_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = folder(tmp_path / "some")
    with pytest.raises(SystemExit) as ended:
        app(["score", str(where), "--reward", f"{__file__}:last"])
    assert ended.value.code == 0, capsys.readouterr().err
    rows = list(csv.reader((where / "scores" / "scores.csv").open()))
    assert [float(row[2]) for row in rows[1:]] == [50 + 12.5, 150 + 12.5, 9]
    (sheet,) = (where / "scores").glob("*last.png")
    with Image.open(sheet) as picture:
        assert picture.width > scoring.SIDE and picture.height > 2 * scoring.SIDE  # the best above the worst


def test_the_frames_of_a_video_are_read_from_left_to_right() -> None:
    assert moving.four(clip(20))[::18, ::26, 0].tolist() == [[20, 30], [40, 50]]
    assert moving.strip(clip(20), 3)[0, ::26, 0].tolist() == [20, 40, 50]


def test_what_metadata_say_of_the_rate_comes_first_and_frames_can_be_set(tmp_path: Path) -> None:
    files, read = scoring.images(folder(tmp_path / "some", fps=100), None, None)
    assert scoring.run(f"{__file__}:last", files, read, Place()).values == [150, 250, 109]
    # two of four frames, from the first to the last: a third of the rate
    assert scoring.run(f"{__file__}:last", files[:1], read.take([0]), Place(frames=2)).values == pytest.approx([50 + 100 / 3])


def test_films_with_captions_beside_them_are_read(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    for name in "ab":
        moving.film(tmp_path / name, clip(50), 8)
        (tmp_path / f"{name}.txt").write_text(f"caption {name}")
    files, read = scoring.images(tmp_path, None, None)
    assert [file.name for file in files] == ["a.mp4", "b.mp4"] and read.text == ("caption a", "caption b")
    (tmp_path / "prompts.txt").write_text("one\n")
    files, _ = scoring.images(tmp_path, tmp_path / "prompts.txt", None)
    assert len(files) == 2


# vote


def test_a_vote_shows_pictures_that_move_whatever_holds_them(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("cv2")
    from starlette.testclient import TestClient

    from flowrl.vote import pairs
    from flowrl.vote.book import opened
    from flowrl.vote.desk import Desk
    from flowrl.vote.server import application

    files = [moving.save(tmp_path / "a", clip(20), 12.5), moving.film(tmp_path / "b", clip(120), 12.5)]
    rows = [{"file_name": file.name, "prompt": "p"} for file in files]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = pairs.dealt(pairs.among(pairs.pictures(tmp_path), 2), 0)
    assert len(questions) == 1
    client = TestClient(application(Desk("d", opened(tmp_path / "votes.jsonl"), tuple(questions))), base_url="http://localhost")
    for content in client.get("/api/state?voter=me").json()["question"]["images"]:
        answer = client.get(f"/api/image/{content}")
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert picture.n_frames == 4 and picture.size == (24, 16)


def test_votes_on_videos_are_known_by_all_their_frames(tmp_path: Path) -> None:
    from flowrl.rewards.votes.book import content, pixels

    one, other = clip(20), clip(20)
    other[-1] = 0
    assert content(one) != content(other)
    assert content(pixels(moving.save(tmp_path / "a", one, 8))) == content(one)
    image = one[0]
    assert content(pixels(moving.save(tmp_path / "b", image, None))) == content(image)


def test_a_head_is_learned_from_votes_on_videos(tmp_path: Path) -> None:
    from flowrl.rewards.votes.book import Shown, Vote, content

    rng = np.random.default_rng(0)
    lines: list[bytes] = []
    for p in range(4):
        shown = []
        for name in "ab":
            video = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
            shown.append(Shown(moving.save(tmp_path / f"{p}{name}", video, 8).name, content(video)))
        lines.append(Vote(f"vote{p}", "me", f"a red circle {p}", tuple(shown), (0, 1), 1.0, "2026-01-01T00:00:00+00:00").line())
    (tmp_path / "votes.jsonl").write_bytes(b"".join(lines))
    with pytest.warns(UserWarning, match="may have learned nothing"):
        made = make(f"votes:{tmp_path}")
    told = scoring.run(f"votes:{tmp_path}", [tmp_path / "0a.webp"], sampled_prompts(1), Place())
    assert np.isfinite(told.values).all() and made.name.startswith("votes:")


def sampled_prompts(count: int) -> Any:
    from flowrl.data import Prompts

    return Prompts(("a red circle 0",) * count, ({},) * count, (None,) * count)
