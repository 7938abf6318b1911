"""Reward servers for tests: real ones in processes of their own, false ones in threads, and the rewards they serve."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from tinyrun import environment

from flowrl.rewards import Detailed

HERE = Path(__file__).resolve()


def level(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Detailed:
    """Mean brightness plus metadata's "more"; a prompt can ask for what goes wrong."""
    if "sleep" in prompts:
        time.sleep(600)
    if "raise" in prompts:
        raise KeyError("the judge broke on purpose")
    if "exit" in prompts:
        sys.exit(3)
    values = images.reshape(len(images), -1).mean(1) / 3 + [m.get("more", 0) for m in metadata]
    return Detailed(
        [None if p == "bad" else v for v, p in zip(values, prompts, strict=True)],
        {"red": images[..., 0].reshape(len(images), -1).std(1)},
    )


def plain(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    return (images.mean((1, 2, 3)) / 255 - 0.3 * images[..., 0].std((1, 2)) / 255).tolist()


@dataclass
class Server:
    """A `flowrl serve` under way."""

    process: subprocess.Popen[str]
    address: str
    said: list[str]

    @property
    def port(self) -> int:
        return int(self.address.split(":")[2].partition("/")[0])

    def resident(self) -> int:
        """Bytes in memory."""
        line = next(x for x in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


def spec(function: Callable[..., Any]) -> str:
    return f"{HERE}:{function.__name__}"


def free() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*words: str, function: Callable[..., Any] = level, port: int = 0, **env: str) -> Server:
    """A server that listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flowrl", "serve", "--reward", spec(function), "--port", str(port), *words],
        env=environment(**{"FLOWRL_TOKEN": "", **env}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = [process.stdout.readline(), process.stdout.readline()]
    assert "--reward remote:" in said[0], said + process.stdout.readlines()
    return Server(process, said[0].strip().partition("--reward remote:")[2], said)


@contextmanager
def server(*words: str, function: Callable[..., Any] = level, port: int = 0, **env: str) -> Iterator[Server]:
    """A server that is gone afterwards."""
    made = start(*words, function=function, port=port, **env)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate(timeout=30)


@contextmanager
def false(answer: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    """The address of a server that answers what it likes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer(self, self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/judge"
    finally:
        made.shutdown()
        made.server_close()


def say(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def pictures(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *(shape or (12, 20)), 3), dtype=np.uint8)
