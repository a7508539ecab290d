"""The inference worker: predictions and feedback for applications, in the Open Inference Protocol v2.

A process of its own because a model may bring a native runtime down, and because an idle device should not pay for one.
The supervisor owns the listening sockets and hands them over, so while no worker runs, connections wait in the backlog.
Which model answers comes as lines on standard input (`pipe.py`); a new one is loaded beside the old, which goes on
answering until then. A worker without requests for `idle_seconds` ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import numpy as np

from sanderling import __version__
from sanderling.host.children import die_with_parent

from . import oip, pipe
from .errors import RequestError, ServingError, StorageError, StorageFullError
from .http import HttpServer, Request, Response, error_response
from .limits import LIMITS
from .runtime import Runtime, load, predicted_labels
from .store import Store
from .tensors import Arrays, pack

log = logging.getLogger(__name__)
_Route = Callable[["Worker", str, bytes], Awaitable[Response]]


class Remembered:
    """The inputs and answers of recent predictions, so that feedback can name them by id. Bounded; oldest go first."""

    def __init__(self, count: int = LIMITS.remembered, size: int = LIMITS.remembered_bytes) -> None:
        self._entries: OrderedDict[str, tuple[Arrays, list[int]]] = OrderedDict()
        self._count, self._size, self._used = count, size, 0

    def keep(self, identifier: str, inputs: Arrays, labels: list[int]) -> None:
        """Remember a prediction; a repeated id replaces the earlier one."""
        self.take(identifier)
        self._entries[identifier] = (inputs, labels)
        self._used += _size(inputs)
        while len(self._entries) > self._count or self._used > self._size:
            _, (oldest, _) = self._entries.popitem(last=False)
            self._used -= _size(oldest)

    def find(self, identifier: str) -> tuple[Arrays, list[int]] | None:
        """What was predicted under this id, if it is still known."""
        return self._entries.get(identifier)

    def take(self, identifier: str) -> None:
        """Forget one: its label came, and one label counts once."""
        if (entry := self._entries.pop(identifier, None)) is not None:
            self._used -= _size(entry[0])


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


class Worker:
    """Answers requests with the present model; `tell` sends a message to the supervisor."""

    def __init__(self, start: pipe.Start, tell: Callable[[pipe.FromWorker], None]) -> None:
        self._start = start
        self._tell = tell
        self._runtime: Runtime | None = None
        self._serving = pipe.Serve("", 0, "none")
        self._remembered = Remembered()
        self._store = Store(Path(start.samples), capacity=start.store_bytes, held_out=start.held_out)
        self._status: list[asyncio.Future[bytes]] = []

    async def serve(self, wanted: pipe.Serve) -> None:
        """Switch to another model; requests under way finish with the old one."""
        if not wanted.path:
            return
        try:
            runtime = await asyncio.to_thread(load, Path(wanted.path))
        except ServingError as error:
            self._tell(pipe.CannotServe(wanted.version, wanted.which, str(error)))
            return
        self._runtime, self._serving = runtime, wanted
        self._tell(pipe.Serving(wanted.version, wanted.which))

    def give_status(self, body: bytes) -> None:
        """The supervisor's answer for those who asked GET /status."""
        for future in self._status:
            if not future.done():
                future.set_result(body)
        self._status.clear()

    async def handle(self, request: Request) -> Response:
        """Route one request; raises `RequestError`."""
        allowed = []
        for method, pattern, route in ROUTES:
            if (match := pattern.fullmatch(request.path)) is None:
                continue
            if method == request.method:
                return await route(self, match.groupdict().get("model", ""), request.body)
            allowed.append(method)
        if allowed:
            refusal = f"{request.path[:200]} takes {' or '.join(allowed)}, not {request.method[:20]}"
            return error_response(405, refusal, (("allow", ", ".join(allowed)),))
        raise RequestError(404, f"nothing is served at {request.path[:200]}; see /v2 and /status")

    def _model(self, name: str) -> Runtime:
        if name != self._start.model:
            raise RequestError(404, f"no model {name[:80]!r} here; this device serves {self._start.model!r}")
        if self._runtime is None:
            raise RequestError(503, "no model is installed yet: the device waits for its first release")
        return self._runtime

    def _info(self, runtime: Runtime) -> oip.ModelInfo:
        version = str(self._serving.version)
        return oip.ModelInfo(self._start.model, version, runtime.platform, runtime.inputs, runtime.outputs)

    async def server(self, _model: str, _body: bytes) -> Response:
        """GET /v2"""
        return _json({"name": "sanderling", "version": __version__, "extensions": ["feedback"]})

    async def live(self, _model: str, _body: bytes) -> Response:
        """GET /v2/health/live"""
        return _json({"live": True})

    async def ready(self, _model: str, _body: bytes) -> Response:
        """GET /v2/health/ready"""
        ready = self._runtime is not None
        return _json({"ready": ready}, 200 if ready else 503)

    async def model(self, name: str, _body: bytes) -> Response:
        """GET /v2/models/{model}"""
        return Response(200, oip.metadata(self._info(self._model(name))))

    async def model_ready(self, name: str, _body: bytes) -> Response:
        """GET /v2/models/{model}/ready"""
        self._model(name)
        return _json({"name": name, "ready": True})

    async def infer(self, name: str, body: bytes) -> Response:
        """POST /v2/models/{model}/infer"""
        runtime, serving = self._model(name), self._serving
        request = oip.decode(oip.InferRequest, body)
        inputs = oip.read_inputs(request.inputs, runtime.inputs)
        outputs = _run(runtime, inputs)
        identifier = request.id or uuid.uuid4().hex
        parameters = {"model": serving.which}
        response = oip.infer_response(self._info(runtime), request, outputs, identifier, parameters)
        with contextlib.suppress(ServingError):  # a model that does not classify can still predict
            self._remembered.keep(identifier, inputs, predicted_labels(outputs).tolist())
        return Response(200, response)

    async def feedback(self, name: str, body: bytes) -> Response:
        """POST /v2/models/{model}/feedback"""
        runtime = self._model(name)
        request = oip.decode(oip.FeedbackRequest, body)
        labels = request.given_labels()
        if bool(request.id) == bool(request.inputs):
            raise RequestError(400, 'give either "id" (of an earlier prediction) or "inputs"')
        if request.id:
            known = self._remembered.find(request.id)
            if known is None:
                missing = f"prediction {request.id[:80]!r} is not remembered"
                raise RequestError(404, f'{missing}; send "inputs" with the labels')
            inputs, predicted = known
        else:
            inputs = oip.read_inputs(request.inputs, runtime.inputs)
            predicted = _classify(runtime, inputs)
        if len(labels) != len(predicted):
            raise RequestError(400, f"{len(labels)} labels for {len(predicted)} samples")
        self._check_labels(runtime, labels)
        held_out = self._keep(inputs, labels, [p == label for p, label in zip(predicted, labels, strict=True)])
        self._remembered.take(request.id)
        self._tell(pipe.Labelled(len(labels)))
        return _json({"accepted": len(labels), "held_out": held_out})

    def _check_labels(self, runtime: Runtime, labels: list[int]) -> None:
        classes = next((t.shape[1] for t in runtime.outputs if len(t.shape) == 2 and t.dtype.kind == "f"), -1)
        if classes > 0 and labels and max(labels) >= classes:
            raise RequestError(400, f"label {max(labels)}: the model knows {classes} classes, 0 to {classes - 1}")

    def _keep(self, inputs: Arrays, labels: list[int], correct: list[bool]) -> int:
        samples = [
            (pack({name: array[row] for name, array in inputs.items()}), label) for row, label in enumerate(labels)
        ]
        try:
            return self._store.add(samples, correct)
        except StorageFullError as error:
            self._tell(pipe.StorageTrouble(str(error)))
            raise RequestError(507, str(error)) from error
        except StorageError as error:
            self._tell(pipe.StorageTrouble(str(error)))
            raise RequestError(500, str(error)) from error

    async def status(self, _model: str, _body: bytes) -> Response:
        """GET /status"""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._status.append(future)
        self._tell(pipe.AskStatus())
        try:
            async with asyncio.timeout(5):
                return Response(200, await future)
        except TimeoutError as error:
            raise RequestError(503, "the agent's supervisor does not answer; look at its log") from error


def _run(runtime: Runtime, inputs: Arrays) -> Arrays:
    try:
        return runtime.run(inputs)
    except ServingError as error:
        raise RequestError(400, str(error)) from error


def _classify(runtime: Runtime, inputs: Arrays) -> list[int]:
    try:
        labels: list[int] = predicted_labels(runtime.run(inputs)).tolist()
    except ServingError as error:
        raise RequestError(400, str(error)) from error
    return labels


def _json(value: object, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(value))


_MODEL = "/v2/models/(?P<model>[^/]+)"
#: Method, path, handler: the whole interface. `docs/reference/agent.md` shows each by a curl command.
ROUTES: list[tuple[str, re.Pattern[str], _Route]] = [
    ("GET", re.compile("/v2/?"), Worker.server),
    ("GET", re.compile("/v2/health/live"), Worker.live),
    ("GET", re.compile("/v2/health/ready"), Worker.ready),
    ("GET", re.compile(_MODEL), Worker.model),
    ("GET", re.compile(f"{_MODEL}/ready"), Worker.model_ready),
    ("POST", re.compile(f"{_MODEL}/infer"), Worker.infer),
    ("POST", re.compile(f"{_MODEL}/feedback"), Worker.feedback),
    ("GET", re.compile("/status"), Worker.status),
]


async def _read_lines(worker: Worker, reader: asyncio.StreamReader, gone: asyncio.Event) -> None:
    while text := await reader.readline():
        message = pipe.read_to_worker(text)
        if isinstance(message, pipe.Serve):
            await worker.serve(message)
        elif isinstance(message, pipe.Status):
            worker.give_status(bytes(message.body))
    gone.set()


async def run(sockets: list[socket.socket]) -> None:
    """Serve until told to stop, the supervisor is gone, or nobody has asked for long enough."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LIMITS.child_output)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    start = pipe.read_to_worker(await reader.readline())
    if not isinstance(start, pipe.Start):
        raise SystemExit("the first line must be a start message")

    def tell(message: pipe.FromWorker) -> None:
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone, and so are we in a moment
            os.write(1, pipe.line(message))

    worker, gone = Worker(start, tell), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, gone.set)
    first = pipe.read_to_worker(await reader.readline())  # the model, before the first request is answered
    if isinstance(first, pipe.Serve):
        await worker.serve(first)
    server = HttpServer(worker.handle)
    await server.start(sockets)
    lines = loop.create_task(_read_lines(worker, reader, gone))
    while not gone.is_set():
        left = server.last_request + start.idle_seconds - time.monotonic()
        if left <= 0 and not server.busy:
            break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(left, 0.05)):
                await gone.wait()
    await server.drain()
    lines.cancel()


def main() -> None:
    """Started by the supervisor: `python -m sanderling.agent.worker --parent PID --listen FD[,FD]`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--listen", required=True)
    options = parser.parse_args()
    die_with_parent(options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    logging.basicConfig(level=logging.WARNING, format="worker: %(message)s")
    np.seterr(all="ignore")
    asyncio.run(run([socket.socket(fileno=int(fd)) for fd in options.listen.split(",")]))


if __name__ == "__main__":
    main()
