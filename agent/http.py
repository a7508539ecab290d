"""HTTP/1.1 over asyncio: h11 holds the protocol, this file moves bytes between it, a socket and a handler.

Bounded everywhere: head, body, time for one request, connections. Errors of the client are answered and, when the
connection's state is lost, end it; a handler never sees them. Idle connections are closed when the server drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import h11
import msgspec

from .errors import AgentError, RequestError
from .limits import LIMITS, Limits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """One complete request; `path` is still percent-encoded and has no query."""

    method: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; all bodies here are JSON."""

    status: int
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]


def error_response(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """The body of every refusal: `{"error": "..."}`."""
    return Response(status, msgspec.json.encode({"error": message}), headers)


class HttpServer:
    """Serves `handler` on listening sockets that somebody else owns."""

    def __init__(self, handler: Handler, limits: Limits = LIMITS) -> None:
        self._handler = handler
        self._limits = limits
        self._servers: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], bool] = {}  # whether it is between requests
        self._slots = asyncio.Semaphore(limits.connections)
        self.last_request = time.monotonic()

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept connections on sockets that listen already."""
        for listener in sockets:
            self._servers.append(await asyncio.start_server(self._accept, sock=listener, limit=2**16, backlog=1024))

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return not all(self._connections.values())

    async def drain(self, patience: float = 5.0) -> None:
        """Accept nothing more, answer what has begun, close the rest."""
        for server in self._servers:
            server.close()
        for task, idle in list(self._connections.items()):
            if idle:
                task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=patience)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = True
        try:
            async with self._slots:
                await self._converse(task, reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client left, or this connection was idle while draining
        finally:
            del self._connections[task]
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.request_head)
        while True:
            try:
                request = await self._receive(task, connection, reader, writer)
                if request is None:
                    return
                response = await self._answer(request)
            except h11.RemoteProtocolError as error:
                response = error_response(error.error_status_hint or 400, f"not HTTP as expected here: {error}")
            except RequestError as error:
                response = error_response(error.status, str(error))
            except TimeoutError:
                response = error_response(408, f"the request took longer than {self._limits.request_seconds:.0f} s")
            await self._send(connection, writer, response)
            self._connections[task] = True
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _receive(
        self, task: asyncio.Task[None], connection: h11.Connection, reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> Request | None:  # fmt: skip
        """The next request, or None when the client is done."""
        head: h11.Request | None = None
        body = bytearray()
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                async with asyncio.timeout_at(deadline):
                    data = await reader.read(2**16)
                if data and deadline is None:
                    deadline = loop.time() + self._limits.request_seconds
                    self._connections[task] = False
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
                self._connections[task] = False
                length = next((value for name, value in event.headers if name == b"content-length"), b"0")
                if int(length) > self._limits.request_body:
                    raise self._too_large()
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._limits.request_body:
                    raise self._too_large()
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                path = head.target.decode("ascii", "replace").partition("?")[0]
                return Request(head.method.decode("ascii", "replace"), path, bytes(body))
            else:  # the client closed, or switched to something else
                return None

    def _too_large(self) -> RequestError:
        largest = self._limits.request_body
        return RequestError(413, f"the body is larger than {largest} bytes; send fewer samples at once")

    async def _answer(self, request: Request) -> Response:
        self.last_request = time.monotonic()
        try:
            return await self._handler(request)
        except RequestError as error:
            return error_response(error.status, str(error))
        except AgentError as error:
            return error_response(500, str(error))
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return error_response(500, "a bug in the agent; its log has the details")
        finally:
            self.last_request = time.monotonic()

    async def _send(self, connection: h11.Connection, writer: asyncio.StreamWriter, response: Response) -> None:
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # the client broke off in the middle of something that cannot be answered any more
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(response.body))),
            *response.headers,
        ]
        if connection.their_state is not h11.DONE:
            headers.append(("connection", "close"))
        for event in (
            h11.Response(status_code=response.status, headers=headers),
            h11.Data(data=response.body),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(event) or b"")
        await writer.drain()
