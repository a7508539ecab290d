"""Who may change something, and what a browser may do with our answers.

Reading is open to whoever reaches the port (loopback by default); everything else needs ``Authorization: Bearer`` with
the token that `sanderling server init` made. A browser does not add that header by itself, so no other site can make
one act for it. The page runs no inline script or style and loads nothing from elsewhere: the policy holds it to that.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import HEADERS, Refusal, error

#: Methods that change nothing.
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware: asks for `token` on every request that is not a reading one, and adds `HEADERS` to answers."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            if scope["method"] not in _READING:
                self.check(scope)
        except Refusal as found:
            answer = error(found.status, found.what, found.remedy, found.headers)
            await answer(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def check(self, scope: Scope) -> None:
        """Raises `Refusal` unless the request carries the token; compared in constant time."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token):
            return
        what = "the token is wrong" if given else "this needs a token"
        remedy = (
            "send `Authorization: Bearer TOKEN` with what is in api.token, the file that `sanderling server init` made"
        )
        raise Refusal(401, what, remedy, {"WWW-Authenticate": 'Bearer realm="sanderling"'})
