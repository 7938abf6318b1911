"""A judge behind a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp and others."""

from __future__ import annotations

import base64
import importlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from .ask import Question, forms

TOKEN = "FLOWRL_VLM_TOKEN"
LIMIT = 8 << 20
"""Bytes of an answer; more is none."""
TOP = 20
"""Likeliest tokens that are asked for, the most OpenAI and vLLM give."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
T = TypeVar("T")


class Unanswered(Exception):
    """Why there is no answer, without any secret.  again: whether asking again may help."""

    def __init__(self, why: str, again: bool) -> None:
        super().__init__(why)
        self.again = again


@dataclass(frozen=True)
class Server:
    """A `Backend` behind an address. Built by `server`; keeps no connection and no token."""

    url: str
    model: str
    token: str = TOKEN
    concurrency: int = 16
    timeout: float = 120.0
    tries: int = 3
    pause: float = 0.5

    @property
    def waits(self) -> bool:
        return True

    def write(self, questions: Sequence[Question]) -> list[str | None]:
        return self._asked(questions, {}, lambda told: self._hidden(_text(told)))

    def weigh(self, questions: Sequence[Question], words: Sequence[str]) -> list[tuple[float, ...] | None]:
        """A word that is not among the likeliest tokens counts as 0: its probability is below theirs."""
        more = {"logprobs": True, "top_logprobs": TOP, "max_tokens": 1}
        return self._asked(questions, more, lambda told: _weights(told, words))

    def _asked(self, questions: Sequence[Question], more: Mapping[str, Any], read: Callable[[Any], T]) -> list[T | None]:
        httpx, headers = _httpx(), self._headers()
        reasons: list[str] = []
        answered, dead = Event(), Event()

        limits = httpx.Limits(max_connections=self.concurrency)
        client = httpx.Client(timeout=self.timeout, headers=headers, limits=limits)
        with client, ThreadPoolExecutor(self.concurrency) as pool:
            # an image is in many pairs, and is packed once
            views = {id(image): image for q in questions for image in q.images}
            packed = dict(zip(views, pool.map(data_url, views.values()), strict=True))

            def one(q: Question) -> T | None:
                if dead.is_set():
                    return None
                try:
                    told = self._tried(client, {**self._body(q, packed), **more}, read)
                except Unanswered as error:
                    reasons.append(self._hidden(str(error)))
                    if error.again and not answered.is_set():
                        dead.set()
                    return None
                answered.set()
                return told

            out = list(pool.map(one, questions))
        lost = sum(told is None for told in out)
        if lost:
            warnings.warn(
                f"the judge {self.model!r} at {self.url} left {lost} of {len(out)} questions unanswered; they count as no score. "
                f"First: {reasons[0]}" + ("; nobody answered, so the rest was not asked" if dead.is_set() else ""),
                stacklevel=3,
            )
        return out

    def _tried(self, client: Any, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        for attempt in range(self.tries):
            try:
                return read(self._post(client, body))
            except Unanswered as error:
                if not error.again or attempt + 1 == self.tries:
                    raise
                time.sleep(self.pause * 2**attempt)
        raise AssertionError("a question is asked at least once")

    def _post(self, client: Any, body: Mapping[str, Any]) -> Any:
        httpx, end, data = _httpx(), time.monotonic() + self.timeout, bytearray()
        try:
            with client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > LIMIT:
                        raise Unanswered(f"an answer of more than {LIMIT} bytes", False)
                    # a server may send a byte a minute for ever
                    if time.monotonic() > end:
                        raise Unanswered(f"no whole answer within {self.timeout:g} s", True)
        except httpx.TimeoutException:
            raise Unanswered(f"no answer within {self.timeout:g} s", True) from None
        except httpx.HTTPError as error:
            raise Unanswered(f"{type(error).__name__}: {error}", True) from None
        text = data.decode("utf-8", "replace")
        if response.status_code != 200:
            raise Unanswered(f"HTTP {response.status_code}: {self._hidden(text)[:200]}", response.status_code in BUSY)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise Unanswered(f"an answer that is not JSON: {self._hidden(text)[:200]!r}", True) from None

    def _body(self, q: Question, packed: Mapping[int, str]) -> dict[str, Any]:
        pictures = [{"type": "image_url", "image_url": {"url": packed[id(image)]}} for image in q.images]
        content = [*pictures, {"type": "text", "text": q.text}]
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": q.tokens}

    def _headers(self) -> dict[str, str]:
        secret = os.environ.get(self.token, "").strip()
        # httpx would quote a header it refuses
        if not (secret.isascii() and secret.isprintable()):
            raise ValueError(f"the environment variable {self.token} holds characters that no token has; set it again")
        return {"Authorization": f"Bearer {secret}"} if secret else {}

    def _hidden(self, text: str) -> str:
        """A server may repeat what it was sent."""
        secret = os.environ.get(self.token, "").strip()
        return text.replace(secret, "***") if secret else text


def server(
    url: str, model: str, token: str = TOKEN, concurrency: int = 16, timeout: float = 120.0, tries: int = 3, pause: float = 0.5
) -> Server:
    """A judge behind a server.

    url: up to and with /v1.  model: the name it serves the model by.
    token: the name of the environment variable that holds the token, if one is needed; the token itself is kept nowhere.
    concurrency: questions under way at once.  timeout: seconds for one answer; a server that stops in the middle of one is given up
    after at most twice as long.
    tries: how often a question is asked while the server is busy (408, 425, 429, 5xx), silent or makes no sense, after pauses of
    pause, 2 pause, 4 pause ... seconds. Where the first question to be given up had all its tries and none was answered so far, the
    rest of that call is not asked.
    A question without an answer has no score; why is a warning.

    Raises: ValueError for an address that is not http, names no model or holds a password, or numbers that are too small;
    ModuleNotFoundError without httpx.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"a judge's address is {url!r}; write http://HOST:PORT/v1#MODEL")
    if parts.username is not None or parts.password is not None or parts.query:
        raise ValueError(f"the address of the judge at {parts.hostname} holds a name, password or query; put a token into {token}")
    if not model:
        raise ValueError(f"the judge at {url} has no model; write {url}#MODEL, MODEL as its {url.rstrip('/')}/models names it")
    for value, least, what in ((concurrency, 1, "concurrency"), (tries, 1, "tries"), (pause, 0, "pause")):
        if not value >= least:
            raise ValueError(f"{what} of a judge is {value}; give at least {least}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout of a judge is {timeout:g} s; give a positive number")
    _httpx()
    return Server(url.rstrip("/"), model, token, concurrency, timeout, tries, pause)


def data_url(image: np.ndarray) -> str:
    """An image as a PNG in text: lossless, unlike what judges are often sent."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _text(told: Any) -> str:
    try:
        text = told["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise Unanswered("an answer without choices[0].message.content", True) from None
    if not isinstance(text, str):
        raise Unanswered(f"a message that is {type(text).__name__}, not text", False)
    return text


def _weights(told: Any, words: Sequence[str]) -> tuple[float, ...]:
    try:
        rows = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        # a vocabulary may be written with its own blanks
        seen = {str(row["token"]).replace("▁", " ").replace("Ġ", " "): float(row["logprob"]) for row in rows}
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError):
        raise Unanswered(
            "an answer without top_logprobs: the server must give them, or use a template that reads text", False
        ) from None
    if not all(logprob <= 1e-3 for logprob in seen.values()):
        raise Unanswered("an answer with probabilities above 1", False)
    return tuple(math.fsum(math.exp(seen[form]) for form in forms(word) if form in seen) for word in words)


def _httpx() -> Any:
    try:
        return importlib.import_module("httpx")
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise ModuleNotFoundError("a judge behind a server needs the package httpx; pip install httpx") from error
