"""REST API and page: the table of addresses, and a few lines for each.

Questions run in worker threads (the store may be asked from any), so a slow disk stops no heartbeat. Bodies are read in
pieces and refused as soon as they are too long. docs/reference/api.md is the same table for readers; a test holds the
two together.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..errors import NotFoundError, ServerError
from ..service import Notes, Service
from . import answers, views
from .answers import Refusal, json
from .history import Shared, first_accuracy, history
from .live import MOST_VIEWERS, Live
from .security import Guard

STATIC = Path(__file__).parent / "static"
#: Bytes of a JSON body; rows of a list.
LARGEST_BODY, MOST_ROWS = 256 * 1024, 1000

T = TypeVar("T", bound=msgspec.Struct)


class ReleaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /api/models/{model}/releases."""

    labels: list[str] = []
    notes: Notes = {}


class RollbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /api/models/{model}/rollback."""

    to_version: int


def create_app(service: Service) -> Starlette:
    """The application that serves `service`: API under /api, /metrics, /healthz, and the page at /."""
    web = _Web(service)
    return Starlette(
        routes=[
            Route("/api/status", web.status),
            Route("/api/devices", web.devices),
            Route("/api/devices/{name}", web.device),
            Route("/api/models", web.models),
            Route("/api/models/{model}", web.model),
            Route("/api/models/{model}/releases", web.releases, methods=["GET"]),
            Route("/api/models/{model}/releases", web.release, methods=["POST"]),
            Route("/api/models/{model}/rollback", web.rollback, methods=["POST"]),
            Route("/api/models/{model}/versions/{version:int}", web.version),
            Route("/api/models/{model}/versions/{version:int}/{file}", web.download),
            Route("/api/models/{model}/files/{file}", web.upload, methods=["PUT"]),
            Route("/api/history", web.history),
            Route("/api/events", web.events),
            Route("/api/jobs", web.jobs),
            Route("/api/audit", web.audit),
            Route("/api/live", web.live),
            Route("/api/token", web.token, methods=["POST"]),
            Route("/metrics", web.metrics),
            Route("/healthz", web.health),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ],
        middleware=[Middleware(Guard, token=service.token)],
        exception_handlers={
            Refusal: answers.refused,
            ServerError: answers.failed,
            HTTPException: answers.unrouted,
            Exception: answers.unforeseen,
        },
    )


class _Web:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._live = Live(service)
        self._shared = Shared(service)

    # ---- questions (plain functions: Starlette runs them in threads)

    def status(self, _: Request) -> Response:
        core, devices = self._service.status(), self._service.devices()
        return json(views.status(core, devices, first_accuracy(self._service), self._live.viewers))

    def devices(self, _: Request) -> Response:
        current = self._current()
        return json([views.device(row, current) for row in self._service.devices()])

    def device(self, request: Request) -> Response:
        name = request.path_params["name"]
        row = self._service.device(name)
        lines = history(self._service, device=name, since=_number(request, "since"), points=_points(request))
        return json(views.detailed(row, self._current(), lines))

    def models(self, _: Request) -> Response:
        return json(self._service.models())

    def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        for row in self._service.models():
            if row["name"] == name:
                return json({**row, "staged": self._service.store.staged(name)})
        raise NotFoundError(f"there is no model called {name[:80]!r}", "see `sanderling model list`")

    def releases(self, request: Request) -> Response:
        return json(self._service.releases(request.path_params["model"])[: _limit(request)])

    def version(self, request: Request) -> Response:
        row = self._service.store.release(request.path_params["model"], request.path_params["version"])
        return json({key: value for key, value in row.items() if key != "manifest"})

    def download(self, request: Request) -> Response:
        model, version, file = (request.path_params[key] for key in ("model", "version", "file"))
        data = self._service.file(model, version, file)
        # the name has passed the service's table of files, so it needs no quoting
        headers = {"Content-Disposition": f'attachment; filename="{file}"', "Cache-Control": "no-store"}
        return Response(data, headers=headers, media_type="application/octet-stream")

    def history(self, request: Request) -> Response:
        return json(self._shared.history(_number(request, "since"), _points(request)))

    def events(self, request: Request) -> Response:
        return json(self._service.events(_limit(request)))

    def jobs(self, request: Request) -> Response:
        return json(self._service.jobs(_limit(request)))

    def audit(self, request: Request) -> Response:
        return json(self._service.audit(_limit(request)))

    def metrics(self, _: Request) -> Response:
        return Response(views.metrics(self._service.metrics()), media_type="text/plain; version=0.0.4; charset=utf-8")

    def health(self, _: Request) -> Response:
        self._service.store.counters()  # raises StorageError if the database cannot be read
        return json({"ok": True, "broker": self._service.broker["connected"]})

    async def live(self, _: Request) -> Response:
        if self._live.viewers >= MOST_VIEWERS:
            raise Refusal(503, f"{MOST_VIEWERS} viewers are connected", "close some pages", {"Retry-After": "30"})
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._live.stream(), headers=headers, media_type="text/event-stream")

    # ---- actions (the token has been checked by `Guard`)

    async def token(self, _: Request) -> Response:
        return json({"ok": True})

    async def upload(self, request: Request) -> Response:
        model, file = request.path_params["model"], request.path_params["file"]
        limit = self._service.settings.limits.largest_file
        data = await _body(request, limit, "raise limits.largest_file in server.toml")
        return json(await asyncio.to_thread(self._service.put_file, model, file, data, actor=_actor(request)), 201)

    async def release(self, request: Request) -> Response:
        wanted = _parsed(await _body(request, LARGEST_BODY, "shorten labels or notes"), ReleaseRequest)
        model = request.path_params["model"]
        version = await self._service.release(model, wanted.labels, wanted.notes, actor=_actor(request))
        return self._released(model, version)

    async def rollback(self, request: Request) -> Response:
        wanted = _parsed(await _body(request, LARGEST_BODY, "send only to_version"), RollbackRequest)
        model = request.path_params["model"]
        return self._released(model, await self._service.rollback(model, wanted.to_version, actor=_actor(request)))

    def _released(self, model: str, version: int) -> Response:
        row = self._service.store.release(model, version)
        answer = {key: row[key] for key in ("model", "version", "created", "source", "digest", "files", "metrics")}
        return json(answer, 201, {"Location": f"/api/models/{model}/versions/{version}"})

    def _current(self) -> dict[str, int]:
        return {row["name"]: row["current_version"] for row in self._service.models()}


async def _body(request: Request, limit: int, remedy: str) -> bytes:
    """The request's body, refused with 413 as soon as it is known to be longer than `limit` bytes."""
    too_long = Refusal(413, f"the body is longer than {limit} bytes", remedy, {"Connection": "close"})
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or int(declared) > limit:
        raise too_long
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise too_long
    return bytes(data)


def _parsed(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        remedy = "docs/reference/api.md shows what is expected"
        raise Refusal(400, f"the body cannot be used: {error}", remedy) from error


def _number(request: Request, name: str) -> float:
    text = request.query_params.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e15:
        raise Refusal(400, f"{name}={text[:40]!r} is not a number from 0 on", f"leave {name} out, or correct it")
    return value


def _limit(request: Request) -> int:
    return max(1, min(int(_number(request, "limit")) or 100, MOST_ROWS))


def _points(request: Request) -> int:
    return int(_number(request, "points")) or 240


def _actor(request: Request) -> str:
    return f"api from {request.client.host}" if request.client else "api"
