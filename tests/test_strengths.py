"""Pictures of the adapter at several strengths: what is drawn at each, and how the report shows them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tinyrun
from fake_run import make
from PIL import Image

from flowrl.heldout import judge
from flowrl.loop import begin
from flowrl.recipes import strengths
from flowrl.report import write
from flowrl.sizes import Sizes


def test_the_same_noise_at_every_strength_and_the_base_at_none(tmp_path: Path) -> None:
    parts = tinyrun.parts()
    session, few = begin(parts, Sizes(4, 4)), parts.prompts.take([0, 4])
    drawn = strengths.drawn(parts, session, few)
    assert list(drawn) == [0.0, 0.5, 1.0, 1.5]

    def seen() -> np.ndarray:
        made = judge(parts.policy, few, {}, 1, parts.recipe.evaluate.steps, session.sizes, parts.world, show=(0, 1))
        return np.stack([made.pictures[i, 0].numpy() for i in (0, 1)])

    assert np.array_equal(drawn[1.0], seen())
    with parts.policy.reference():
        assert np.array_equal(drawn[0.0], seen())
    away = [float(np.abs(drawn[v].astype(float) - drawn[0.0]).mean()) for v in (0.5, 1.0, 1.5)]
    assert 0.5 < away[0] < away[1] < away[2]


def test_videos_are_shown_by_their_middle_frame(tmp_path: Path) -> None:
    from flowrl.folder import RunFolder

    parts = tinyrun.parts()
    videos = np.zeros((2, 5, 8, 8, 3), np.uint8)
    videos[:, 2] = 200
    strengths.save_strengths(RunFolder(tmp_path), parts.prompts.take([0, 1]), {0.0: videos, 1.0: videos})
    assert all((np.asarray(Image.open(p)) == 200).all() for p in (tmp_path / "samples" / "strengths").glob("*.png"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make(tmp_path / "run", 3).path
    place = folder / "samples" / "strengths"
    place.mkdir()
    for value in ("0", "1"):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(place / f"0_{value}.png")
    rows = [
        {"prompt": "a <b> & c", "files": {"0": "0_0.png", "1": "0_1.png"}},
        {"prompt": "gone", "files": {"0": "../../../x.png"}},
    ]
    (place / "index.json").write_text(json.dumps({"strengths": ["0", "1"], "rows": rows}))
    return folder


def test_the_report_has_a_row_a_prompt_and_a_column_a_strength(run: Path) -> None:
    page = write(run).read_text()
    part = page.partition("The LoRA by strength")[2].partition("</section>")[0]
    assert part.count("<img") == 2 and part.count('class="gone"') == 2  # a file outside the run is not taken in
    assert "a &lt;b&gt; &amp; c, strength 1" in part and "--n:2" in part
    assert "http" not in part


@pytest.mark.parametrize("content", [None, "{", "[]", '{"strengths": 3, "rows": [1]}', '{"strengths": ["0"], "rows": []}'])
def test_a_run_without_them_has_no_such_part(run: Path, content: str | None) -> None:
    index = run / "samples" / "strengths" / "index.json"
    index.unlink() if content is None else index.write_text(content)
    assert "by strength" not in write(run).read_text()
