"""The server as one process: MQTT, database, merges and web on one event loop.

Everything that must survive is in the database before anybody is told, so there is no shutdown that matters: a clean
stop and `kill -9` leave the same state. An absent broker is waited for while the web page stays up; a port in use, or a
data directory that another server is using, ends the start with what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from sanderling.host.mqtt import Connection

from . import housekeeping
from .config import Settings
from .errors import ConfigurationError
from .ingest import RECEIPT_PATIENCE, Ingest
from .jobs import Merges
from .publish import Publisher
from .service import Service

log = logging.getLogger(__name__)

#: Seconds that open requests get at a stop: live viewers never finish by themselves.
GRACE = 2
#: Seconds between two cleanings of what is no longer needed.
HOUSEKEEPING = 600.0


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigurationError` or `StorageError` if it cannot start."""
    with _alone(settings.data):
        service = Service(settings)
        try:
            with _listening(settings.web.host, settings.web.port) as listener:
                await _serve(service, listener)
        finally:
            service.close()


async def _serve(service: Service, listener: socket.socket) -> None:
    from .web.api import create_app

    settings = service.settings
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def changed(connected: bool, reason: str) -> None:
        if reason != service.broker["reason"]:
            log.log(logging.INFO if connected else logging.WARNING, "broker: %s", reason)
        service.broker |= {"connected": connected, "reason": reason, "protocol": connection.protocol}
        service.changes.tell("broker", str(settings.broker_address))
        if connected:
            publisher.reconnected()

    async def receipt(topic: str, payload: bytes) -> None:
        await connection.publish(topic, payload, timeout=RECEIPT_PATIENCE)

    merges = Merges(service)
    ingest = Ingest(service, receipt, merges.look)
    connection = Connection(
        settings.broker_address,
        f"sanderling-server-{settings.server.fleet}",
        on_message=ingest.receive,
        on_change=changed,
    )
    publisher = Publisher(settings.server.fleet, service.store, service.files, connection)
    service.attach(loop)
    service.announce = publisher.wake
    connection.subscribe(*ingest.filters)
    web = uvicorn.Server(
        uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=GRACE,
        )
    )
    await connection.start()
    log.info("fleet %s on http://%s:%d", settings.server.fleet, settings.web.host, settings.web.port)
    tasks = [
        loop.create_task(ingest.run(), name="ingest"),
        loop.create_task(publisher.run(), name="publish"),
        loop.create_task(merges.run(), name="merge"),
        loop.create_task(_clean(service), name="housekeeping"),
    ]
    # not `serve`: that would take the signals away from `stop`
    serving = loop.create_task(web._serve([listener]), name="web")
    stopping = loop.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([*tasks, serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()  # a part that ends by itself has failed: say why, and let the service manager start anew
    finally:
        log.info("stopping")
        service.changes.close()
        web.should_exit = True
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, serving, stopping, return_exceptions=True)
        await connection.stop()


async def _clean(service: Service) -> None:
    while True:
        await asyncio.to_thread(housekeeping.clean, service.store, service.settings.limits, time.time())
        await asyncio.sleep(HOUSEKEEPING)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            remedy = "stop the other program, or set web.port in server.toml"
            if error.errno != errno.EADDRINUSE:
                remedy = "set web.host and web.port in server.toml to an address of this machine"
            raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}", remedy) from error
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Hold the data directory's lock; the kernel lets go of it however this process ends."""
    try:
        handle = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{data} cannot be used: {error.strerror}", "run `sanderling server init`, or set server.data_directory"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigurationError(f"another server is using {data}", "stop it first: two would merge twice") from error
    finally:
        os.close(handle)
