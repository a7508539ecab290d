"""`sanderling agent check`: tries everything that a configuration promises, and says what to do about what fails."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

from sanderling.host.mqtt import BrokerAddress, Connection

from .config import Settings
from .errors import AgentError
from .layout import Layout

#: Seconds to wait for the broker.
PATIENCE = 8.0


def check(settings: Settings) -> list[tuple[str, bool, str]]:
    """(what, whether it is fine, explanation or remedy) of each thing that was tried."""
    return [
        ("configuration", True, f"device {settings.device.name} of fleet {settings.device.fleet}"),
        _state_directory(settings),
        _keys(settings),
        _libraries(settings),
        asyncio.run(_broker(settings)),
    ]


def _state_directory(settings: Settings) -> tuple[str, bool, str]:
    root = Path(settings.device.state_directory)
    try:
        Layout(root).create()
        probe = root / ".check"
        probe.write_bytes(b"")
        probe.unlink()
    except (AgentError, OSError) as error:
        return "state directory", False, f"{error}; make it writable for this user, or set device.state_directory"
    return "state directory", True, str(root)


def _keys(settings: Settings) -> tuple[str, bool, str]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    keys = settings.release.trusted_keys
    for key in keys:
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        except ValueError:
            remedy = "take it from `sanderling server keys`"
            return "trusted keys", False, f"release.trusted_keys: {key[:12]}... is no Ed25519 public key; {remedy}"
    return "trusted keys", True, ", ".join(f"{key[:12]}..." for key in keys)


def _libraries(settings: Settings) -> tuple[str, bool, str]:
    wanted = ["onnxruntime", "h11", "numpy", *(["onnx"] if settings.learn.enabled else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        return "libraries", False, f"{', '.join(missing)} missing; install sanderling[agent]"
    return "libraries", True, ", ".join(wanted)


async def _broker(settings: Settings) -> tuple[str, bool, str]:
    broker = settings.broker
    address = BrokerAddress(
        host=broker.host, port=broker.port, username=broker.username, password=broker.password, ca_file=broker.ca_file
    )
    answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    last = f"{address} does not answer"

    def changed(connected: bool, reason: str) -> None:
        nonlocal last
        last = reason
        if connected and not answered.done():
            answered.set_result(reason)

    # Another client id than the agent's: a broker would throw a running agent off for a second one of its name.
    name = f"{settings.device.fleet}.{settings.device.name}.check"
    connection = Connection(address, name, on_message=lambda _topic, _payload: None, on_change=changed)
    await connection.start()
    try:
        async with asyncio.timeout(PATIENCE):
            return "broker", True, await answered
    except TimeoutError:
        return "broker", False, f"{last}; start the broker, or correct [broker] in the configuration"
    finally:
        await connection.stop()
