"""The agent's configuration: TOML in, typed settings out, or an error that names file, key and remedy.

Unknown keys are refused, because a misspelt key that is silently ignored is found only when it was needed.
`deploy/agent.toml` documents every key with its default; a test holds the two together.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sanderling.codec.topics import NAME
from sanderling.engine.memory import parse_size

from .errors import SettingsError

Name = Annotated[str, Meta(pattern=f"^{NAME.pattern}")]
Seconds = Annotated[float, Meta(gt=0, le=86400 * 365)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Size = str | int


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections have in common."""


class Device(_Section, frozen=True, kw_only=True):
    """Who this device is."""

    name: Name
    fleet: Name
    state_directory: str = "/var/lib/sanderling"


class Broker(_Section, frozen=True, kw_only=True):
    """Where the MQTT broker is. `ca_file` turns TLS on."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    username: str = ""
    password: str = ""
    ca_file: str = ""


class ReleaseSettings(_Section, frozen=True, kw_only=True):
    """Whose releases are installed: Ed25519 public keys, 64 hexadecimal digits each."""

    trusted_keys: Annotated[list[Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]], Meta(min_length=1)]


class Model(_Section, frozen=True, kw_only=True):
    """Which of the fleet's models this device runs."""

    name: Name


class Serve(_Section, frozen=True, kw_only=True):
    """How applications reach the model, and which one answers them."""

    socket: str = "/run/sanderling/agent.sock"
    tcp_port: Port = 0
    idle_seconds: Seconds = 300.0
    policy: Literal["best", "fleet", "personal"] = "best"


class Learn(_Section, frozen=True, kw_only=True):
    """When and how the device learns."""

    enabled: bool = True
    memory_limit: Size = "128MiB"
    new_labels: Positive = 32
    min_samples: Positive = 48
    held_out: Annotated[float, Meta(gt=0.0, le=0.9)] = 0.2
    store_bytes: Size = "64MiB"
    epochs: Annotated[int, Meta(ge=1, le=10000)] = 10
    batch: Annotated[int, Meta(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 0.001
    optimizer: Literal["adam", "sgd"] = "adam"
    seed: Annotated[int, Meta(ge=0, le=2**32)] = 0
    anchor_drop: Fraction = 0.1
    keep_versions: Annotated[int, Meta(ge=1, le=100)] = 3

    @property
    def memory_limit_bytes(self) -> int:
        """`memory_limit` in bytes."""
        return parse_size(self.memory_limit)

    @property
    def store_limit_bytes(self) -> int:
        """`store_bytes` in bytes."""
        return parse_size(self.store_bytes)


class Sync(_Section, frozen=True, kw_only=True):
    """What is exchanged with the server, and how often."""

    quality: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.9
    telemetry_seconds: Seconds = 60.0
    resend_seconds: Seconds = 5.0


class Settings(_Section, frozen=True, kw_only=True):
    """The whole configuration."""

    device: Device
    broker: Broker = Broker()
    release: ReleaseSettings
    model: Model
    serve: Serve = Serve()
    learn: Learn = Learn()
    sync: Sync = Sync()


def read(path: Path) -> Settings:
    """The settings in a file; raises `SettingsError`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror or error}); start from deploy/agent.toml, which shows all keys"
        ) from error
    return parse(text, str(path))


def parse(text: bytes, where: str = "configuration") -> Settings:
    """The settings in TOML text; raises `SettingsError` naming `where`, the key and the remedy."""
    try:
        raw: dict[str, Any] = tomllib.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{where}: not TOML: {error}; text values need quotes") from error
    except RecursionError as error:
        raise SettingsError(f"{where}: nested too deeply to be a configuration") from error
    try:
        settings = msgspec.convert(raw, Settings, strict=True)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: {_explain(str(error))}") from error
    return _check(settings, where)


def _check(settings: Settings, where: str) -> Settings:
    for key in ("memory_limit", "store_bytes"):
        try:
            size = parse_size(getattr(settings.learn, key))
            if not 0 < size < 2**53:
                raise ValueError(f"{size} bytes is not a usable size")
        except (ValueError, OverflowError) as error:
            raise SettingsError(f"{where}: learn.{key}: {error}") from error
    paths = {"device.state_directory": settings.device.state_directory, "serve.socket": settings.serve.socket}
    for key, path in paths.items():
        if not path or "\0" in path:
            raise SettingsError(f"{where}: {key}: {path!r} is not a path")
    if len(settings.serve.socket.encode()) > 100:
        raise SettingsError(f"{where}: serve.socket: a Unix socket's path has at most 100 bytes; shorten it")
    return settings


def _explain(message: str) -> str:
    """msgspec's message with the key first and a remedy last.

    >>> _explain("Expected `int`, got `str` - at `$.serve.tcp_port`")
    'serve.tcp_port: Expected `int`, got `str`; see deploy/agent.toml for what each key takes'
    """
    text, _, place = message.partition(" - at `$")
    key = place.strip("`.") or "top level"
    if unknown := re.search(r"unknown field `(.*)`", text):
        return f"{key}: unknown key {unknown[1]!r}; correct its spelling or remove it (see deploy/agent.toml)"
    if missing := re.search(r"missing required field `(.*)`", text):
        name = missing[1] if key == "top level" else f"{key}.{missing[1]}"
        return f"{name}: is missing; add it (see deploy/agent.toml)"
    return f"{key}: {text}; see deploy/agent.toml for what each key takes"
