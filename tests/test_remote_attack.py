"""10 000 requests nobody should send, to a real server: no crash, no growth of memory, each answered with a clear 4xx."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import serving
from serving import Server, pictures

from flowrl.rewards.forms import Call
from flowrl.rewards.remote import wire
from flowrl.rewards.remote.client import Patience, remote

TOKEN = "planted-90ab"
Make = Callable[[random.Random], bytes]
GOOD = json.loads(wire.encode(Call(pictures(2, 4, 4), ["a", "b"], [{}, {}], [[], []], np.arange(2))))


def http(
    body: bytes,
    token: str = TOKEN,
    path: str = "/level",
    method: str = "POST",
    kind: str = "application/json",
    length: int | None = None,
) -> bytes:
    head = [
        f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Authorization: Bearer {token}",
        f"Content-Type: {kind}", f"Content-Length: {len(body) if length is None else length}",
    ]  # fmt: skip
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def told(**change: object) -> bytes:
    return http(json.dumps({**GOOD, **change}).encode())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *more: bytes) -> str:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    whole = b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return base64.b64encode(whole).decode()


def image(text: str) -> bytes:
    return told(images=[text], prompts=["a"], metadata=[{}], group=[0])


def damaged(rng: random.Random) -> bytes:
    data = bytearray(base64.b64decode(GOOD["images"][0]))
    # behind the header, where only unpacking notices
    data[rng.randrange(45, len(data) - 24)] ^= 1 + rng.randrange(255)
    return image(base64.b64encode(data).decode())


ZEROS = zlib.compress(bytes(20 * 2**20), 9)
PATHS = ("/", "/other", "/../etc/passwd", "//level", "/level/", "/%00", "/%ff", "/" + "a" * 3000)
ANYTHING = (None, True, 3, -1, 1.5, "text", [], {}, [[]], [None], {"a": 1}, 10**40, "\x00")

KINDS: dict[str, Make] = {
    "bytes": lambda rng: bytes([rng.randrange(128, 256)]) + rng.randbytes(rng.randrange(300)) + b"\r\n\r\n",
    "almost http": lambda rng: b"POST /level HTTP/9.x\r\n" + rng.randbytes(40) + b"\r\n\r\n",
    "bad header": lambda rng: b"POST /level HTTP/1.1\r\nHost: x\r\nb\x00d: " + rng.randbytes(9) + b"\r\n\r\n",
    "long header": lambda rng: b"POST /level HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000,
    "bytes as a body": lambda rng: http(rng.randbytes(rng.randrange(1000))),
    "truncated": lambda rng: http(wire_good()[: rng.randrange(1, 400)]),
    "nested": lambda rng: http(rng.choice([b"[", b'{"a":', b'{"metadata":[']) * rng.randrange(2_000, 60_000)),
    "nested metadata": lambda rng: http(wire_good().replace(b"{}", b'{"a":' * 5000 + b"1" + b"}" * 5000)),
    "brackets": lambda rng: http(b'{"images":[' + b"[]," * 300_000 + b"[]]}"),
    "huge number": lambda rng: http(b'{"images": 1' + b"0" * rng.randrange(5_000, 50_000) + b"}"),
    "float": lambda rng: told(group=[rng.choice([1e300, 0.5]), 0]),
    "constants": lambda rng: http(wire_good().replace(b"[0, 1]", b"[%s, 1]" % rng.choice([b"NaN", b"Infinity", b"-Infinity"]))),
    "types": lambda rng: told(**{rng.choice(["images", "prompts", "metadata", "group"]): rng.choice(ANYTHING)}),
    "inner types": lambda rng: told(**{rng.choice(["images", "prompts"]): [rng.choice([None, 3, {}, 1.5, True]), "a"]}),
    "counts": lambda rng: told(prompts=["a"] * rng.choice([0, 1, 3, 50])),
    "keys": lambda rng: told(**{str(rng.random()): 1}),
    "no object": lambda rng: http(rng.choice([b"[]", b"3", b'"x"', b"null", b"true", b""])),
    "half a character": lambda rng: told(prompts=["\ud83d", "b"]),
    "long prompt": lambda rng: told(prompts=["a" * rng.randrange(10_001, 90_000), "b"]),
    "long metadata": lambda rng: told(metadata=[{"a": "b" * 70_000}, {}]),
    "base64": lambda rng: image(rng.choice(["!", "a", "ä", "====", "YQ", "YQ==", ""])),
    "no png": lambda rng: image(base64.b64encode(rng.randbytes(rng.randrange(1, 300))).decode()),
    "cut png": lambda rng: image(base64.b64encode(base64.b64decode(GOOD["images"][0])[: rng.randrange(33, 60)]).decode()),
    "damaged png": damaged,
    "bomb by its header": lambda rng: image(png(rng.randrange(9_000, 2**31), rng.randrange(9_000, 2**31), zlib.compress(b"0"))),
    "bomb of many": lambda rng: told(images=[[png(2000, 2000, b"")] * 20] * 2),
    "bomb in text": lambda rng: image(png(2, 2, zlib.compress(bytes(14)), chunk(b"zTXt", b"k\0\0" + ZEROS))),
    "no pixels": lambda rng: image(png(0, rng.randrange(5), b"")),
    "sizes": lambda rng: told(images=[GOOD["images"][0], png(2, 2, zlib.compress(bytes(14)))]),
    "frames": lambda rng: told(images=[[GOOD["images"][0]], GOOD["images"][1]]),
    "no frames": lambda rng: told(images=[[], []]),
    "length too short": lambda rng: http(wire_good(), length=rng.randrange(len(wire_good()))),
    "length is no number": lambda rng: http(b"{}").replace(b"Length: 2", b"Length: " + rng.choice([b"-5", b"1e3", b"x", b"2, 3"])),
    "length far too long": lambda rng: http(b"{}", length=10 ** rng.randrange(9, 19)),
    "method": lambda rng: http(b"", method=rng.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONSENSE"])),
    "path": lambda rng: http(wire_good(), path=rng.choice(PATHS)),
    "token": lambda rng: http(wire_good(), token=rng.choice(["", "x", TOKEN + "x", TOKEN[:-1], TOKEN.upper(), "\xfc"])),
    "kind": lambda rng: http(wire_good(), kind=rng.choice(["", "text/plain", "application/x-pickle", "multipart/form-data"])),
}  # fmt: skip


def wire_good() -> bytes:
    return json.dumps(GOOD).encode()


def reply(port: int, data: bytes) -> tuple[int, bytes]:
    """Status and body of the first answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        got = b""
        with contextlib.suppress(OSError):  # it answered before all was sent
            s.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            while piece := s.recv(65536):
                got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), (data[:300], got[:300])
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return int(head.split()[1]), body[:length]


def refused(kind: str, port: int, data: bytes) -> None:
    status, body = reply(port, data)
    assert 400 <= status < 500, (kind, status, body, data[:300])
    said = json.loads(body)
    assert set(said) - {"apart"} == {"error"} and 15 < len(said["error"]) < 400 and TOKEN not in said["error"], (kind, said)


def attack(made: Server, count: int, seed: int) -> None:
    rng = random.Random(seed)
    # those of megabytes are many enough at a tenth
    kinds = [
        kind for kind in KINDS for _ in range(1 if kind in ("brackets", "bomb in text", "long header", "nested metadata") else 10)
    ]
    for _ in range(count):
        kind = rng.choice(kinds)
        refused(kind, made.port, KINDS[kind](rng))


def good(made: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_TOKEN", TOKEN)
    told_ = replace(remote(made.address, Patience(read=10, total=20)), chunk=2)(pictures(4), list("abcd"), [{}] * 4)
    assert not np.isnan(told_.values).any()


@pytest.mark.ci
def test_every_kind_of_malformed_request_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.server("--patience", "0.5", FLOWRL_TOKEN=TOKEN) as made:
        for kind, make in KINDS.items():
            for seed in range(4):
                refused(kind, made.port, make(random.Random(seed)))
        # what never comes is not waited for
        assert reply(made.port, http(b"{}", length=1000))[0] == 408
        assert reply(made.port, b"POST /lev")[0] == 400
        good(made, monkeypatch)


@pytest.mark.ci
@pytest.mark.timeout(1200)
def test_10_000_malformed_requests_neither_crash_the_server_nor_make_it_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.server("--patience", "2", FLOWRL_TOKEN=TOKEN) as made:
        attack(made, 1_500, 0)
        before = made.resident()
        attack(made, 8_500, 1)
        assert made.resident() - before < 24 * 2**20
        assert made.process.poll() is None
        good(made, monkeypatch)
