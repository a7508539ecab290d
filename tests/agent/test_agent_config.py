"""Configuration: the documented file is the settings, and every mistake is named with its remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanderling.agent.config import Settings, parse, read
from sanderling.agent.errors import SettingsError

ROOT = Path(__file__).parents[2]
KEY = "ab" * 32
LEAST = f"""
[device]
name = "d1"
fleet = "birds"
[release]
trusted_keys = ["{KEY}"]
[model]
name = "gait"
"""
REQUIRED = {("device", "name"), ("device", "fleet"), ("release", "trusted_keys"), ("model", "name")}


def flat(settings: Settings) -> dict[tuple[str, str], Any]:
    return {(s, key): value for s, keys in msgspec.to_builtins(settings).items() for key, value in keys.items()}


def test_documented_file_has_every_key_with_its_default() -> None:
    documented = flat(read(ROOT / "deploy/agent.toml"))
    defaults = flat(parse(LEAST.encode()))
    assert documented.keys() == defaults.keys()
    assert {k: v for k, v in documented.items() if k not in REQUIRED} == {
        k: v for k, v in defaults.items() if k not in REQUIRED
    }
    text = (ROOT / "deploy/agent.toml").read_text()
    for _, key in documented:
        assert re.search(rf"^{key} = ", text, re.M), f"{key} is not in the documented file"


def test_reference_page_has_every_key_with_its_default() -> None:
    page = (ROOT / "docs/reference/agent.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+\.[a-z0-9_]+)` \| (.*?) \|", page, re.M))
    defaults = flat(parse(LEAST.encode()))
    assert rows.keys() == {f"{section}.{key}" for section, key in defaults}
    for place, value in defaults.items():
        shown = rows[".".join(place)]
        assert shown == ("required" if place in REQUIRED else f"`{msgspec.json.encode(value).decode()}`")


def test_sizes_in_bytes() -> None:
    learn = parse(f'{LEAST}[learn]\nmemory_limit = "1MiB"\nstore_bytes = 5000'.encode()).learn
    assert (learn.memory_limit_bytes, learn.store_limit_bytes) == (2**20, 5000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not TOML"),
        ("", "device: is missing"),
        (LEAST.replace('name = "d1"', ""), "device.name: is missing"),
        (LEAST + "[lern]\n", "unknown key 'lern'"),
        (LEAST + "[learn]\nepoch = 3", "learn: unknown key 'epoch'"),
        (LEAST + '[serve]\ntcp_port = "80"', "serve.tcp_port: Expected `int`"),
        (LEAST + "[serve]\ntcp_port = 70000", "serve.tcp_port"),
        (LEAST + '[serve]\npolicy = "mine"', "serve.policy"),
        (LEAST + '[learn]\nmemory_limit = "lots"', "learn.memory_limit: 'lots' is not a size"),
        (LEAST + '[learn]\nmemory_limit = "0MiB"', "learn.memory_limit"),
        (LEAST + "[learn]\nheld_out = 1.5", "learn.held_out"),
        (LEAST + f'[serve]\nsocket = "/{"x" * 200}"', "serve.socket: a Unix socket's path"),
        (LEAST.replace(KEY, "zz"), "release.trusted_keys"),
        (LEAST.replace('"d1"', '"a/b"'), "device.name"),
    ],
)
def test_mistakes_name_the_key(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text.encode(), "agent.toml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("agent.toml: ")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read .*deploy/agent.toml"):
        read(tmp_path / "none.toml")


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda t: LEAST.encode() + t.encode("utf-8", "ignore")))
def test_any_bytes_are_settings_or_the_documented_error(data: bytes) -> None:
    try:
        assert isinstance(parse(data), Settings)
    except SettingsError as error:
        assert str(error)
