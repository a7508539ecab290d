"""What goes back over HTTP: JSON, and errors as JSON in one shape, translated in one place.

An error is ``{"error": {"what": ..., "remedy": ...}}`` whoever found it: a `ServerError` of ours, a refusal of this
layer (`Refusal`), or the router ("no such address"). What we did not foresee says nothing of its inside to the caller
and goes to the log.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import (
    ConfigurationError,
    ConflictError,
    MergeError,
    NotFoundError,
    RequestError,
    ServerError,
    StorageError,
)

log = logging.getLogger(__name__)

#: What a browser may do with our answers: run and load nothing but our own files, show them in no frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

#: Our errors and the status that says the same; the first that fits counts, so the narrower ones come first.
STATUS: tuple[tuple[type[ServerError], int], ...] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (RequestError, 400),
    (StorageError, 507),
    (MergeError, 500),
    (ConfigurationError, 500),
    (ServerError, 500),
)

#: The router's own refusals, which know no remedy.
_REMEDIES = {404: "the addresses are listed in docs/reference/api.md", 405: "see docs/reference/api.md for its methods"}


class Refusal(Exception):  # noqa: N818 - not a fault of this program
    """A request turned away by the web layer, before the service is asked."""

    def __init__(self, status: int, what: str, remedy: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{what}: {remedy}")
        self.status, self.what, self.remedy, self.headers = status, what, remedy, headers


def json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value` as a JSON answer that no cache keeps."""
    return Response(
        msgspec.json.encode(value), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json"
    )


def error(status: int, what: str, remedy: str, headers: dict[str, str] | None = None) -> Response:
    """The one shape of an error."""
    return json({"error": {"what": what, "remedy": remedy}}, status, headers)


def refused(_: Request, found: Exception) -> Response:
    """Handler for `Refusal`."""
    assert isinstance(found, Refusal)
    return error(found.status, found.what, found.remedy, found.headers)


def failed(request: Request, found: Exception) -> Response:
    """Handler for `ServerError`."""
    assert isinstance(found, ServerError)
    status = next(status for kind, status in STATUS if isinstance(found, kind))
    if status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, found)
    return error(status, found.what, found.remedy)


def unrouted(_: Request, found: Exception) -> Response:
    """Handler for what the router itself refuses."""
    assert isinstance(found, HTTPException)
    headers = dict(found.headers) if found.headers else None
    return error(found.status_code, str(found.detail), _REMEDIES.get(found.status_code, ""), headers)


def unforeseen(request: Request, found: Exception) -> Response:
    """Handler for everything else: our fault."""
    log.error("%s %s", request.method, request.url.path, exc_info=found)
    # this answer is made outside of the middleware that adds the headers to all others
    return error(500, "the server made a mistake", "its log has the details; please report it", HEADERS)
