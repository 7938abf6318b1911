"""The server as a process: its address, its token, its end."""

from __future__ import annotations

import os
import re
import secrets
import socket
from pathlib import Path

from flowrl.rewards.votes.book import NAME
from flowrl.vote.book import opened
from flowrl.vote.desk import Desk
from flowrl.vote.pairs import Question

PORT = 8642
TOKEN = "FLOWRL_VOTE_TOKEN"


def serve(folder: Path, questions: list[Question], host: str, port: int | None, seed: int, voter: str) -> Desk:
    """Answer requests until interrupted. host: an address of this machine; any but its own loopback asks for a token.

    Raises: OSError if the address cannot be had; BlockingIOError if another process writes to the book.
    """
    import uvicorn

    from flowrl.vote.server import application

    desk = Desk(folder.resolve().name, opened(folder / NAME), tuple(questions), seed)
    token = None if host in ("127.0.0.1", "localhost", "::1") else _token()
    with _bound(host, port) as bound:
        print(f"vote at  {address(bound, token, voter)}", flush=True)
        if token:
            print(f"whoever has this address can vote, nobody else; {TOKEN} keeps it the same at the next start", flush=True)
        print(f"votes go to {desk.book.path}; stop with ctrl-c and go on whenever you like", flush=True)
        # no log of requests: their addresses hold the token
        config = uvicorn.Config(application(desk, token), log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:
            print()
    return desk


def address(bound: socket.socket, token: str | None, voter: str) -> str:
    """What to type into a browser."""
    host, port = bound.getsockname()[:2]
    host = _reachable() if host in ("0.0.0.0", "::") else host
    asked = [f"token={token}"] if token else []
    asked += [f"voter={voter}"] if voter != "me" else []
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?{'&'.join(asked)}" if asked else "")


def _token() -> str:
    given = os.environ.get(TOKEN)
    if given is not None and not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", given):
        raise ValueError(f"the environment's {TOKEN} is no good token; give 16 to 128 letters, digits, dashes or underscores")
    return given or secrets.token_urlsafe(16)


def _bound(host: str, port: int | None) -> socket.socket:
    """A listening socket; without a port the usual one, or any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in (port,) if port is not None else (PORT, 0):
        bound = socket.socket(family, socket.SOCK_STREAM)
        # a port is free at once after a kill
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, number))
            bound.listen(128)
        except (OSError, OverflowError) as error:
            bound.close()
            if port is None and number:
                continue
            raise OSError(f"{host} port {number} cannot be used: {error}; choose another with --port or --host") from error
        return bound
    raise AssertionError


def _reachable() -> str:
    """The address by which others in the network reach this machine; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
