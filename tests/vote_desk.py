"""A flowrl vote in its own process, and requests to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


class Served(NamedTuple):
    """A running server. said: what it printed before it was ready."""

    process: subprocess.Popen[str]
    url: str
    said: str

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        return request(self.url + path, None, headers)

    def state(self, voter: str = "me") -> dict[str, Any]:
        status, body = self.get(f"api/state?voter={voter}")
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        status, told = request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return status, json.loads(told)

    def vote(self, ranks: list[int] | None, id: str, voter: str = "me", question: str | None = None) -> tuple[int, dict[str, Any]]:
        key = question or self.state(voter)["question"]["key"]
        return self.post("api/vote", {"id": id, "voter": voter, "question": key, "ranks": ranks, "seconds": 1.5})


def request(url: str, body: bytes | None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers or {})), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextmanager
def served(folder: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    """flowrl vote FOLDER until the end of the block. Its errors go to FOLDER/../errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})}
    port = () if "--port" in options else ("--port", "0")
    with (folder.parent / "errors").open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowrl", "vote", str(folder), *port, *options],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
        )  # fmt: skip
    assert process.stdout is not None
    said = ""
    try:
        while "stop with ctrl-c" not in said:
            line = process.stdout.readline()
            assert line, (folder.parent / "errors").read_text()
            said += line
        found = re.search(r"vote at  (http://\S+/)(\?\S+)?", said)
        assert found is not None, said
        yield Served(process, found[1], said)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def drawn(seed: int, size: tuple[int, int] = (24, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def run(path: Path, captions: int = 3, images: int = 1, side: int = 24) -> Path:
    """A run's folder with images before and after, no two the same."""
    rows = []
    for caption in range(captions):
        for image in range(images):
            for number, when in enumerate(("before", "after")):
                place = path / "samples" / when
                place.mkdir(parents=True, exist_ok=True)
                pixels = drawn(1000 * caption + 10 * image + number, (side, side))
                Image.fromarray(pixels).save(place / f"{caption:03d}_{image}.png")
        row = {when: {"file": f"{when}/{caption:03d}_0.png", "score": 0.5} for when in ("before", "after")}
        rows.append({"caption": caption, "prompt": f"caption number {caption}", "task": None, **row})
    (path / "samples" / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "run.yaml").write_text("run: {}\n")
    return path


def folder(path: Path, prompts: int = 1, images: int = 4) -> Path:
    """Images of a few prompts, as flowrl score takes them."""
    path.mkdir(parents=True, exist_ok=True)
    rows = []
    for prompt in range(prompts):
        for image in range(images):
            name = f"{prompt}_{image}.png"
            Image.fromarray(drawn(100 * prompt + image + 7)).save(path / name)
            rows.append({"file_name": name, "prompt": f"prompt {prompt}"})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "votes.jsonl").read_text().splitlines()]
