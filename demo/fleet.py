"""The operator's side of the demo: what the server says, asked over its REST API while it may be starting again."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from .installation import MODEL, DemoError, Installation

#: Seconds that a question waits for a server that is being restarted.
PATIENCE = 40.0


class Fleet:
    """Questions to the server."""

    def __init__(self, installation: Installation) -> None:
        self._address = installation.address

    def current_version(self) -> int:
        """The newest released version, 0 before the first."""
        models = self._get("/api/status")["models"]
        return next((int(m["current_version"]) for m in models if m["name"] == MODEL), 0)

    def protocol(self) -> str:
        """How server and broker talk: "MQTT 5" or "MQTT 3.1.1"."""
        broker = self._get("/api/status")["broker"]
        return "MQTT 5" if broker["protocol"] == 5 else "MQTT 3.1.1"

    def installed(self, device: str) -> list[int]:
        """The versions that a device has reported as installed, in order."""
        try:
            events = self._get(f"/api/devices/{device}")["events"]
        except urllib.error.HTTPError as error:
            if error.code == 404:  # it has not said anything yet
                return []
            raise
        return sorted({int(e["version"]) for e in events if e["kind"] == "installed"})

    def last_job(self) -> dict[str, Any] | None:
        """The newest merge, if there is one."""
        jobs = self._get("/api/jobs")
        rows: list[dict[str, Any]] = jobs if isinstance(jobs, list) else jobs["jobs"]
        return rows[0] if rows else None

    def model_file(self, version: int) -> bytes:
        """The model of a version, as it was released."""
        return self._read(f"/api/models/{MODEL}/versions/{version}/model.onnx")

    def wait_until_up(self) -> None:
        """Returns when the server answers."""
        self._get("/api/status")

    def _get(self, path: str) -> Any:
        return json.loads(self._read(path))

    def _read(self, path: str) -> bytes:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(self._address + path, timeout=15) as response:
                    body: bytes = response.read()
                    return body
            except urllib.error.HTTPError:
                raise
            except OSError as error:
                if time.monotonic() > deadline:
                    raise DemoError(f"the server at {self._address} does not answer: {error}") from error
                time.sleep(0.2)
