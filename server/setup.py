"""Make a server: configuration, release key, API token, database. What exists already is never overwritten."""

from __future__ import annotations

import secrets
from pathlib import Path

from sanderling.codec import release as wire
from sanderling.codec.errors import CodecError
from sanderling.codec.topics import check_name
from sanderling.host.files import write_durably

from .config import Settings, parse, render
from .errors import ConfigurationError
from .service import KEY, TOKEN
from .store import DATABASE, Store

CONFIGURATION = "server.toml"


def initialize(directory: Path, fleet: str) -> Settings:
    """Make a server in `directory`; returns its settings. Raises `ConfigurationError`; keys get file mode 0600."""
    try:
        check_name("fleet", fleet)
    except CodecError as error:
        raise ConfigurationError(str(error), "choose another with --fleet") from error
    existing = [name for name in (CONFIGURATION, KEY, TOKEN, DATABASE) if (directory / name).exists()]
    if existing:
        raise ConfigurationError(
            f"{directory} holds {', '.join(existing)} already",
            "nothing was changed; choose an empty directory, or remove them if the fleet may forget its key",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        private, _ = wire.generate_key()
        write_durably(directory / KEY, f"{private}\n".encode(), mode=0o600)
        write_durably(directory / TOKEN, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
        (directory / "files").mkdir(exist_ok=True)
        (directory / "jobs").mkdir(exist_ok=True)
        Store(directory / DATABASE).close()
        text = render(fleet)
        # last: a directory without it is not finished, and says so
        write_durably(directory / CONFIGURATION, text.encode(), mode=0o640)
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be written: {error.strerror}", "check its permissions") from error
    return parse(text, directory / CONFIGURATION)
