"""What runs on a device beside the agent: the application that asks for predictions and reports what was right.

It knows the Open Inference Protocol and the agent's Unix socket, and nothing else of Sanderling. While an agent is
being restarted it waits and asks again, as an application on a device would.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

from .data import F32, I64, Windows

#: Seconds that an application waits for its agent to come (back) before it gives up.
PATIENCE = 40.0


class AgentError(RuntimeError):
    """The agent refused a request, or did not come back in time."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=15)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Application:
    """One device's application. `model` is the model's name; `x` is always float32 [n, 6, 100]."""

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._model = path, model
        self._connection: _UnixConnection | None = None

    def status(self) -> dict[str, Any]:
        """The agent's own report (the same as its telemetry)."""
        return self._ask("GET", "/status")

    def ready(self) -> bool:
        """Whether the agent has a model to answer with, asked once and without patience."""
        try:
            self._once("GET", f"/v2/models/{self._model}/ready", None)
        except (AgentError, OSError, http.client.HTTPException):
            return False
        return True

    def predict(self, x: F32) -> tuple[I64, str]:
        """The predicted classes (int64 [n]) and the request's id, which `feedback` takes."""
        tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        answer = self._ask("POST", f"/v2/models/{self._model}/infer", {"inputs": [tensor]})
        output = answer["outputs"][0]
        return np.asarray(output["data"], np.float32).reshape(output["shape"]).argmax(axis=1), str(answer["id"])

    def feedback(self, request: str, label: int, x: F32) -> None:
        """Tell what the sample of an earlier request really was; sends the sample itself if the agent forgot it."""
        path = f"/v2/models/{self._model}/feedback"
        try:
            self._ask("POST", path, {"id": request, "label": label})
        except AgentError:  # the worker was restarted in between and has forgotten the request
            tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
            self._ask("POST", path, {"inputs": [tensor], "labels": [label]})

    def accuracy(self, windows: Windows) -> float:
        """The share of `windows` that the agent's answers get right, 0 to 1."""
        right = 0
        for start in range(0, len(windows), 64):
            predicted, _ = self.predict(windows.x[start : start + 64])
            right += int((predicted == windows.y[start : start + 64]).sum())
        return right / len(windows)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._once(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > deadline:
                    raise AgentError(f"no agent answers on {self._path}: {error}") from error
                time.sleep(0.2)

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        if self._connection is None:
            self._connection = _UnixConnection(self._path)
        try:
            self._connection.request(method, path, json.dumps(body).encode() if body is not None else None)
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._connection = None
            raise
        if response.status >= 500:  # starting, or between two models: worth asking again
            raise http.client.HTTPException(f"status {response.status}: {text[:200]!r}")
        if response.status >= 400:
            raise AgentError(f"{method} {path}: {text.decode(errors='replace')[:500]}")
        answer: dict[str, Any] = json.loads(text) if text else {}
        return answer
