"""Talks to a server's REST API with the standard library: one method per need, every failure with its remedy.

The token goes only to the server that was named: redirects are refused, and a server on this machine is asked directly
whatever proxy the environment names.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .errors import ServerError

#: Seconds without an answer: for a question, and for a release (the server looks at the model first).
PATIENCE, LONG_PATIENCE = 30.0, 600.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ClientError(ServerError):
    """The server was not reached, or it refused; `status` is the HTTP status, 0 without an answer."""

    def __init__(self, what: str, remedy: str = "", status: int = 0) -> None:
        super().__init__(what, remedy)
        self.status = status


class Client:
    """The server at `address` (http or https). `token` is needed only by what changes something."""

    def __init__(self, address: str, token: str | None = None) -> None:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError(f"{address!r} is no server's address", "write it as http://HOST:PORT")
        if token is not None and not (token.isascii() and token.isprintable() and token):
            raise ClientError("the token has characters that no token has", "copy it again from the file api.token")
        self.address, self._token = address.rstrip("/"), token
        proxies = [urllib.request.ProxyHandler({})] if parts.hostname in _LOOPBACK else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def get(self, *path: str | int, **query: str | int | float) -> Any:
        """The JSON value at /api/<path>."""
        suffix = f"?{urllib.parse.urlencode(query)}" if query else ""
        return self._ask("GET", _joined(path) + suffix)

    def check_token(self) -> None:
        """Raises `ClientError` if the server does not accept the token: before a long upload, not after it."""
        self._ask("POST", _joined(["token"]), b"{}")

    def upload(self, model: str, name: str, path: Path) -> Any:
        """Stage a file of a model."""
        try:
            length = path.stat().st_size
            with path.open("rb") as file:
                headers = {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
                return self._ask("PUT", _joined(["models", model, "files", name]), file, headers, LONG_PATIENCE)
        except OSError as error:
            raise ClientError(f"{path} cannot be read: {error.strerror or error}", "name a file that exists") from error

    def release(self, model: str, labels: list[str], notes: Mapping[str, str | int | float]) -> Any:
        """Release what was staged."""
        body = json.dumps({"labels": labels, "notes": dict(notes)}).encode()
        return self._ask("POST", _joined(["models", model, "releases"]), body, patience=LONG_PATIENCE)

    def rollback(self, model: str, to_version: int) -> Any:
        """Release an older version again."""
        body = json.dumps({"to_version": to_version}).encode()
        return self._ask("POST", _joined(["models", model, "rollback"]), body, patience=LONG_PATIENCE)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> Any:
        request = urllib.request.Request(self.address + path, data=body, method=method)
        request.add_header("Accept", "application/json")
        if body is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        if self._token and method != "GET":
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=patience) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ConnectionResetError | BrokenPipeError):
                what = f"{self.address} closed the connection while the request was being sent"
                remedy = "the file may be larger than limits.largest_file in its server.toml; its log says"
                raise ClientError(what, remedy) from error
            raise ClientError(
                f"no server answers at {self.address} ({reason})",
                "start it with `sanderling server run`, or name another one with --server or SANDERLING_SERVER",
            ) from error
        except ValueError as error:
            raise ClientError(f"{self.address} answered with something that is not JSON", _OTHER) from error

    def _refused(self, error: urllib.error.HTTPError) -> ClientError:
        try:
            told = json.loads(error.read(1 << 20))["error"]
            what, remedy = str(told["what"]), str(told["remedy"])
        except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
            return ClientError(f"{self.address} answered {error.code} {error.reason}", _OTHER, error.code)
        if error.code == 401:
            remedy = "give it with --token-file PATH (the server's file api.token), --token or SANDERLING_TOKEN"
        return ClientError(what, remedy, error.code)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: the answer stays the 3xx that it is."""


_OTHER = "check --server: something else than Sanderling may listen there"


def _joined(path: tuple[str | int, ...] | list[str]) -> str:
    return "/api/" + "/".join(urllib.parse.quote(str(part), safe="") for part in path)


def find_token(token: str | None, file: Path | None) -> str | None:
    """The token from the options, else from SANDERLING_TOKEN; None if there is none."""
    if token is None and file is not None:
        try:
            token = file.read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise ClientError(f"the token file {file} cannot be read: {error}", "name the file api.token") from error
    token = token if token is not None else os.environ.get("SANDERLING_TOKEN")
    return token.strip() or None if token else None
