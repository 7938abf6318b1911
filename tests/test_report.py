"""The report: one file that loads nothing, says what the folder says, and says what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_run import make
from PIL import Image

from flowrl.folder import RunFolder
from flowrl.report import chart, contact_sheet, write
from flowrl.report.chart import Series

VOID = {"meta", "img", "br", "link", "input", "hr", "path"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data + " "

    def having(self, tag: str, **attrs: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k.rstrip("_").replace("_", "-")) == v for k, v in attrs.items())]


def page(folder: RunFolder | Path) -> Page:
    path = write(folder)
    assert path.name == "report.html"
    found = Page(path.read_text())
    assert not found.open
    return found


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the finished run to break."""
    shutil.copytree(finished.path, tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make(tmp_path_factory.mktemp("runs") / "finished", 40)


def test_what_a_run_had_to_say_of_its_settings_is_shown(run: RunFolder) -> None:
    result = json.loads((run.path / "result.json").read_text())
    assert not page(run).having("ul", aria_label="Of the settings")
    run.write_json("result.json", {**result, "notes": ["the clip <b>cannot</b> act"]})
    found = page(run)
    assert found.having("ul", aria_label="Of the settings") and "the clip <b>cannot</b> act" in found.text
    run.write_json("result.json", {**result, "notes": 3})
    assert not page(run).having("ul", aria_label="Of the settings")


def test_a_finished_run_is_told_whole(finished: RunFolder) -> None:
    found, result = page(finished), json.loads((finished.path / "result.json").read_text())
    assert "mix_grpo on shapes" in found.text
    for key in ("before", "after", "gain"):
        assert (
            f"{result[key]['score']:.3f}" in found.text and f"{result[key]['low']:.3f} to {result[key]['high']:.3f}" in found.text
        )
    for title in ("Before and after", "By task", "Seen beside it", "Training", "Time and versions", "Configuration"):
        assert f"{title} " in found.text
    for title in (
        "Reward in training",
        "Held-out score",
        "Distance from the reference",
        "Clipped",
        "Gradient norm",
        "Ratio check",
        "Groups without contrast",
        "Time by stage",
    ):
        assert any((a.get("aria-label") or "").startswith(title) for a in found.having("div", role="img")), title
    assert "further judge (second)" in found.text and "24.10" in found.text and "0.412" in found.text
    assert "lora.rank" in found.text and "2.15.0" in found.text and "18.4" in found.text
    assert not found.having("ul", class_="notes")


def test_it_is_one_file_that_loads_nothing(finished: RunFolder) -> None:
    found = page(finished)
    assert found.having(
        "meta", http_equiv="Content-Security-Policy", content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    )
    assert not {t for t, _ in found.tags} & {"script", "link", "iframe", "object", "base"}
    for _, attrs in found.tags:
        for name, value in attrs.items():
            assert name not in ("href", "srcset") and not name.startswith("on")
            assert name != "src" or (value or "").startswith("data:image/")
    style = (finished.path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "@import" not in style and "url(" not in style


def test_every_image_has_a_text_and_its_score_below(finished: RunFolder) -> None:
    found = page(finished)
    images = found.having("img")
    assert len(images) == 6 * 4 * 2 + 3 and all(a.get("alt") for a in images)
    first = json.loads((finished.samples / "index.jsonl").read_text().splitlines()[0])
    assert found.having("img", alt=f"before: {first['prompt']}, score {first['before']['score']:.3g}")
    assert all(a.get("aria-label") for t, a in found.tags if a.get("role") == "img")


def test_axes_are_named(finished: RunFolder) -> None:
    text = (finished.path / "report.html").read_text()
    charts = text.split('<figure class="chart')[1:]
    assert len(charts) == 8
    for one in charts:
        assert '<div class="xname">iteration</div>' in one and re.search(r'<div class="unit">[^<]+</div>', one)
        assert one.count('<span style="top:') >= 2 and one.count('<span style="left:') >= 2


def test_prompts_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    folder = make(tmp_path / "run", 4, prompts=(evil,))
    config = {"run": {"name": evil}, "method": {"name": evil}, evil: {evil: evil}}
    folder.write_yaml("run.yaml", config)
    result = json.loads((folder.path / "result.json").read_text())
    folder.write_json(
        "result.json",
        result | {"method": evil, "model": evil, "versions": {evil: evil}, "judges": [{"name": evil, "before": 1, "after": 2}]},
    )
    found = page(folder)
    assert found.text.count(evil) >= 8
    assert not found.having("script") and not [a for _, a in found.tags if "onerror" in a or a.get("src") == "x"]


def test_an_interrupted_run_says_so_and_shows_what_there_is(tmp_path: Path) -> None:
    found = page(make(tmp_path / "run", 40, finished=False))
    assert "interrupted after 20 iterations" in found.text and "no final evaluation yet" in found.text
    assert "Reward in training" in found.text and "Contact sheets" in found.text and "By task" not in found.text


def test_images_from_before_training_alone_are_no_fault(run: RunFolder) -> None:
    index = run.samples / "index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    index.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "after"}) + "\n" for r in rows))
    found = page(run)
    assert "There are no images after training yet" in found.text and "missing" not in found.text.split()
    assert not [a for a in found.having("img") if (a["alt"] or "").startswith("after:")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("result.json", "There is no result.json"),
        ("run.yaml", "There is no run.yaml"),
        ("metrics.jsonl", "metrics.jsonl has no rows"),
        ("samples/index.jsonl", "There is no samples/index.jsonl"),
        ("samples/before/00_0.png", "1 of the images named in samples/index.jsonl"),
    ],
)
def test_a_missing_piece_is_named_and_the_rest_is_there(run: RunFolder, name: str, said: str) -> None:
    (run.path / name).unlink()
    found = page(run)
    assert said in found.text and found.having("ul", class_="notes")
    assert "mix_grpo on shapes" in found.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result.json", '{"method": ', "result.json cannot be read"),
        ("run.yaml", "a: [", "run.yaml cannot be read"),
        ("samples/index.jsonl", '{"prompt"\n', "1 lines of samples/index.jsonl cannot be read"),
        ("samples/after/00_0.png", "no picture", ""),
        ("result.json", '{"before": 3, "after": [1], "gain": null, "judges": 5, "versions": []}', ""),
        ("run.yaml", "[1, 2]", ""),
    ],
)
def test_a_broken_piece_is_named_and_the_rest_is_there(run: RunFolder, name: str, content: str, said: str) -> None:
    (run.path / name).write_text(content)
    found = page(run)
    assert said in found.text and "Reward in training" in found.text


def test_metrics_with_gaps_are_drawn_as_far_as_they_go(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.log({"iteration": 0, "reward/mean": 0.5, "reward/std": None, "kl/mean": float("nan")})
    found = page(folder)
    assert "Reward in training" in found.text
    # a method without a ratio logs neither of its metrics; one of them alone is a gap
    assert "Not logged, so not drawn: heldout/score, kl/mean, grad/norm, reward/zero_variance" in found.text
    folder.log({"iteration": 1, "reward/mean": None, "clip/fraction": 0.1})
    assert "kl/mean, grad/norm, ratio/first_max_abs, reward" in page(folder).text
    folder.log({"iteration": 2, "reward/mean": 0.7, "reward/std": 0.1, "heldout/score": 0.2})
    assert "Held-out score" in page(folder).text


def test_an_empty_folder_gives_a_page_and_no_folder_a_sentence(tmp_path: Path) -> None:
    assert "metrics.jsonl has no rows" in page(tmp_path).text
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: give the folder of a run"):
        write(tmp_path / "nowhere")


def test_files_outside_of_the_run_are_never_taken_in(tmp_path: Path, run: RunFolder) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    row = {
        "prompt": "p",
        "task": None,
        "before": {"file": "../../secret.png", "score": 1},
        "after": {"file": str(tmp_path / "secret.png"), "score": 1},
    }
    (run.samples / "index.jsonl").write_text(json.dumps(row) + "\n")
    assert "2 of the images" in page(run).text


def test_large_images_are_shrunk(run: RunFolder) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    Image.fromarray(noise).save(run.samples / "before" / "00_0.png")
    page(run)
    assert (run.samples / "before" / "00_0.png").stat().st_size > 3_000_000
    assert (run.path / "report.html").stat().st_size < 2_000_000


def test_differences_without_paired_gains_of_tasks_are_called_what_they_are(run: RunFolder) -> None:
    result = json.loads((run.path / "result.json").read_text())
    assert "as if before and after were independent" not in page(run).text
    del result["gain"]["tasks"]
    run.write_json("result.json", result)
    assert "as if before and after were independent" in page(run).text


def test_a_gain_that_could_be_chance_is_not_called_one(run: RunFolder) -> None:
    result = json.loads((run.path / "result.json").read_text())
    for gain, said in (
        ((0.02, -0.01, 0.05), "cannot tell from chance"),
        ((0.1, 0.05, 0.15), "rose by 0.100"),
        ((-0.1, -0.15, -0.05), "fell by 0.100"),
    ):
        run.write_json("result.json", result | {"gain": dict(zip(("score", "low", "high"), gain, strict=True))})
        assert said in page(run).text


def test_one_prompt_has_no_interval_and_the_run_is_finished_all_the_same(run: RunFolder) -> None:
    result = json.loads((run.path / "result.json").read_text())
    one = {"before": 0.5000321, "after": 0.5000161}
    ends = {side: {"score": value, "low": None, "high": None, "n": 1, "tasks": {}} for side, value in one.items()}
    gain = {"score": -1.6e-5, "standard_error": None, "low": None, "high": None, "tasks": {}}
    run.write_json("result.json", {**result, **ends, "gain": gain, "iterations": 1, "protocol": {"images": 1, "steps": 1}})
    rows = [{k: v for k, v in row.items() if not k.startswith("heldout/")} for row in run.rows()]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = page(run)
    text = " ".join(found.text.split())
    assert "no final evaluation" not in text and "heldout/score" not in text
    assert "The held-out score did not change; one prompt has no interval." in text
    assert "1 held-out prompt " in text and "1 iteration " in text and "1 image a prompt, 1 step " in text
    # equal as they are shown: no red difference between them
    assert found.having("div", class_="gain same") and "difference +0.000" in text and "1.6e-5" not in text


def test_a_small_difference_of_small_scores_keeps_its_sign_and_colour(run: RunFolder) -> None:
    result = json.loads((run.path / "result.json").read_text())
    ends = {"before": {"score": 3e-5}, "after": {"score": 1e-5}, "gain": {"score": -2e-5}}
    run.write_json("result.json", {**result, **ends})
    found = page(run)
    assert found.having("div", class_="gain down") and "The held-out score changed by −2.0e-5; no interval is known." in found.text


def test_points_lie_where_their_values_say() -> None:
    f = chart.Frame(0, 10, -1, 3)
    assert (f.x(0), f.x(10), f.y(-1), f.y(3), f.y(1)) == (0, 1000, 1000, 0, 500)
    assert chart.line_path(f, [0, 5], [-1, 3]) == "M0.0,1000.0L500.0,0.0"
    drawn = chart.lines("t", "u", [Series("s", [0.0, 4.0], [1.0, 2.0])])
    assert "iteration 0" in drawn and "<span>s 1.000</span>" in drawn and "<span>s 2.000</span>" in drawn


def test_long_runs_are_thinned_without_losing_the_ends_of_the_band() -> None:
    n = 1000
    y = [float(i % 7) for i in range(n)]
    thin = chart.thin(Series("s", [float(i) for i in range(n)], y, y, [v + 1 for v in y]))
    assert len(thin.x) <= chart.POINTS and np.mean(thin.y) == pytest.approx(np.mean(y), rel=0.01)
    assert thin.low is not None and thin.high is not None
    assert min(v for v in thin.low if v is not None) == 0 and max(v for v in thin.high if v is not None) == 7
    gaps = chart.thin(Series("s", [float(i) for i in range(n)], y, [None] * n, [None, *[1.0] * (n - 1)]))
    assert gaps.low is not None and set(gaps.low) == {None} and gaps.high is not None and set(gaps.high) == {1.0}


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, ["0.0", "0.5", "1.0"]),
        (0.13, 0.47, ["0.2", "0.3", "0.4"]),
        (0, 4e-4, ["0", "2.0e-4", "4.0e-4"]),
        (3, 3, ["3"]),
        (-1, 99, ["0", "25", "50", "75"]),
        (0, 12345, ["0", "5,000", "10,000"]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, wanted: list[str]) -> None:
    assert chart.labels(chart.ticks(low, high, 4)) == wanted


def test_a_contact_sheet_shows_every_image_enlarged_with_hard_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 40, 50, 3), dtype=np.uint8)
    sheet = np.asarray(contact_sheet(images, [f"caption {i}" for i in range(5)], columns=3))
    # 40 pixels need a factor of 4 to reach 128.
    height, width = 160, 200
    assert sheet.shape[1] == 14 + 3 * (width + 14)
    below = sheet.shape[0] // 2 - height
    for i, image in enumerate(images):
        left = 14 + i % 3 * (width + 14)
        top = 14 + i // 3 * ((sheet.shape[0] - 14) // 2)
        shown = sheet[top : top + height, left : left + width]
        assert (shown == image.repeat(4, 0).repeat(4, 1)).all()
        assert (sheet[top + height : top + height + below, left : left + width] != np.array([250, 249, 246])).any()


def test_scores_on_a_contact_sheet_are_coloured_from_worst_to_best() -> None:
    images = np.full((3, 128, 128, 3), 250, dtype=np.uint8)

    def colours(scores: list[float | None]) -> list[set[tuple[int, ...]]]:
        sheet = np.asarray(contact_sheet(images, ["", "", ""], 3, scores))
        return [{tuple(int(v) for v in c) for c in sheet[143:, 14 + i * 142 : 142 + i * 142].reshape(-1, 3)} for i in range(3)]

    worst, best, none = colours([0.0, 1.0, float("nan")])
    assert (180, 71, 47) in worst and (14, 118, 110) in best and (106, 111, 118) in none
    assert (180, 71, 47) in colours([20.0, 22.0, 24.0])[0] and (14, 118, 110) in colours([20.0, 22.0, 24.0])[2]


def test_long_captions_are_wrapped_and_cut() -> None:
    images = np.zeros((1, 128, 128, 3), dtype=np.uint8)
    short, long = (contact_sheet(images, [text], 1) for text in ("one", "word " * 80 + "x" * 300))
    assert short.width == long.width and short.height < long.height < 128 + 90


@pytest.mark.parametrize(
    ("images", "captions", "columns", "scores", "said"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), [], 1, None, "at least one"),
        (np.zeros((1, 8, 8, 3), np.float32), ["a"], 1, None, "uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), ["a"], 1, None, "2 images got 1 captions"),
        (np.zeros((1, 8, 8, 3), np.uint8), ["a"], 0, None, "0 columns"),
        (np.zeros((1, 8, 8, 3), np.uint8), ["a"], 1, [1.0, 2.0], "2 scores"),
    ],
)
def test_a_contact_sheet_of_things_that_do_not_fit_is_refused(
    images: np.ndarray, captions: list[str], columns: int, scores: list[float | None] | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        contact_sheet(images, captions, columns, scores)
