"""The page over HTTP. Whatever is asked of it, the answer is the page, JSON, an image or a 4xx."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowrl import moving
from flowrl.rewards.videos import SUFFIXES as FILMS
from flowrl.vote.desk import Desk, Refused

LIMIT = 16_384
"""Bytes a request's body may have."""
HEAVY = 4_000_000
"""Bytes of a film as an animated picture."""
COOKIE = "flowrl_vote"
LOCAL = ("127.0.0.1", "localhost", "[::1]")
VOTER = r"^[A-Za-z0-9_.-]{1,40}$"
Voter = Annotated[str, Field(pattern=VOTER)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]


class Ballot(BaseModel):
    """POST /api/vote."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: Id
    voter: Voter
    question: Id
    ranks: Annotated[list[int], Field(min_length=2, max_length=16)] | None
    seconds: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Back(BaseModel):
    """POST /api/undo."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: Id
    voter: Voter
    of: Id


class Asked(BaseModel):
    """GET /api/state."""

    model_config = ConfigDict(extra="forbid")
    voter: Voter


M = TypeVar("M", bound=BaseModel)


def application(desk: Desk, token: str | None = None) -> FastAPI:
    """The server. token: what strangers do not know; with it every request needs the cookie that /?token=... sets. Without one only
    requests for this machine's own names are answered, so no page elsewhere can vote."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_pages(token))
    app.include_router(_answers(desk))
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(OSError, _unwritten)

    @app.middleware("http")
    async def guard(request: Request, further: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _stranger(request, token) or await further(request)
        response.headers.update({"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"})
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return app


def _pages(token: str | None) -> APIRouter:
    router = APIRouter()
    html, policy = page()

    @router.get("/")
    async def root(request: Request) -> Response:
        if "token" in request.query_params:
            voter = request.query_params.get("voter", "")
            response = RedirectResponse(f"/?voter={voter}" if re.fullmatch(VOTER, voter) else "/", 303)
            if token is not None:
                # lax: a strict one is not sent after the redirect when the address was opened from a message
                response.set_cookie(COOKIE, token, httponly=True, samesite="lax", max_age=30 * 86400)
            return response
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    return router


def _answers(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.get("/state")
    async def state(request: Request) -> Response:
        asked = _checked(Asked, dict(request.query_params))
        return JSONResponse(desk.state(asked.voter))

    @router.post("/vote")
    async def vote(request: Request) -> Response:
        b = _checked(Ballot, await _body(request))
        return JSONResponse(desk.vote(b.voter, b.id, b.question, b.ranks, b.seconds))

    @router.post("/undo")
    async def undo(request: Request) -> Response:
        b = _checked(Back, await _body(request))
        return JSONResponse(desk.undo(b.voter, b.id, b.of))

    @router.get("/image/{content}")
    async def image(content: str) -> Response:
        name = desk.file(content)
        path = None if name is None else desk.book.path.parent / name
        if path is None or not path.is_file():
            return _error(404, "there is no such image here")
        kept = {"Cache-Control": "private, max-age=86400"}
        if path.suffix.lower() in FILMS:
            # an <img> plays no film, and few browsers play all kinds of them
            data = await asyncio.to_thread(_animated, path, path.stat().st_mtime_ns)
            return Response(data, media_type="image/webp", headers=kept)
        # nosniff: an image without its type would not be shown, and not every machine knows WebP's
        kind = "image/webp" if path.suffix.lower() == ".webp" else None
        return FileResponse(path, media_type=kind, headers=kept)

    return router


@lru_cache(maxsize=64)
def _animated(path: Path, written: int) -> bytes:
    """A film as a picture that moves."""
    del written
    return moving.light(path, HEAVY, (moving.Step(720, 96, 85), moving.Step(512, 64, 75), *moving.STEPS))[0]


def page() -> tuple[str, str]:
    """(the page, with its style and script inside; the policy that lets it load nothing from elsewhere)."""
    here = files("flowrl.vote")
    style = files("flowrl.report").joinpath("style.css").read_text("utf-8") + here.joinpath("page.css").read_text("utf-8")
    script = here.joinpath("page.js").read_text("utf-8")
    html = here.joinpath("page.html").read_text("utf-8").replace("/* style */", style).replace("/* script */", script)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _stranger(request: Request, token: str | None) -> Response | None:
    """The answer to someone who may not vote."""
    if token is None:
        name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        return None if name in LOCAL else _error(403, "this page is for the machine it runs on; start it with --host to open it")
    given = request.query_params.get("token") if request.url.path == "/" else None
    given = given or request.cookies.get(COOKIE, "")
    if hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        return None
    return _error(401, "open the whole address that flowrl vote printed")


async def _body(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "send JSON, with Content-Type: application/json")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LIMIT:
            raise Refused(413, f"a vote has at most {LIMIT} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None


def _checked(kind: type[M], given: Any) -> M:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Refused(422, f"{where}: {first['msg']}") from None


async def _refused(request: Request, error: Exception) -> Response:
    del request
    return _error(error.status if isinstance(error, Refused) else 500, str(error))


async def _unwritten(request: Request, error: Exception) -> Response:
    del request
    return _error(507, str(error))


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)
