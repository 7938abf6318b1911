"""flowrl vote: what is asked, the book of answers, and the server as a process that dies and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from vote_desk import drawn, folder, lines, request, run, served

from flowrl.cli.app import app
from flowrl.rewards.votes.book import Shown, Undo, Vote, content, entries, read, standing
from flowrl.vote import pairs
from flowrl.vote.book import opened
from flowrl.vote.result import sentences, summary


def vote(
    id: str, ranks: tuple[int, ...] | None, names: str = "ab", prompt: str = "p", voter: str = "me", sides: tuple[str, ...] = ()
) -> Vote:
    images = tuple(Shown(f"{n}.png", n * 32, side) for n, side in zip(names, sides or (None,) * len(names), strict=True))
    return Vote(id, voter, prompt, images, ranks, 1.0, "2026-01-01T00:00:00+00:00")


# what is asked


def test_a_run_asks_before_against_after_of_the_same_noise_once_each(tmp_path: Path) -> None:
    found = pairs.pictures(run(tmp_path / "r", captions=3, images=2))
    assert len(found) == 12
    asked, same = pairs.facing(found)
    questions = pairs.dealt(asked, 0)
    assert same == 0 and len(questions) == 6
    for question in questions:
        first, last = sorted(question.images, key=lambda i: i.side != "before")
        assert (first.side, last.side) == ("before", "after") and Path(first.file).name == Path(last.file).name
        assert content(np.asarray(Image.open(tmp_path / "r" / first.file))) == first.content
    # one of every caption before a second of any
    assert len({q.prompt for q in questions[:3]}) == 3


def test_images_that_are_equal_to_the_pixel_are_not_asked_about(tmp_path: Path) -> None:
    where = run(tmp_path / "r")
    samples = where / "samples"
    (samples / "after" / "001_0.png").write_bytes((samples / "before" / "001_0.png").read_bytes())
    asked, same = pairs.facing(pairs.pictures(where))
    assert same == 1 and {q.prompt for one in asked for q in one} == {"caption number 0", "caption number 2"}


@pytest.mark.parametrize(("images", "size"), [(2, 2), (5, 2), (4, 4), (7, 3), (9, 4)])
def test_least_seen_images_come_first_until_every_two_have_met(tmp_path: Path, images: int, size: int) -> None:
    (asked,) = pairs.among(pairs.pictures(folder(tmp_path / "f", 1, images)), size, 10_000)
    seen: Counter[str] = Counter()
    met: Counter[frozenset[str]] = Counter()
    for number, question in enumerate(asked):
        names = [image.content for image in question.images]
        assert len(set(names)) == min(size, images)
        if (number + 1) * size <= images:
            assert not any(seen[name] for name in names), "both unseen while there are unseen ones"
        seen.update(names)
        met.update(frozenset((a, b)) for a in names for b in names if a < b)
    assert len(met) == images * (images - 1) // 2
    if size == 2:
        assert set(met.values()) == {1} and max(seen.values()) - min(seen.values()) == 0


def test_the_limit_keeps_questions_in_proportion_to_images(tmp_path: Path) -> None:
    found = pairs.pictures(folder(tmp_path / "f", 2, 9))
    assert [len(asked) for asked in pairs.among(found, 2)] == [18, 18]
    assert [len(asked) for asked in pairs.among(found, 2, 3)] == [3, 3]


def test_questions_and_sides_depend_on_seed_and_voter_only(tmp_path: Path) -> None:
    found = pairs.pictures(folder(tmp_path / "f", 8, 4))
    one, two, other = (pairs.dealt(pairs.among(found, 2), seed) for seed in (0, 0, 1))
    assert one == two and one != other and sorted(map(str, one)) == sorted(map(str, other))
    turned = [[q.turned(0, voter).images for q in one] for voter in ("a", "a", "b")]
    assert turned[0] == turned[1] != turned[2]
    # a keyed hash: no image is favoured with the left place
    left = sum(t[0].content < t[1].content for t in turned[0])
    assert 0.25 < left / len(one) < 0.75


def test_folders_without_anything_to_compare_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompt has two different images"):
        pairs.among(pairs.pictures(folder(tmp_path / "one", 3, 1)), 2)
    where = run(tmp_path / "r")
    for file in (where / "samples" / "after").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="before and after training of the same prompt; compare images with --among"):
        pairs.facing(pairs.pictures(where))
    (where / "samples" / "index.jsonl").write_text('{"prompt": "p", "before": {"file": "../../../etc/passwd"}}\n')
    with pytest.raises(ValueError, match="outside of the run's folder"):
        pairs.pictures(where)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        pairs.pictures(tmp_path / "nowhere")


# the book


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    book = opened(tmp_path / "votes.jsonl")
    told = [vote("a" * 8, (0, 1)), vote("b" * 8, None), vote("c" * 8, (2, 0, 1), "xyz", 'a "quoted"\nprompt — ü'),
            Undo("d" * 8, "a" * 8, "me", "now")]  # fmt: skip
    for entry in told:
        book.add(entry)
    assert entries(tmp_path / "votes.jsonl") == told == book.held
    assert standing(told) == told[1:3]


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_line_torn_anywhere_is_left_out_and_swallows_nothing(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "votes.jsonl"
    whole, torn = vote("a" * 8, (0, 1)), vote("b" * 8, (1, 0))
    path.write_bytes(whole.line() + torn.line()[:-cut])
    if cut == 1:  # only the line's end is missing: the vote is there
        assert entries(path) == [whole, torn]
    else:
        with pytest.warns(UserWarning, match=r"votes.jsonl, line 2: not a whole vote, left out"):
            assert entries(path) == [whole]
    with pytest.warns(UserWarning) if cut > 1 else no_warning():
        book = opened(path)
        book.add(vote("c" * 8, (1, 0)))
        assert [entry.id[0] for entry in entries(path)] == (["a", "b", "c"] if cut == 1 else ["a", "c"])


def no_warning() -> Any:
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.parametrize(
    "line", ["[]", "{}", "3", '{"kind": "vote"}', '{"kind": "vote", "id": 3}', '{"kind": "tea", "id": "x"}', "[" * 100_000, "\x00"]
)
def test_lines_that_are_no_votes_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_bytes(line.encode() + b"\n" + vote("a" * 8, (0, 1)).line())
    with pytest.warns(UserWarning, match="line 1"):
        assert [v.id for v in read(path)] == ["a" * 8]


def test_two_processes_cannot_write_one_book(tmp_path: Path) -> None:
    kept = opened(tmp_path / "votes.jsonl")
    with pytest.raises(BlockingIOError, match="being written to by another flowrl vote"):
        opened(tmp_path / "votes.jsonl")
    kept.file.close()
    opened(tmp_path / "votes.jsonl").file.close()


# what votes say


def test_after_against_before_counts_captions_not_votes() -> None:
    sides = ("before", "after")
    votes = [vote(f"a{i}", (1, 0), "ab", "often", sides=sides) for i in range(30)]
    votes += [vote("b", (0, 1), "ab", "once", sides=sides), vote("c", (0, 0), "ab", "tie", sides=sides)]
    votes += [vote("d", None, "ab", "unsaid", sides=sides), vote("e", (0, 1), "ab", "other")]
    found = summary(votes)
    assert found["after"]["rate"] == pytest.approx((1 + 0 + 0.5) / 3) and found["after"]["n"] == 3
    assert (found["votes"], found["ties"], found["unsaid"]) == (34, 1, 1)
    assert found["left"]["n"] == 32 and found["left"]["rate"] == pytest.approx(2 / 32)
    said = sentences(found)
    assert "after beat before in 50%" in said[1] and "the voter favours a side" in said[2]


def test_a_ranking_judges_each_image_after_against_each_before() -> None:
    sides = ("before", "after", "after", "before")
    assert summary([vote("a", (1, 0, 2, 3), "abcd", sides=sides)])["after"]["rate"] == pytest.approx(3 / 4)


# the server


def test_votes_outlive_kill_9_and_the_session_goes_on_where_it_was(tmp_path: Path) -> None:
    where = run(tmp_path / "r", captions=4)
    asked = []
    with served(where) as server:
        for number, ranks in enumerate(([0, 1], None)):
            asked.append(server.state()["question"])
            status, told = server.vote(ranks, f"vote-000{number}")
            assert status == 200 and told["done"] == number + 1
        waiting = server.state()
        server.kill()
    with (where / "votes.jsonl").open("ab") as torn:
        torn.write(b'{"kind": "vote", "id": "half')
    with served(where) as server:
        assert server.state() == waiting
        status, told = server.vote([0, 0], "vote-0002")
        assert (status, told["done"], told["total"]) == (200, 3, 4)
        server.kill()
    with pytest.warns(UserWarning, match="line 3"):
        votes = read(where / "votes.jsonl")
    assert [v.ranks for v in votes] == [(0, 1), None, (0, 0)]
    for question, given in zip(asked, votes, strict=False):
        assert [image.content for image in given.images] == question["images"] and given.prompt == question["prompt"]
        assert {image.side for image in given.images} == {"before", "after"}


def test_answers_are_counted_once_taken_back_and_kept_apart_by_voter(tmp_path: Path) -> None:
    where = run(tmp_path / "r", captions=2)
    with served(where) as server:
        first = server.state()["question"]["key"]
        assert server.vote([0, 1], "vote-0001")[0] == 200
        for _ in range(3):  # the same submission again, as after a lost answer
            assert server.vote([0, 1], "vote-0001", question=first)[1]["done"] == 1
        status, told = server.vote([1, 0], "vote-0002", question=first)
        assert status == 409 and "answered already" in told["error"]
        assert len(lines(where)) == 1
        back = {"id": "undo-0001", "voter": "me", "of": "vote-0001"}
        for _ in range(2):
            status, told = server.post("api/undo", back)
            assert (status, told["done"], told["question"]["key"]) == (200, 0, first)
        assert server.post("api/undo", {**back, "id": "undo-0002"})[0] == 409
        assert len(lines(where)) == 2
        # a submission that was under way when it was taken back does not come back
        assert server.vote([0, 1], "vote-0001", question=first)[1]["done"] == 0
        assert server.vote([1, 0], "vote-0003", question=first)[1]["done"] == 1
        # another voter is asked what nobody answered first
        anna = server.state("anna")
        assert anna["done"] == 0 and anna["question"]["prompt"] != read(where / "votes.jsonl")[0].prompt
        assert server.post("api/undo", {"id": "undo-0003", "voter": "anna", "of": "vote-0003"})[0] == 409
        assert server.vote(None, "vote-0004")[1]["result"]["unsaid"] == 1


BAD: list[tuple[Any, int]] = [
    ({}, 422), ([], 422), (3, 422), (None, 422), ("x", 422),
    ({"ranks": [0]}, 422), ({"ranks": [0, 1, 2]}, 422), ({"ranks": [0, 5]}, 422), ({"ranks": [0, -1]}, 422),
    ({"ranks": [0.5, 1]}, 422), ({"ranks": "01"}, 422), ({"ranks": [True, 1]}, 422), ({"ranks": list(range(99))}, 422),
    ({"seconds": -1}, 422), ({"seconds": "1"}, 422), ({"seconds": 1e300}, 422), ({"seconds": None}, 422),
    ({"id": "short"}, 422), ({"id": "x" * 65}, 422), ({"id": "../../etc"}, 422), ({"id": "line\nline\nline"}, 422),
    ({"voter": ""}, 422), ({"voter": "a b"}, 422), ({"voter": "x" * 41}, 422), ({"voter": "me\n"}, 422),
    ({"question": "0" * 32}, 404), ({"extra": 1}, 422),
]  # fmt: skip


def test_malformed_requests_get_a_sentence_and_leave_no_trace(tmp_path: Path) -> None:
    where = run(tmp_path / "r", captions=1)
    with served(where) as server:
        key = server.state()["question"]["key"]
        good = {"id": "vote-0001", "voter": "me", "question": key, "ranks": [0, 1], "seconds": 1.0}
        for bad, expected in BAD:
            body = {**good, **bad} if isinstance(bad, dict) and bad else bad
            status, told = server.post("api/vote", body)
            assert status == expected and told["error"], (bad, status, told)
        kind = {"Content-Type": "application/json"}
        deep, long = b"[" * 15_000, b" " * 20_000
        url = server.url + "api/vote"
        raw = [(b"", kind, 400), (b"{", kind, 400), (b"\xff\xfe", kind, 400), (deep, kind, 400), (long, kind, 413),
               (json.dumps(good).encode(), {"Content-Type": "text/plain"}, 415),
               (json.dumps(good).replace("1.0", "NaN").encode(), kind, 422)]  # fmt: skip
        for body, headers, expected in raw:
            assert request(url, body, headers)[0] == expected, body[:20]
        wrong = {
            422: ("api/state", "api/state?voter=a%0ab", "api/state?voter=me&x=1"),
            404: ("nothing", "api/image/../../run.yaml", "api/image/..%2F..%2Frun.yaml", "api/image/" + "0" * 32, "openapi.json"),
            405: ("api/vote",),
        }
        for expected, path in ((status, path) for status, paths in wrong.items() for path in paths):
            assert server.get(path)[0] == expected, path
        # a page elsewhere that points its own name at this machine
        assert server.get("api/state?voter=me", {"Host": "evil.example"})[0] == 403
        assert not (where / "votes.jsonl").read_bytes()
        assert server.post("api/vote", good)[0] == 200
        for image in read(where / "votes.jsonl")[0].images:
            assert server.get(f"api/image/{image.content}") == (200, (where / image.file).read_bytes())
    errors = (tmp_path / "errors").read_text()
    assert "Traceback" not in errors


def test_strangers_in_the_network_cannot_vote_and_the_token_is_in_no_log(tmp_path: Path) -> None:
    where, token = run(tmp_path / "r", captions=1), "planted-token-0123456789"
    with served(where, "--host", "0.0.0.0", env={"FLOWRL_VOTE_TOKEN": token}) as server:
        assert f"?token={token}" in server.said
        for path in ("", "?token=wrong", "api/state?voter=me", f"api/state?voter=me&token={token}", "api/image/" + "0" * 32):
            assert server.get(path)[0] == 401, path
        assert server.get("api/state?voter=me", {"Cookie": f"flowrl_vote={token}x"})[0] == 401
        assert server.post("api/vote", {})[0] == 401
        status, body = server.get("api/state?voter=me", {"Cookie": f"flowrl_vote={token}"})
        assert status == 200 and token.encode() not in body
        request(server.url + f"?token={token}&voter=\r\nX-Evil: 1".replace("\r\n", "%0d%0a").replace(" ", "%20"), None)
        assert token not in (tmp_path / "errors").read_text()
    assert all(token not in file.read_text(errors="replace") for file in where.rglob("*") if file.is_file())


@pytest.mark.ci
def test_ctrl_c_ends_it_and_says_how_to_go_on(tmp_path: Path) -> None:
    where = run(tmp_path / "r", captions=2)
    with served(where) as server:
        server.vote([0, 1], "vote-0001")
        server.process.send_signal(signal.SIGINT)
        assert server.process.stdout is not None
        said = server.process.stdout.read()
        assert server.process.wait(60) == 0
    assert "1 of 2 answered; look with: flowrl vote" in said
    assert (tmp_path / "errors").read_text() == ""
    done = subprocess.run(
        [sys.executable, "-m", "flowrl", "vote", str(where), "--result"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0 and "1 votes" in done.stdout and "after beat before in" in done.stdout


def test_bad_options_are_sentences(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    bad = {"--rank 1": "--rank is 1", "--limit 0": "--limit is 0", "--voter a/b": "--voter is", "--result": "no book of votes"}
    for options, message in bad.items():
        result = CliRunner().invoke(app, ["vote", str(tmp_path), *options.split()])
        assert message in str(result.exception)


def test_pixels_alone_make_an_image_known(tmp_path: Path) -> None:
    pixels = drawn(1)
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=0)
    Image.fromarray(pixels).save(tmp_path / "b.png", compress_level=9)
    assert len({content(np.asarray(Image.open(tmp_path / n))) for n in ("a.png", "b.png")} | {content(pixels)}) == 1
    assert content(pixels) != content(pixels.transpose(1, 0, 2).copy()) and content(pixels[:12]) != content(pixels[12:])
