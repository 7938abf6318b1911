"""A judge behind a server: asked as the protocol says, and never a reason to hang, to invent or to tell a secret."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl import rewards
from flowrl.rewards import Samples
from flowrl.rewards.vlm.ask import Question
from flowrl.rewards.vlm.server import Server, server

SECRET = "sk-planted-4711-do-not-tell"
Reply = Callable[[dict[str, Any], int], Any]


class Imitation:
    """A server that speaks the protocol. reply(body, number of the request) -> text, top_logprobs {token: logprob}, raw bytes, a
    status (with or without bytes), or seconds to sleep before hanging up."""

    def __init__(self, reply: Reply) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: set[str] = set()
        self.tokens: list[str | None] = []
        self.most = self.now = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.paths.add(self.path)
                    outer.tokens.append(self.headers["Authorization"])
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    told = reply(body, number)
                finally:
                    with lock:  # before the answer is out: the client's next question may come at once
                        outer.now -= 1
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.answer(told)

            def answer(self, told: Any) -> None:
                if isinstance(told, float):
                    time.sleep(told)
                    return
                status, told = told if isinstance(told, tuple) else (200, told)
                if not isinstance(told, bytes):
                    told = json.dumps(completion(told)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def completion(told: Any) -> dict[str, Any]:
    if not isinstance(told, dict):
        return {"choices": [{"message": {"role": "assistant", "content": told}}]}
    likely = max(told, key=told.__getitem__)
    rows = [{"token": token, "logprob": value, "bytes": None} for token, value in told.items()]
    step = {"token": likely, "logprob": told[likely], "top_logprobs": rows}
    return {"choices": [{"message": {"role": "assistant", "content": likely}, "logprobs": {"content": [step]}}]}


@pytest.fixture
def imitate() -> Iterator[Callable[[Reply], Imitation]]:
    made: list[Imitation] = []

    def start(reply: Reply) -> Imitation:
        made.append(Imitation(reply))
        return made[-1]

    yield start
    for one in made:
        one.close()


def quick(url: str, **changes: Any) -> Server:
    return server(url, "m", **{"timeout": 5.0, "tries": 2, "pause": 0.0, **changes})


def asked(count: int) -> list[Question]:
    return [Question((np.full((3, 5, 3), i, np.uint8),), f"question {i}", 7) for i in range(count)]


def number(body: dict[str, Any]) -> int:
    return int(body["messages"][0]["content"][-1]["text"].split()[-1])


def test_a_question_is_asked_as_the_protocol_says(imitate: Any) -> None:
    http = imitate(lambda body, n: f"answer {number(body)}")
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    assert quick(http.url + "/").write([Question((image, image[::-1]), "question 3", 99)]) == ["answer 3"]
    (body,) = http.bodies
    assert http.paths == {"/v1/chat/completions"} and http.tokens == [None]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 99, 0) and "logprobs" not in body
    first, second, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "question 3"}
    for part, expected in ((first, image), (second, image[::-1])):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), expected)


def test_probabilities_of_words_are_merged_over_their_tokens(imitate: Any) -> None:
    logs = {"yes": 0.2, " Yes": 0.3, "ĠYES": 0.05, "▁no": 0.1, "No": 0.05, "nope": 0.2, "yes!": 0.1}
    http = imitate(lambda body, n: {token: float(np.log(p)) for token, p in logs.items()})
    (told,) = quick(http.url).weigh(asked(1), ["yes", "no", "maybe"])
    assert told == pytest.approx((0.55, 0.15, 0.0))
    (body,) = http.bodies
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)


def test_answers_come_back_in_order_and_no_more_are_under_way_than_allowed(imitate: Any) -> None:
    def reply(body: dict[str, Any], n: int) -> str:
        time.sleep(0.03 * (3 - number(body) % 4))
        return f"answer {number(body)}"

    http = imitate(reply)
    assert quick(http.url, concurrency=3).write(asked(9)) == [f"answer {i}" for i in range(9)]
    assert 1 < http.most <= 3


@pytest.mark.parametrize(
    "bad",
    [
        b"<html>",
        b"",
        b"\xff\x00",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"[" * 100_000,
        (503, b""),
    ],
    ids=["html", "empty", "bytes", "list", "object", "none", "null", "deep", "busy"],
)
def test_nonsense_is_asked_again_and_then_has_no_answer(imitate: Any, bad: Any) -> None:
    http = imitate(lambda body, n: bad if number(body) == 1 else "fine")
    with pytest.warns(UserWarning, match="left 1 of 3 questions unanswered"):
        assert quick(http.url, concurrency=1).write(asked(3)) == ["fine", None, "fine"]
    assert len(http.bodies) == 4
    http = imitate(lambda body, n: bad if n == 0 else "fine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quick(http.url).write(asked(1)) == ["fine"]


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refusal_is_not_asked_again_and_is_told(imitate: Any, status: int) -> None:
    http = imitate(lambda body, n: (status, b"wrong model"))
    with pytest.warns(UserWarning, match=f"left 2 of 2 questions unanswered.*HTTP {status}: wrong model"):
        assert quick(http.url).write(asked(2)) == [None, None]
    assert len(http.bodies) == 2


def test_an_answer_without_probabilities_is_none(imitate: Any) -> None:
    odd = [
        "yes",
        b'{"choices": [{"logprobs": null}]}',
        b'{"choices": [{"logprobs": {"content": []}}]}',
        b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": "x"}]}]}}]}',
        b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": 3.0}]}]}}]}',
        b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": NaN}]}]}}]}',
        b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": 1' + b"0" * 400 + b"}]}]}}]}",
    ]
    http = imitate(lambda body, n: odd[number(body)])
    with pytest.warns(UserWarning, match="left 7 of 7.*(top_logprobs|above 1)"):
        assert quick(http.url).weigh(asked(7), ["yes", "no"]) == [None] * 7
    assert len(http.bodies) == 7


def test_a_server_that_is_not_there_costs_one_round_of_tries() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    start = time.monotonic()
    with pytest.warns(UserWarning, match="left 50 of 50.*ConnectError.*nobody answered, so the rest was not asked"):
        assert quick(f"http://127.0.0.1:{port}/v1", concurrency=1, pause=0.05).write(asked(50)) == [None] * 50
    assert time.monotonic() - start < 2


def test_a_server_that_hangs_is_given_up_in_time(imitate: Any) -> None:
    http = imitate(lambda body, n: 30.0)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="left 9 of 9.*no answer within 0.2 s"):
        assert quick(http.url, timeout=0.2, concurrency=2).write(asked(9)) == [None] * 9
    assert time.monotonic() - start < 3 and len(http.bodies) <= 4


def test_a_server_that_never_finishes_is_given_up_in_time() -> None:
    def drip(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
                connection.recv(1 << 20)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
                for _ in range(100):
                    time.sleep(0.05)
                    connection.sendall(b" ")
            except OSError:
                if listener.fileno() < 0:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        start = time.monotonic()
        with pytest.warns(UserWarning, match="no whole answer within 0.3 s"):
            assert quick(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.3, tries=1).write(asked(1)) == [None]
        assert time.monotonic() - start < 2


def test_an_endless_answer_is_cut(imitate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.rewards.vlm.server.LIMIT", 1000)
    http = imitate(lambda body, n: "x" * 5000)
    with pytest.warns(UserWarning, match="more than 1000 bytes"):
        assert quick(http.url).write(asked(1)) == [None]


def test_a_server_that_dies_in_the_middle_and_comes_back_loses_what_it_lost(imitate: Any) -> None:
    http = imitate(lambda body, n: 0.0 if 2 <= number(body) < 4 else "fine")
    judge = quick(http.url, concurrency=1)
    with pytest.warns(UserWarning, match="left 2 of 6"):
        assert judge.write(asked(6)) == ["fine", "fine", None, None, "fine", "fine"]
    assert judge.write(asked(1)) == ["fine"]


def test_a_served_judge_orders_a_group_by_name(imitate: Any) -> None:
    def sees(body: dict[str, Any], n: int) -> str:
        *pictures, _ = body["messages"][0]["content"]
        data = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in pictures]
        one, two = (np.asarray(Image.open(io.BytesIO(png))).mean() for png in data)
        # it sees large differences, and else prefers what is shown first
        return f"<think>hm</think><answer>Image {1 if one - two > -30 else 2} is better</answer>"

    http = imitate(sees)
    levels = torch.tensor([10, 20, 90, 200], dtype=torch.uint8)
    pixels = levels.view(1, 4, 1, 1, 1).expand(1, 4, 8, 8, 3).clone()
    samples = Samples(pixels, ["p"], [{}], torch.ones(1, 4).bool(), torch.zeros(4).long())
    made = rewards.make(f"winrate:vlm:unifiedreward-think@{http.url}#judge")
    scores, _ = made(samples, made.init())
    torch.testing.assert_close(scores.values, torch.tensor([[0.5, 0.5, 2, 3]]) / 3)
    assert len(http.bodies) == 12 and {body["model"] for body in http.bodies} == {"judge"}


def test_the_token_is_sent_and_told_nowhere(imitate: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    echo = [
        (401, f"bad token {SECRET}".encode()),
        f"I was told {SECRET}".encode(),
        f"I was told {SECRET}",
        (401, b"x" * 190 + SECRET.encode()),
    ]
    http = imitate(lambda body, n: echo[number(body)])
    monkeypatch.setenv("FLOWRL_VLM_TOKEN", SECRET)
    name = f"vlm:unifiedreward-1.5@{http.url}#m"
    judge = quick(http.url)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        texts = judge.write(asked(4))
        made = rewards.make(name)
    assert http.tokens and set(http.tokens) == {f"Bearer {SECRET}"}
    everything = [repr(judge), repr(made), made.name, str(texts), *(str(w.message) for w in told), caplog.text]
    assert len(told) == 1 and "sk-planted" not in " ".join(everything)


@pytest.mark.parametrize("bad", ["two\nlines", "schlüssel"])
def test_a_token_that_cannot_be_one_is_refused_without_telling_it(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("FLOWRL_VLM_TOKEN", bad)
    with pytest.raises(ValueError, match="FLOWRL_VLM_TOKEN holds characters that no token has") as told:
        quick("http://127.0.0.1:9/v1").write(asked(1))
    assert bad not in str(told.value) and told.value.__cause__ is None


def test_an_address_that_is_none_is_refused() -> None:
    for url, message in (
        ("ftp://host/v1", "a judge's address is 'ftp://host/v1'"),
        ("http:///v1", "a judge's address"),
        ("http://host/v1?key=planted", "holds a name, password or query"),
    ):
        with pytest.raises(ValueError, match=message) as told:
            server(url, "m")
        assert "planted" not in str(told.value)
    with pytest.raises(ValueError, match="credentials in it .* is refused.*FLOWRL_VLM_TOKEN") as told:
        rewards.make("vlm:vqascore@http://me:planted@host/v1#m")
    assert "planted" not in str(told.value)
    with pytest.raises(ValueError, match="has no model; write http://host/v1#MODEL"):
        rewards.make("vlm:vqascore@http://host/v1")
    for changes, message in (({"concurrency": 0}, "concurrency"), ({"tries": 0}, "tries"), ({"timeout": 0.0}, "timeout")):
        with pytest.raises(ValueError, match=f"{message} of a judge is 0"):
            quick("http://host/v1", **changes)


def test_without_httpx_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *more: Any) -> Any:
        if name == "httpx":
            raise ModuleNotFoundError("No module named 'httpx'", name="httpx")
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match="pip install httpx"):
        server("http://host/v1", "m")
