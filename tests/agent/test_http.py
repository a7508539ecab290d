"""The HTTP server over real sockets: keep-alive, bounds, and any bytes at all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sanderling.agent.errors import RequestError
from sanderling.agent.http import HttpServer, Request, Response
from sanderling.agent.limits import Limits

LIMITS = Limits(request_body=1000, request_head=500, request_seconds=0.3)


async def echo(request: Request) -> Response:
    if request.path == "/teapot":
        raise RequestError(418, "short and stout")
    if request.path == "/bug":
        raise KeyError("a bug")
    return Response(200, request.body or b"{}")


def converse(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter, HttpServer], Awaitable[None]]) -> None:
    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(echo, LIMITS)
        await server.start([listener])
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            await asyncio.wait_for(talk(reader, writer, server), 10)
        finally:
            writer.close()
            await server.drain(2)
            listener.close()

    asyncio.run(run())


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split()[1])
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    return status, await reader.readexactly(length)


def test_one_connection_many_requests() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _server: HttpServer) -> None:
        for number in range(5):
            body = b"[%d]" % number
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            assert await answer(reader) == (200, body)
        writer.write(b"GET /teapot?x=1 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")  # two at once
        assert await answer(reader) == (418, b'{"error":"short and stout"}')
        assert await answer(reader) == (200, b"{}")

    converse(talk)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1f4\r\n" + b"x" * 500 + b"\r\n"
         + b"1f5\r\n" + b"x" * 501 + b"\r\n0\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nslow", 408),
        (b"GET /bug HTTP/1.1\r\nHost: a\r\n\r\n", 500),
    ],
)  # fmt: skip
def test_refusals_have_a_body(sent: bytes, status: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _server: HttpServer) -> None:
        writer.write(sent)
        found, body = await answer(reader)
        assert found == status
        assert body.startswith(b'{"error":"')

    converse(talk)


def test_expect_continue() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _server: HttpServer) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"{}")
        assert await answer(reader) == (200, b"{}")

    converse(talk)


def test_drain_closes_idle_connections() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: HttpServer) -> None:
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await answer(reader)
        assert not server.busy
        await server.drain()
        assert await reader.read() == b""

    converse(talk)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=300)
    | st.binary(max_size=100).map(lambda b: b"POST / HTTP/1.1\r\nHost: a\r\n" + b + b"\r\n\r\n")
    | st.binary(max_size=60).map(lambda b: b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b)
)
def test_any_bytes_are_answered_or_hung_up_on(data: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: HttpServer) -> None:
        writer.write(data)
        writer.write_eof()
        found = await reader.read()
        assert found == b"" or found.startswith(b"HTTP/1.1 ")
        assert b" 500 " not in found.split(b"\r\n")[0]

    converse(talk)
