"""A whole run of a policy of videos: metadata, metrics, samples, report, resume."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_video
import tinyrun
import torch
from PIL import Image

from flowrl import moving, settings
from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.draw import Drawn
from flowrl.looks import looks, seen
from flowrl.recipe import EvalSpec, LoraSpec, OptimSpec, PolicySpec, Recipe, RewardSpec, RunSpec, SizesSpec
from flowrl.recipes import build, run
from flowrl.report import write
from flowrl.rewards import videos

STEADY = f"{Path(tiny_video.__file__).resolve()}:steady"


@pytest.fixture(autouse=True)
def of_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_policy", tiny_video.policy)


def recipe(folder: Path, iterations: int = 2, **changes: Any) -> Recipe:
    prompts = folder.with_name("prompts.txt")
    prompts.write_text("\n".join(tinyrun.PROMPTS) + "\n")
    made = Recipe(
        method=tinyrun.MIX,
        rewards=(RewardSpec(STEADY),),
        optim=OptimSpec(lr=1e-2),
        sizes=SizesSpec(prompts=2, group=4, slice=4, batch=4),
        policy=PolicySpec(dtype="float32", steps=4, lora=LoraSpec(rank=0)),
        evaluate=EvalSpec(every=1, quick=2, images=2, steps=2),
        run=RunSpec(iterations=iterations, folder=str(folder), save_every=1, device="cpu"),
    )
    made = replace(made, data=replace(made.data, prompts=str(prompts), heldout=0.3))
    return settings.resolve(made, changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations."""
    folder = tmp_path_factory.mktemp("video") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_policy", tiny_video.policy)
        with tinyrun.one_thread():
            result = run.train(recipe(folder))
    assert result.iterations == 2 and not result.interrupted
    return folder


def test_a_run_trains_on_videos_and_measures_them(done: Path) -> None:
    rows = tinyrun.rows(done)
    assert [row["iteration"] for row in rows] == [0, 1] and all(row["ratio/first_max_abs"] == 0 for row in rows)
    for name in ("reward/mean", "heldout/score", "look/diversity", "look/latent", "look/saturation", "look/edges", "look/entropy"):
        assert all(np.isfinite(row[name]) for row in rows), name
    assert rows[0]["grad/norm"] > 0 and rows[0]["look/diversity"] > 0
    assert settings.load(done / "run.yaml").rewards == (RewardSpec(STEADY),)


def test_its_samples_are_videos_that_play_at_their_rate(done: Path) -> None:
    index = [json.loads(line) for line in (done / "samples" / "index.jsonl").read_text().splitlines()]
    assert index and all(row[side]["file"].endswith(".webp") for row in index for side in ("before", "after"))
    for row in index:
        shown = videos.read(done / "samples" / row["before"]["file"])
        assert shown.pixels.shape == (5, 16, 24, 3) and shown.fps == tiny_video.FPS
        # the score is of this very video
        told = tiny_video.steady(shown.pixels[None], [row["prompt"]], [{"fps": shown.fps}])
        assert told == pytest.approx([row["before"]["score"]], abs=1e-6)
    assert (done / "samples" / "before" / "000_1.webp").is_file()


def test_its_sheets_show_frames_side_by_side(done: Path) -> None:
    index = [json.loads(line) for line in (done / "samples" / "index.jsonl").read_text().splitlines()]
    with Image.open(done / "samples" / "000001.png") as sheet:
        # three frames of 24 with gaps of 2, eightfold
        assert sheet.width == 14 + min(2, len(index)) * ((3 * 24 + 2 * 2) * 8 + 14)


def sources(page: str, kind: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(rf'<img src="data:image/{kind};base64,([^"]+)"', page)]


def test_the_report_shows_them_moving_and_on_paper_still(done: Path) -> None:
    page = (done / "report.html").read_text()
    moving_ones = sources(page, "webp")
    index = (done / "samples" / "index.jsonl").read_text().splitlines()
    assert len(moving_ones) == 2 * len(index) == page.count('class="moving tiny"') == page.count('class="still tiny"')
    with Image.open(io.BytesIO(moving_ones[0])) as picture:
        assert picture.n_frames == 5 and picture.size == (24, 16)
    with Image.open(io.BytesIO(sources(page, "jpeg")[0])) as picture:
        assert picture.size == (2 * 24 + 2, 2 * 16 + 2)
    for rule in ("print,(prefers-reduced-motion:reduce)", ".tiles .moving { display: none }", "score of each video"):
        assert rule in page
    assert "missing" not in re.sub(r"What is missing", "", page)


def test_a_heavy_video_is_made_light_in_the_report(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "samples" / "before").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (21, 200, 400, 3), dtype=np.uint8)
    file = moving.save(folder / "samples" / "before" / "000_0", noise, 10)
    row = {"prompt": "p", "task": None, "before": {"file": "before/000_0.webp", "score": 1}}
    (folder / "samples" / "index.jsonl").write_text(json.dumps(row) + "\n")
    page = write(folder)
    shown = sources(page.read_text(), "webp")[0]
    assert file.stat().st_size > 4_000_000 and page.stat().st_size < 600_000
    with Image.open(io.BytesIO(shown)) as picture:
        # as long as before, whatever number of frames is left
        lasts = 0
        for i in range(picture.n_frames):
            picture.seek(i)
            picture.load()
            lasts += picture.info["duration"]
        assert picture.n_frames < 21 and lasts == pytest.approx(2100, abs=picture.n_frames)


def test_a_resumed_run_equals_one_that_went_through(done: Path, tmp_path: Path) -> None:
    with tinyrun.one_thread():
        run.train(recipe(tmp_path / "run", 1))
        run.train(resume=tmp_path / "run", overrides={"run.iterations": 2})
    tinyrun.same_run(done, tmp_path / "run")


def test_prompts_are_told_the_rate_of_the_policy(caplog: pytest.LogCaptureFixture) -> None:
    given = Prompts(("a", "b"), ({"fps": 8}, {"tag": "x"}), (None, None))
    timed = run.timed(given, 16.0)
    assert timed.metadata == ({"fps": 16.0}, {"tag": "x", "fps": 16.0}) and "fps 8" in caplog.text
    assert run.timed(given, None) is given


# looks


def frames(*levels: int) -> np.ndarray:
    return np.array(levels, np.uint8)[None, :, None, None, None].repeat(8, 2).repeat(8, 3).repeat(3, 4)


def test_diversity_of_videos_is_over_all_their_frames_and_on_the_scale_of_images() -> None:
    one, other = (seen(torch.from_numpy(frames(0, level, 0))) for level in (0, 255))
    image = [seen(torch.from_numpy(frames(level)[:, 0])) for level in (0, 255)]
    # the same first frame; one of three differs
    assert torch.dist(one, other) == pytest.approx(float(torch.dist(*image)) / 3**0.5)


def test_looks_of_a_video_are_of_eight_of_its_frames() -> None:
    video = frames(*range(33))
    video[0, :, :, :, 1:] = 0
    video[0, 5, :, :, 1:] = 5
    assert looks(video)["saturation"] == [6 / 8]


def test_features_of_a_video_are_the_mean_over_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load", lambda name, what: lambda images: images.mean((1, 2)))
    made = build.features("module:function")
    assert made is not None
    assert made(frames(0, 10, 50)).tolist() == [[20, 20, 20]] and made(frames(7)[:, 0]).tolist() == [[7, 7, 7]]


def test_a_process_that_drew_nothing_agrees_on_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowrl import collect
    from flowrl.samplers import chains, laws

    plan = chains(torch.linspace(1, 0, 3, dtype=torch.float64), laws.ode(), (), 2)
    nothing = Drawn(None, torch.zeros(0, dtype=torch.long), None, [], None, {})  # pyright: ignore[reportArgumentType]
    asked: list[int] = []

    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            return [value, 5 * 192]

        def sum(self, *tensors: torch.Tensor) -> None:
            asked.append(tensors[0].shape[-1])

    collect.seemed(nothing, Prompts(("p",), ({},), (None,)), plan, Two())
    assert asked == [5 * 192]
