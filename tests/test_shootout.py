"""The shootout's book, order of work and verdicts; training is made up but for one slow test."""

from __future__ import annotations

import fcntl
import math
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import shootout
import shootout_jobs as book
import shootout_report
import shootout_stats as stats
from shootout_jobs import Job, Options
from shootout_stats import Estimate

SMALL = Options(methods=("flow_grpo", "diffusion_nft"), rates=(1e-4, 1e-3), seeds=(0, 1), captions=4, images=2)


def made_up(job: Job) -> dict[str, Any]:
    """A line as a run writes it: DiffusionNFT gets better with time, faster at the higher rate, nothing else moves."""
    good = job.method == "diffusion_nft" and job.kind != "control" and job.lr == 1e-3
    after = [2, 2, 1 + job.seed % 2, 2] if good else [0, 1, 2, 1]
    look = {"seconds": 60 * job.minutes, "rows": [960, 480], "scores": after}
    return {
        **asdict(job),
        **look,
        "score": sum(after) / 8,
        "error": None,
        "iterations": 3,
        "cpu_seconds": 1.0,
        "rewards": [0.5, 0.6, 0.7],
        "curve": [{**look, "seconds": 30 * job.minutes, "rows": [480, 240]}, look] if job.kind == "run" else [],
        "threads": 1,
        "prompts": 8,
        "versions": {"torch": "2"},
        "commit": "0000000",
    }


def names(lines: Sequence[Any]) -> list[tuple[str, str, int]]:
    return [(line["kind"], line["method"], line["seed"]) for line in lines]


def test_work_goes_base_searches_seed_by_seed_and_controls_last(tmp_path: Path) -> None:
    assert shootout.work(SMALL, tmp_path / "s.jsonl", made_up) == 0
    lines = book.read(tmp_path / "s.jsonl")
    pair = ("flow_grpo", "diffusion_nft")
    assert names(lines) == [
        ("base", "", 0),
        *[("search", name, book.SEARCH_SEED) for name in pair for _ in SMALL.rates],
        *[("run", name, 0) for name in pair],
        *[("run", name, 1) for name in pair],
        *[("control", name, 0) for name in pair],
    ]
    # the best rate, of equal ones the lowest
    assert {line["method"]: line["lr"] for line in lines if line["kind"] == "run"} == {"flow_grpo": 1e-4, "diffusion_nft": 1e-3}


@pytest.mark.parametrize("stop", range(1, 11))
def test_a_kill_at_any_job_loses_that_job_alone(tmp_path: Path, stop: int) -> None:
    path, calls = tmp_path / "s.jsonl", []

    def killed(job: Job) -> dict[str, Any]:
        calls.append(job)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return made_up(job)

    with pytest.raises(KeyboardInterrupt):
        shootout.work(SMALL, path, killed)
    assert len(book.read(path)) == stop - 1
    again: list[Job] = []
    shootout.work(SMALL, path, lambda job: again.append(job) or made_up(job))
    assert again[0] == calls[-1]
    assert len(again) == 12 - stop
    assert len(book.read(path)) == 11


def test_half_a_last_line_is_said_left_out_and_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, job = tmp_path / "s.jsonl", book.search(SMALL, "flow_grpo")[0]
    book.append(path, made_up(job))
    whole = path.read_bytes()
    for tail in (b'{"kind":"run","sco', whole[:-1], b"\xff\xfe\x00"):
        path.write_bytes(whole + tail)
        assert len(book.read(path)) == 1
        assert "line 2 of s.jsonl is not whole" in capsys.readouterr().out
        book.append(path, made_up(replace(job, seed=7)))
        assert [line["seed"] for line in book.read(path)] == [book.SEARCH_SEED, 7]


def test_a_failed_job_is_left_out_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(job: Job) -> dict[str, Any]:
        if job.kind == "control":
            raise RuntimeError("no memory")
        return made_up(job)

    assert shootout.work(SMALL, tmp_path / "s.jsonl", breaks) == 2
    assert "RuntimeError: no memory" in capsys.readouterr().out
    assert len(book.read(tmp_path / "s.jsonl")) == 9
    assert shootout.work(SMALL, tmp_path / "s.jsonl", made_up) == 0
    assert len(book.read(tmp_path / "s.jsonl")) == 11


def test_a_job_claimed_by_another_process_is_passed_over(tmp_path: Path) -> None:
    path, job = tmp_path / "s.jsonl", book.search(SMALL, "flow_grpo")[0]
    ready, leave = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with book.claimed(path, job) as mine:
            os.write(ready[1], b"1" if mine else b"0")
            os.read(leave[0], 1)
            os._exit(0)
    assert os.read(ready[0], 1) == b"1"
    assert shootout.one(path, job, made_up) is None
    assert shootout.one(path, replace(job, seed=7), made_up) is True
    os.write(leave[1], b"1")
    os.waitpid(child, 0)  # it died with the claim in its hand
    assert shootout.one(path, job, made_up) is True
    assert shootout.one(path, job, made_up) is None, "done already"


def test_lines_do_not_mix_when_two_append(tmp_path: Path) -> None:
    path, job = tmp_path / "s.jsonl", book.search(SMALL, "flow_grpo")[0]
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other = threading.Thread(target=book.append, args=(path, made_up(job)))
        other.start()
        other.join(0.2)
        assert other.is_alive() and not path.read_bytes()
    other.join(5)
    assert len(book.read(path)) == 1


def test_a_method_that_does_not_exist_yet_is_said_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert book.known(["flow_grpo", "awm", "nonsense"], ["flow_grpo"]) == ["flow_grpo"]
    said = capsys.readouterr().out
    assert "awm is not among the methods of flowrl" in said and "nonsense is not among the methods compared" in said


def test_a_search_that_broke_down_is_not_chosen() -> None:
    jobs = book.search(SMALL, "diffusion_nft")
    lines = [made_up(job) for job in jobs]
    assert book.chosen(lines[:1], jobs) is None
    assert book.chosen(lines, jobs) == 1e-3
    lines[1]["error"] = "the gradient is nan"
    assert book.chosen(lines, jobs) == 1e-4


def test_the_interval_of_a_gain_holds_new_seeds_and_new_captions() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        seeds, captions = rng.normal(0, 0.05, (3, 1)), rng.normal(0, 0.3, 40)
        before = rng.random(40)
        found = stats.gain(before, before + 0.1 + seeds + captions + rng.normal(0, 0.2, (3, 40)))
        inside += found.low <= 0.1 <= found.high
    assert 0.94 <= inside / 400 <= 1.0
    one = stats.gain(np.zeros(40), rng.normal(0, 1, (1, 40)))
    assert one.seeds == 1 and one.low < one.score < one.high


def curve(*scores: float, width: float = 0.02, seeds: int = 3) -> list[Estimate]:
    return [Estimate(s, s - (width if i else 0), s + (width if i else 0), seeds) for i, s in enumerate(scores)]


def test_overlapping_intervals_decide_nothing() -> None:
    # at half of the time (the fifth point) the faster one is above, overlaps, is below
    slow, grid = curve(0.0, 0.2)[-1], (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
    assert stats.verdict(0.5, curve(0, 0.1, 0.2, 0.22, 0.25, 0.3, 0.3), slow, grid)[0] == "reproduced"
    assert stats.verdict(0.5, curve(0, 0.1, 0.1, 0.1, 0.21, 0.3, 0.3), slow, grid)[0] == "not decided"
    assert stats.verdict(0.5, curve(0, 0.0, 0.0, 0.1, 0.15, 0.3, 0.3), slow, grid)[0] == "not reproduced"
    assert stats.verdict(0.5, None, slow) == ("not decided", "not measured")
    assert stats.verdict(0.5, curve(*[0.5] * 7), curve(0, 0.01)[-1])[1].startswith("the slower one's gain is not clear")
    assert stats.verdict(0.5, curve(*[0.5] * 7, seeds=1), slow)[1] == "one seed says nothing of others"
    assert stats.above(curve(0, 0.2)[1], curve(0, 0.15)[1])
    assert not stats.above(curve(0, 0.2)[1], curve(0, 0.17)[1])
    assert not stats.above(curve(0, 0.2, seeds=1)[1], curve(0, 0.1)[1])


def test_a_level_is_crossed_between_the_looks_or_never() -> None:
    assert stats.crossing([0, 1, 3], [0, 0.2, 0.4], 0.3) == pytest.approx(2)
    assert stats.crossing([0, 1], [0, 0.2], 0) == 0
    assert stats.crossing([0, 1], [0, 0.2], 0.3) == math.inf


def test_the_report_is_made_of_the_lines_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.jsonl"
    with pytest.raises(ValueError, match="run without --report first"):
        shootout_report.write(SMALL, path, tmp_path / "f.png")
    shootout.work(SMALL, path, made_up)
    shootout_report.write(SMALL, path, tmp_path / "f.png")
    text = (tmp_path / "SHOOTOUT.md").read_text()
    assert "untrained 0.500" in text and "![held-out accuracy](f.png)" in text
    row = next(line for line in text.splitlines() if line.startswith("| diffusion_nft | 2 |"))
    assert "+0.438" in row and "| 0.001 |" in row
    assert (tmp_path / "f.png").stat().st_size > 10_000
    assert text.count("| not decided |") == len(stats.CLAIMS)
    before, found = shootout_report.results(SMALL, book.read(path))
    assert before.tolist() == [0, 0.5, 1, 0.5]
    half = found["diffusion_nft"].gains[stats.GRID.index(0.25)].score
    assert half == pytest.approx(found["diffusion_nft"].end.score / 2), "straight from the start to the look at half of the time"


@pytest.mark.slow
def test_a_real_run_leaves_a_line_and_counts_its_rows(tmp_path: Path) -> None:
    job = Job("run", "diffusion_nft", {"draws": 4, "kl": 0.0}, 12, 1e-3, 0, 0.05, 6, 1)
    assert shootout.one(tmp_path / "s.jsonl", job, shootout.run) is True
    (line,) = book.read(tmp_path / "s.jsonl")
    assert line["rows"] == [line["iterations"] * (960 + 384), line["iterations"] * 384]
    assert len(line["scores"]) == 6 and line["curve"][-1]["scores"] == line["scores"]
