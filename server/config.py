"""`server.toml`: typed settings, checked when read, and the documented file that `sanderling server init` writes.

The structures below are the only place where a setting, its default, its limits and its description stand; the written
file, deploy/server.toml and docs/reference/server.md are made from them. Unknown keys are refused. Relative paths count
from the folder that the file is in.
"""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sanderling.codec.messages import Name
from sanderling.host.mqtt import BrokerAddress

from .errors import ConfigurationError
from .limits import Limits

Port = Annotated[int, Meta(ge=1, le=65535)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class ServerSection(_Section, frozen=True, kw_only=True):
    """Who this server is."""

    fleet: Annotated[Name, Meta(description="the fleet's name, part of every topic")] = "fleet"
    data_directory: Annotated[
        str, Meta(min_length=1, description="where database, keys and files are; relative to this file")
    ] = "."


class BrokerSection(_Section, frozen=True, kw_only=True):
    """The MQTT broker that server and devices meet at."""

    host: Annotated[str, Meta(min_length=1, description="the broker's host name or address")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="the broker's port")] = 1883
    username: Annotated[str, Meta(description="user name, empty for none")] = ""
    password: Annotated[str, Meta(description="password")] = ""
    ca_file: Annotated[str, Meta(description="certificates to trust (PEM); TLS is used when set")] = ""


class WebSection(_Section, frozen=True, kw_only=True):
    """The web page and REST API."""

    host: Annotated[str, Meta(min_length=1, description="address to listen on; put a TLS proxy before other ones")] = (
        "127.0.0.1"
    )
    port: Annotated[Port, Meta(description="port to listen on")] = 8080


class MergeSection(_Section, frozen=True, kw_only=True):
    """When and how the fleet's deltas become a new release."""

    enabled: Annotated[bool, Meta(description="false: deltas are collected, never merged")] = True
    min_devices: Annotated[int, Meta(ge=1, description="merge when this many devices have unmerged deltas")] = 3
    max_wait_seconds: Annotated[
        float, Meta(ge=0, description="merge when the oldest unmerged delta has waited this long; 0: never for that")
    ] = 3600.0
    min_interval_seconds: Annotated[float, Meta(ge=0, description="at least this long between two releases")] = 60.0
    max_releases: Annotated[int, Meta(ge=0, description="merged releases of a model at most; 0: any number")] = 0
    strategy: Annotated[Literal["fedbuff"], Meta(description="how deltas are combined")] = "fedbuff"
    staleness_exponent: Annotated[
        float, Meta(ge=0, le=10, description="a delta s releases behind counts (1 + s)^-exponent of a fresh one")
    ] = 0.5
    server_learning_rate: Annotated[
        float, Meta(gt=0, le=10, description="how far the model moves along the devices' mean change")
    ] = 1.0
    largest_drop: Annotated[
        float, Meta(ge=0, le=1, description="validation accuracy that a release may lose against the previous one")
    ] = 0.05


class DistillSection(_Section, frozen=True, kw_only=True):
    """Teaching the merged model what the devices' models know, on the proxy data pushed with the model."""

    enabled: Annotated[bool, Meta(description="false: releases are plain aggregates")] = True
    epochs: Annotated[int, Meta(ge=1, le=10_000, description="passes over the proxy data")] = 8
    batch: Annotated[int, Meta(ge=1, le=65536, description="samples in a step")] = 16
    learning_rate: Annotated[float, Meta(gt=0, le=10, description="Adam's step size")] = 1e-3
    temperature: Annotated[float, Meta(ge=0.1, le=100, description="softens teachers and student alike")] = 2.0
    hard_weight: Annotated[
        float, Meta(ge=0, le=1, description="share of the loss on the proxy data's own labels, where it has any")
    ] = 0.3
    memory_limit: Annotated[str, Meta(description="most resident memory of the training process")] = "512MiB"


class Settings(_Section, frozen=True, kw_only=True):
    """The whole file."""

    server: ServerSection = ServerSection()
    broker: BrokerSection = BrokerSection()
    web: WebSection = WebSection()
    merge: MergeSection = MergeSection()
    distill: DistillSection = DistillSection()
    limits: Limits = Limits()

    @property
    def data(self) -> Path:
        """The data directory (absolute after `load`)."""
        return Path(self.server.data_directory)

    @property
    def broker_address(self) -> BrokerAddress:
        """The broker in the form that `host.mqtt` takes."""
        return BrokerAddress(**msgspec.structs.asdict(self.broker))


def load(path: Path) -> Settings:
    """The settings in `path`, with absolute paths. Raises `ConfigurationError` naming file, key and remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}", "name the file with --config, or make one with `sanderling server init`"
        ) from error
    return parse(text, path)


def parse(text: str, path: Path) -> Settings:
    """The settings in `text`, which stands (or would stand) in `path`. Raises `ConfigurationError`."""
    try:
        settings = msgspec.convert(tomllib.loads(text), Settings)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}", "correct that line") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path} is nested too deeply", "settings are tables of plain values") from error
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"{path}: {_explain(str(error))}", "the settings and their limits are in docs/reference/server.md"
        ) from error
    _check_size(settings.distill.memory_limit, path)
    folder = path.absolute().parent
    located = msgspec.structs.replace(settings.server, data_directory=str(folder / settings.server.data_directory))
    ca_file = settings.broker.ca_file and str(folder / settings.broker.ca_file)
    return msgspec.structs.replace(
        settings, server=located, broker=msgspec.structs.replace(settings.broker, ca_file=ca_file)
    )


def sections() -> Iterator[tuple[str, str, list[tuple[str, object, str]]]]:
    """Every section as (name, what it is about, [(key, default, description)])."""
    for section in msgspec.structs.fields(Settings):
        kind = type(section.default)
        hints = typing.get_type_hints(kind, include_extras=True)
        rows = [(field.name, field.default, _description(hints[field.name])) for field in msgspec.structs.fields(kind)]
        yield section.name, (kind.__doc__ or "").strip(), rows


def render(fleet: str | None = None, data_directory: str | None = None) -> str:
    """A documented server.toml with every setting at its default, except what is given."""
    given: dict[tuple[str, str], object] = {
        key: value
        for key, value in {("server", "fleet"): fleet, ("server", "data_directory"): data_directory}.items()
        if value is not None
    }
    lines = ["# Settings of `sanderling server`; docs/reference/server.md explains them. Shown are the defaults."]
    for name, about, rows in sections():
        lines += ["", f"# {about}", f"[{name}]"]
        lines += [
            line
            for key, default, description in rows
            for line in (f"# {description}", f"{key} = {json.dumps(given.get((name, key), default))}")
        ]
    return "\n".join(lines) + "\n"


def _description(hint: object) -> str:
    texts = [m.description for m in getattr(hint, "__metadata__", ()) if isinstance(m, Meta) and m.description]
    return texts[-1] if texts else ""


def _explain(message: str) -> str:
    """msgspec's message with the key first: "Expected `int`, got `str` - at `$.web.port`" -> "web.port: ..."."""
    text, _, place = message.partition(" - at `$.")
    if place:
        return f"{place.rstrip('`')}: {text}"
    return text.replace("Object contains unknown field", "there is no section called")


def _check_size(text: str, path: Path) -> None:
    from sanderling.engine.memory import parse_size

    try:
        parse_size(text)
    except ValueError as error:
        raise ConfigurationError(f"{path}: distill.memory_limit: {error}", 'write a size such as "512MiB"') from error
