"""Rewards over HTTP: POST /NAME with a request (`wire`), GET /health. Every refusal is JSON {"error": a sentence}."""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
import socket
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowrl.rewards.base import Compares, Reward, TrainableReward

from . import wire
from .pictures import Limits, Refused, TooLarge
from .token import hidden
from .worker import Worker

UNREADABLE = b'{"error": "that is no HTTP request; POST JSON to /NAME"}'
SAID = {404: "there is nothing here; POST to /NAME or GET /health", 405: "only POST /NAME and GET /health are answered"}


@dataclass(frozen=True)
class Rules:
    """How a server treats its clients. token: what they must show, None for nothing;  waiting: requests at once, read or scored;
    patience: seconds a request's body may take to arrive;  again: seconds to come back in when too many wait."""

    token: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    waiting: int = 16
    patience: float = 60.0
    again: int = 2


class Denied(Exception):
    """An answer that is no scores."""

    def __init__(self, status: int, said: str, **headers: str) -> None:
        self.response = JSONResponse({"error": said}, status, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Desk:
    """Takes requests for a worker.  inside: how many are being read, waited for or scored."""

    worker: Worker
    rules: Rules
    inside: int = 0
    unpacking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    async def health(self) -> JSONResponse:
        """Whether it lives, and how many requests are inside. Asks for no token, and tells nothing that needs one."""
        return JSONResponse({"status": "ok", "waiting": self.inside})

    async def score(self, request: Request) -> JSONResponse:
        """Scores, or why not."""
        try:
            self._admit(request)
            self.inside += 1
            try:
                return await self._answer(request)
            finally:
                self.inside -= 1
        except Denied as denied:
            return denied.response
        except Refused as refused:
            return JSONResponse({"error": str(refused), **self._apart(request, refused)}, refused.status)

    def _apart(self, request: Request, refused: Refused) -> dict[str, bool]:
        """What a client with too large a request may do about it."""
        reward = self.worker.rewards[request.path_params["name"]]
        return {"apart": not (isinstance(reward, Compares) and reward.compares)} if isinstance(refused, TooLarge) else {}

    def _admit(self, request: Request) -> None:
        """Refuse what can be refused by its headers."""
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        token = self.rules.token
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Denied(401, "the token is missing or wrong; set FLOWRL_TOKEN to the server's", WWW_Authenticate="Bearer")
        if request.path_params["name"] not in self.worker.rewards:
            raise Denied(404, f"no reward of that name is served; there are {', '.join(self.worker.rewards)}")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Denied(415, "the body is not said to be JSON; send it with Content-Type: application/json")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.rules.limits.body:
            raise TooLarge(f"the body is larger than {self.rules.limits.body} bytes; send fewer images at once")
        if self.inside >= self.rules.waiting:
            raise Denied(503, f"{self.inside} requests wait already; come back later", Retry_After=str(self.rules.again))

    async def _answer(self, request: Request) -> JSONResponse:
        body = await self._body(request)
        async with self.unpacking:
            call = await asyncio.to_thread(wire.decode, body, self.rules.limits)
        del body
        answer = self.worker.ask(request.path_params["name"], call)
        told, gone = asyncio.wrap_future(answer), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({told, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                raise Denied(499, "the client has gone")
            return JSONResponse(wire.answer(told.result()))
        except RuntimeError as error:
            logging.getLogger("flowrl").warning("%s", hidden(str(error), self.rules.token))
            raise Denied(500, f"the reward failed: {hidden(str(error), self.rules.token)}") from error
        finally:
            told.cancel()
            gone.cancel()

    async def _body(self, request: Request) -> bytes:
        pieces = bytearray()
        try:
            async with asyncio.timeout(self.rules.patience):
                async for piece in request.stream():
                    pieces += piece
                    if len(pieces) > self.rules.limits.body:
                        raise TooLarge(f"the body is larger than {self.rules.limits.body} bytes; send fewer images at once")
        except TimeoutError:
            raise Denied(408, f"the body did not arrive within {self.rules.patience:g} s; send what Content-Length says") from None
        except ClientDisconnect:
            raise Denied(499, "the client has gone") from None
        return bytes(pieces)


async def _gone(request: Request) -> None:
    """Returns when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def app(rewards: Mapping[str, Reward], rules: Rules, batch: int = 64) -> FastAPI:
    """The server of rewards by name. batch: images a call of a reward at most, where several requests are joined.

    Raises: ValueError for a reward that learns: what it learned would be in no checkpoint.
    """
    learning = [name for name, reward in rewards.items() if isinstance(reward, TrainableReward)]
    if learning:
        raise ValueError(
            f"reward {learning[0]!r} learns while it scores, which is saved with a run only; train with it where it is"
        )
    desk = Desk(Worker(rewards, batch), rules)
    made = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    made.add_api_route("/health", desk.health, methods=["GET"], response_model=None)
    made.add_api_route("/{name:path}", desk.score, methods=["POST"], response_model=None)
    made.add_exception_handler(HTTPException, _http)
    return made


async def _http(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"error": SAID.get(status, f"the request cannot be answered ({status})")}, status)


def protocol(patience: float, *args: Any, **kwargs: Any) -> H11Protocol:
    """uvicorn's own, whose refusal of what is no HTTP is JSON as well, and comes where no request does in `patience` seconds."""
    made = H11Protocol(*args, **kwargs)
    me = weakref.ref(made)  # the clock must not keep connections that are closed

    def refuse(msg: str) -> None:
        del msg  # text of h11, for those who read its code
        if (own := me()) is not None:
            _unreadable(own)

    def late() -> None:
        if (own := me()) is not None and own.cycle is None and not own.transport.is_closing():
            _unreadable(own)

    made.send_400_response = refuse
    made.loop.call_later(patience, late)
    return made


def _unreadable(own: H11Protocol) -> None:
    if own.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
        size = str(len(UNREADABLE)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", size), (b"connection", b"close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=UNREADABLE), h11.EndOfMessage()):
            own.transport.write(own.conn.send(event) or b"")
    own.transport.close()


def run(made: FastAPI, bound: socket.socket, patience: float = 60.0, grace: float = 10.0) -> None:
    """Answer on a listening socket until SIGTERM or Ctrl-C; requests inside then have `grace` seconds left."""
    # whatever makes a protocol will do, though the annotation asks for a class
    make: Any = partial(protocol, patience)
    config = uvicorn.Config(
        made, http=make, ws="none", lifespan="off", log_config=None, log_level="error", access_log=False,
        server_header=False, timeout_graceful_shutdown=int(grace),
    )  # fmt: skip
    # uvicorn raises the signal again once all is answered, which must not look like a crash
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A socket for an address; port 0: any free one.

    Raises: OSError, a sentence, where the address cannot be had.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        # connections are refused until somebody listens, once the rewards are loaded; clients come back
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host or --port") from error
    return bound
