"""What travels, what is refused, and a client that gets its scores or NaN in time, whatever answers it."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
import serving
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import pictures, say

from flowrl import rewards
from flowrl.rewards.forms import Call, Detailed, groupwise
from flowrl.rewards.remote import wire
from flowrl.rewards.remote.client import Patience, Remote, chunks, fitting, remote
from flowrl.rewards.remote.pictures import Limits, Refused, TooLarge
from flowrl.rewards.remote.worker import Worker, joined, scored

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
QUICK = Patience(connect=0.5, read=1.0, total=3.0, first=0.01, longest=0.05, retries=3)


def call(count: int = 4, *shape: int, references: bool = False) -> Call:
    """Groups of two."""
    group = np.arange(count) // 2
    shown = [[pictures(1, 3 + int(g), 5)[0]] if references else [] for g in group]
    return Call(pictures(count, *shape), [f"prompt {g}" for g in group], [{"more": int(g)} for g in group], shown, group)


def same(a: Call, b: Call) -> bool:
    return (
        a.images.dtype == b.images.dtype and np.array_equal(a.images, b.images)
        and a.prompts == b.prompts and a.metadata == b.metadata and np.array_equal(a.group, b.group)
        and all(len(x) == len(y) and all(map(np.array_equal, x, y)) for x, y in zip(a.references, b.references, strict=True))
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(12, 20), (1, 1), (3, 8, 6), (1, 7, 5)])
def test_a_call_arrives_as_it_was_sent(shape: tuple[int, ...]) -> None:
    for given_ in (call(4, *shape), call(4, *shape, references=True)):
        assert same(wire.decode(wire.encode(given_), Limits()), given_)


@given(TEXT, JSON)
@settings(max_examples=40, deadline=None)
def test_any_text_and_json_arrives_as_it_was_sent(text: str, value: Any) -> None:
    sent = Call(pictures(1, 2, 2), [text], [{"value": value}], [[]], np.zeros(1, dtype=int))
    got = wire.decode(wire.encode(sent), Limits())
    assert got.prompts == [text] and got.metadata == [{"value": value}]


def test_arrays_in_metadata_travel_as_lists_and_what_cannot_travel_is_said() -> None:
    sent = replace_metadata(call(2), {"box": np.arange(3), "one": np.float32(0.5), "t": torch.ones(2)})
    assert wire.decode(wire.encode(sent), Limits()).metadata[0] == {"box": [0, 1, 2], "one": 0.5, "t": [1.0, 1.0]}
    for value in (float("nan"), object()):
        with pytest.raises(ValueError, match="metadata cannot be sent"):
            wire.encode(replace_metadata(call(2), {"x": value}))


def replace_metadata(given_: Call, metadata: dict[str, Any]) -> Call:
    return given_._replace(metadata=[metadata for _ in given_.prompts])


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(images=3), "4 pictures; at most 3"),
        (Limits(pixels=900), "960 pixels together; at most 900"),
        (Limits(prompt=7), "8 characters"),
        (Limits(metadata=10), "11 bytes of metadata"),
        (Limits(marks=20), "more than 20 brackets and commas"),
    ],
)
def test_each_limit_is_held(limits: Limits, said: str) -> None:
    with pytest.raises(TooLarge, match=said):
        wire.decode(wire.encode(call(4)), limits)


def test_pixels_are_counted_before_anything_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("a picture was opened"))
    with pytest.raises(TooLarge, match="pixels together"):
        wire.decode(wire.encode(call(4)), Limits(pixels=900))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": 1}, "1 unknown field"),
        ({"prompts": ["one"]}, "4 images, 1 prompts and 4 metadata"),
        ({"images": []}, "0 images"),
        ({"images": None}, "images is NoneType"),
        ({"prompts": [1, 2, 3, 4]}, "prompt 0 is int"),
        ({"metadata": [[], {}, {}, {}]}, "its metadata list"),
        ({"prompts": ["\ud800"] * 4}, "half a character"),
        ({"group": [0, 0, 1]}, "no list of 4 integers"),
        ({"group": [0, True, 1, 1]}, "no list of 4 integers"),
        ({"group": [0, 0, 1, 4]}, "no list of 4 integers"),
        ({"group": [0, 0, 0, 1]}, "one group differ in prompt or metadata"),
        ({"references": [[]]}, "references for 1 groups of 2"),
        ({"references": [[], 3]}, "references of a group are int"),
    ],
)
def test_a_request_that_does_not_fit_together_is_refused_with_a_sentence(change: dict[str, Any], said: str) -> None:
    told = {**json.loads(wire.encode(call(4))), **change}
    with pytest.raises(Refused, match=said):
        wire.decode(json.dumps(told).encode(), Limits())


def test_images_of_two_sizes_and_other_colours_are_refused() -> None:
    told = json.loads(wire.encode(call(2)))
    told["images"][1] = wire.png(pictures(1, 5, 5)[0])
    with pytest.raises(Refused, match="differ in size"):
        wire.decode(json.dumps(told).encode(), Limits())
    told["images"][1] = wire.png(np.zeros((12, 20, 4), dtype=np.uint8))
    with pytest.raises(Refused, match="no PNG with 8 bits of red, green and blue"):
        wire.decode(json.dumps(told).encode(), Limits())


def test_an_answer_comes_back_with_nan_for_null() -> None:
    told = Detailed(np.array([0.1, np.nan, -3e38]), {"part": np.array([np.nan, 2, 1 / 3])})
    got = wire.read(json.dumps(wire.answer(told)).encode(), 3)
    assert np.array_equal(got.values, told.values, equal_nan=True)
    assert np.array_equal(got.parts["part"], told.parts["part"], equal_nan=True)


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 8))
@settings(deadline=None)
def test_chunks_hold_every_row_once_and_whole_groups(group: list[int], size: int) -> None:
    cuts = [rows.tolist() for rows in chunks(np.array(group, dtype=int), size)]
    assert sorted(i for rows in cuts for i in rows) == list(range(len(group)))
    assert all(len(rows) <= size or len({group[i] for i in rows}) == 1 for rows in cuts)
    assert all(sum(g in {group[i] for i in rows} for rows in cuts) == 1 for g in set(group))


def test_pauses_double_up_to_the_longest_and_repeat() -> None:
    patience = Patience(first=1, longest=10)
    pauses = [patience.pause(i, b"body") for i in range(6)]
    assert pauses == [patience.pause(i, b"body") for i in range(6)] != [patience.pause(i, b"other") for i in range(6)]
    assert all(0.5 * full <= pause < full for pause, full in zip(pauses, [1, 2, 4, 8, 10, 10], strict=True))
    assert patience.pause(10_000, b"") <= 10
    with pytest.raises(ValueError, match="above 0"):
        Patience(total=0)


# the worker


def test_joined_requests_keep_groups_apart_and_groups_of_one_size_share_a_call() -> None:
    seen: list[int] = []

    def rank(images: np.ndarray, prompt: str, metadata: dict[str, Any]) -> list[float]:
        seen.append(len(images))
        return images.mean((1, 2, 3)).argsort().argsort().astype(float).tolist()

    reward = rewards.make(groupwise(rank), "rank")
    one, two = call(4), call(3)
    told, state = scored(reward, joined([one, two]), reward.init())
    apart = [scored(reward, each, reward.init())[0].values for each in (one, two)]
    assert np.array_equal(told.values, np.concatenate(apart)) and state["scored"] == 7
    assert sorted(seen[:4]) == [1, 2, 2, 2]


def test_one_bad_request_in_a_joined_call_fails_alone() -> None:
    worker = Worker({"level": rewards.make(serving.level, "level")}, 64)
    calls = [call(2), call(2)._replace(prompts=["raise"] * 2), call(2)._replace(prompts=["exit"] * 2), call(2)]
    with worker.ready:  # all are there before the first is taken
        answers = [worker.ask("level", each) for each in calls]
    good = scored(rewards.make(serving.level), calls[0], {"scored": 0, "failed": 0})[0]
    for i in (0, 3):
        assert np.array_equal(answers[i].result(10).values, good.values)
    with pytest.raises(RuntimeError, match="the judge broke on purpose"):
        answers[1].result(10)
    with pytest.raises(RuntimeError, match="SystemExit"):
        answers[2].result(10)


def test_a_request_given_up_in_time_is_never_scored() -> None:
    seen: list[str] = []
    worker = Worker({"note": rewards.make(lambda images, prompts, metadata: (seen.extend(prompts), [0.0] * len(images))[1])}, 1)
    with worker.ready:
        answers = [worker.ask("note", call(1)._replace(prompts=[text])) for text in ("first", "second", "third")]
        answers[1].cancel()
    answers[2].result(10)
    assert seen == ["first", "third"]


# the client, against whatever answers


def ask(address: str, count: int = 6, patience: Patience = QUICK, chunk: int = 2, prompts: list[str] | None = None) -> Detailed:
    made = replace(remote(address, patience), chunk=chunk)
    told = prompts or [f"prompt {i // 2}" for i in range(count)]
    return made(pictures(count), told, [{} for _ in range(count)])


GARBAGE: dict[str, bytes] = {
    "wrong count": b'{"scores": [1, 2, 3]}',
    "text": b'{"scores": ["1", "2"]}',
    "true": b'{"scores": [true, 2]}',
    "not finite": b'{"scores": [1e999, 2]}',
    "too large": b'{"scores": [1e39, 2]}',
    "huge": b'{"scores": [1' + b"0" * 400 + b", 2]}",
    "NaN": b'{"scores": [NaN, 2]}',
    "a list": b"[1, 2]",
    "html": b"<html>hello</html>",
    "nothing": b"",
    "bytes": bytes(range(256)),
    "deep": b"[" * 100_000,
    "bad parts": b'{"scores": [1, 2], "parts": {"x": [1]}}',
    "parts a list": b'{"scores": [1, 2], "parts": []}',
    "no scores": b'{"score": [1, 2]}',
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_nan_and_one_warning(body: bytes) -> None:
    with serving.false(lambda handler, _: say(handler, body)) as address:
        made = replace(remote(address, QUICK), chunk=2)
        with pytest.warns(UserWarning, match="no scores for 6 of 6 images") as caught:
            told = made(pictures(6), list("aabbcc"), [{}] * 6)
        assert np.isnan(told.values).all() and told.values.shape == (6,) and len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isnan(made(pictures(2), ["a", "a"], [{}] * 2).values).all()


@pytest.mark.evidence("real", "remote")
def test_exactly_the_images_of_a_failed_chunk_are_nan_and_the_parts_of_others_stay() -> None:
    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        told = json.loads(body)["prompts"]
        if "bad" in told:
            say(handler, b'{"error": "the reward failed"}', 500)
        else:
            say(handler, json.dumps({"scores": [1.5, None], "parts": {"x": [2, 3]}}).encode())

    with serving.false(answer) as address, pytest.warns(UserWarning, match="no scores for 2 of 6 images: the server said 500"):
        told = ask(address, prompts=["a", "bad", "c", "a", "bad", "c"])
    assert np.array_equal(told.values, [1.5, np.nan, 1.5, np.nan, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(told.parts["x"], [2, np.nan, 2, 3, np.nan, 3], equal_nan=True)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again_when_it_says(status: int) -> None:
    asked: list[float] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            say(handler, b'{"error": "busy"}', status, Retry_After="1")
        else:
            say(handler, b'{"scores": [1, 2]}')

    with serving.false(answer) as address:
        assert np.array_equal(ask(address, 2).values, [1, 2])
    assert len(asked) == 2 and asked[1] - asked[0] >= 1.0


@pytest.mark.parametrize("after", ["3600", format_datetime(datetime(2999, 1, 1, tzinfo=UTC), True)])
def test_a_server_that_wants_more_time_than_there_is_is_not_waited_for(after: str) -> None:
    begun = time.monotonic()
    with serving.false(lambda h, _: say(h, b"{}", 503, Retry_After=after)) as address, pytest.warns(UserWarning, match="503"):
        assert np.isnan(ask(address, 2).values).all()
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 302])
def test_a_refusal_is_not_repeated(status: int) -> None:
    asked: list[int] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked.append(1)
        say(handler, b'{"error": "not like this"}', status, Location="http://127.0.0.1:1/")

    with serving.false(answer) as address, pytest.warns(UserWarning, match=f"said {status}: not like this"):
        assert np.isnan(ask(address, 2).values).all()
    assert asked == [1]


def picky(most: int, asked: list[int], apart: bool) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """A server that takes `most` images at once, and says whether they may be sent apart."""

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        told = json.loads(body)
        asked.append(len(told["images"]))
        if len(told["images"]) > most:
            return say(handler, json.dumps({"error": "too much", "apart": apart}).encode(), 413)
        return say(handler, json.dumps({"scores": [m["more"] for m in told["metadata"]], "parts": {}}).encode())

    return answer


def video_call(count: int) -> Call:
    """One group of videos."""
    return Call(pictures(count, 3, 8, 6), ["p"] * count, [{"more": i} for i in range(count)], [[]] * count, np.zeros(count, int))


def test_a_group_too_large_for_a_server_goes_in_halves_where_nothing_compares_it() -> None:
    asked: list[int] = []
    with serving.false(picky(2, asked, True)) as address, warnings.catch_warnings():
        warnings.simplefilter("error")
        told = Remote(address, QUICK).on(video_call(5))
    assert told.values.tolist() == [0, 1, 2, 3, 4] and sorted(asked) == [1, 2, 2, 3, 5]


def test_a_group_that_is_compared_is_not_parted_and_a_single_image_cannot_be() -> None:
    for most, apart, count in ((2, False, 5), (0, True, 1)):
        asked: list[int] = []
        with serving.false(picky(most, asked, apart)) as address, pytest.warns(UserWarning, match="said 413: too much"):
            assert np.isnan(Remote(address, QUICK).on(video_call(count)).values).all()
        assert asked == [count]


def test_a_server_says_whether_the_images_of_a_group_may_be_sent_apart() -> None:
    from starlette.testclient import TestClient

    from flowrl.rewards.remote.server import Rules, app

    made = {
        "alone": rewards.make(serving.level),
        "together": rewards.make(groupwise(lambda images, prompt, m: [0.0] * len(images))),
    }
    body, kind = wire.encode(call(4)), {"Content-Type": "application/json"}
    for limits in (Limits(pixels=900), Limits(body=len(body) - 1)):
        client = TestClient(app(made, Rules(limits=limits)))
        for name, may in (("alone", True), ("together", False)):
            answer = client.post(f"/{name}", content=body, headers=kind)
            assert answer.status_code == 413 and wire.apart(answer.content) is may and "at once" in wire.error(answer.content)
    refused = TestClient(app(made, Rules())).post("/alone", content=b"{", headers=kind)
    assert refused.status_code == 400 and "apart" not in refused.json()


def test_videos_are_sent_in_chunks_that_a_usual_server_takes() -> None:
    # 33 frames of 480 x 832: 13 million pixels, at 4 bytes each in the worst case
    assert fitting((33, 480, 832, 3)) == 2 and fitting((512, 512, 3)) == 128 and fitting((200, 8, 8, 3)) == 5
    assert fitting((81, 2160, 3840, 3)) == 1
    asked: list[int] = []
    with serving.false(picky(99, asked, False)) as address:
        groups = Call(pictures(6, 200, 8, 8), list("aabbcc"), [{"more": 0}] * 6, [[]] * 6, np.arange(6) // 2)
        Remote(address, QUICK).on(groups)
    assert sorted(asked) == [2, 4]


def drip(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.05)


def drip_headers(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        handler.wfile.write(b"a")
        time.sleep(0.05)


def silent(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    time.sleep(30)


def endless(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b" " * 2**20)


@pytest.mark.parametrize("answer", [drip, drip_headers, silent, endless])
def test_no_answer_is_waited_for_longer_than_the_total(answer: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.rewards.remote.client.LARGEST", 2**22)
    monkeypatch.setattr("http.server.BaseHTTPRequestHandler.handle", _hushed)
    patience = replace(QUICK, total=1.5, read=1.0)
    begun = time.monotonic()
    with serving.false(answer) as address, pytest.warns(UserWarning, match="no scores for 4 of 4"):
        told = ask(address, 4, patience)
    assert np.isnan(told.values).all() and time.monotonic() - begun < 6


def _hushed(handler: BaseHTTPRequestHandler) -> None:
    """The client hangs up on these servers."""
    try:
        handler.close_connection = True
        handler.handle_one_request()
    except OSError:
        handler.close_connection = True


def test_chunks_are_asked_for_together_but_no_more_than_parallel() -> None:
    inside, most = [0], [0]

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.2)
        inside[0] -= 1
        say(handler, b'{"scores": [1, 2]}')

    with serving.false(answer) as address:
        assert np.array_equal(ask(address, 12).values, [1, 2] * 6)
    assert 2 <= most[0] <= 4


def test_nobody_there_is_nan_after_the_retries() -> None:
    with pytest.warns(UserWarning, match="ConnectError"):
        assert np.isnan(ask(f"http://127.0.0.1:{serving.free()}/judge", 2).values).all()


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{serving.free()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving.false(lambda handler, _: say(handler, b'{"scores": [1, 2]}')) as address:
        assert np.array_equal(ask(address, 2).values, [1, 2])


def test_a_server_that_repeats_the_token_does_not_bring_it_into_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_TOKEN", "planted-7f3a")
    got: list[str] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        got.append(handler.headers["Authorization"])
        say(handler, json.dumps({"error": f"you sent {handler.headers['Authorization']}"}).encode(), 400)

    with serving.false(answer) as address, pytest.warns(UserWarning) as caught:
        ask(address, 2)
    assert got == ["Bearer planted-7f3a"] and "planted" not in str(caught[0].message) and "***" in str(caught[0].message)


@pytest.mark.parametrize("value", ["with space", "line\nbreak", "ümlaut"])
def test_a_token_that_cannot_travel_is_refused_without_being_said(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_TOKEN", value)
    with pytest.raises(ValueError, match="the token in FLOWRL_TOKEN") as caught:
        ask("http://127.0.0.1:1/judge", 2)
    assert value not in str(caught.value)


@pytest.mark.parametrize("spec", [
    "remote:http://user:s3cret@host:1/x", "remote:http://s3cret@host/x=0.5", "remote:http://host/x?token=s3cret", "remote:https://host/x#s3cret",
])  # fmt: skip
def test_credentials_in_an_address_are_refused_without_being_said(spec: str) -> None:
    for refuse in (rewards.parse, rewards.make, lambda text: remote(text.removeprefix("remote:"))):
        with pytest.raises(ValueError, match="FLOWRL_TOKEN") as caught:
            refuse(spec)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["", "host:1/x", "ftp://host/x", "http:///x", "http://host:1", "http://host:1/", "http://host:no/x", "http://[::1/x"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"remote:http://HOST:PORT/NAME"):
        remote(address)


def test_the_name_gives_a_reward_that_waits_and_holds_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_TOKEN", "planted-7f3a")
    assert rewards.parse("remote:http://h:1/clip:ViT-B-32/openai=0.5") == ("remote:http://h:1/clip:ViT-B-32/openai", 0.5)
    reward: Any = rewards.make("remote:http://127.0.0.1:1/x")
    assert isinstance(reward.function, Remote) and reward.waits and "planted" not in repr(reward)
    assert not rewards.make("jpeg_compressibility").waits  # pyright: ignore[reportAttributeAccessIssue]
