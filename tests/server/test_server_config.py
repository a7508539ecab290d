"""Settings: what is written can be read, what is wrong is named, what is documented is what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanderling.server.config import Settings, load, parse, render, sections
from sanderling.server.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


def test_rendered_file_is_the_defaults(tmp_path: Path) -> None:
    settings = parse(render(), tmp_path / "server.toml")
    assert settings.merge == Settings().merge
    assert settings.limits == Settings().limits
    assert settings.distill == Settings().distill
    assert settings.data == tmp_path


def test_every_setting_has_a_description() -> None:
    assert all(description for _, _, rows in sections() for _, _, description in rows)


def test_deployed_file_shows_every_setting() -> None:
    deployed = (ROOT / "deploy" / "server.toml").read_text()
    assert deployed == render(data_directory="/var/lib/sanderling-server")


def test_reference_lists_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "reference" / "server.md").read_text()
    for section, _, rows in sections():
        assert f"### `[{section}]`" in text
        for key, default, description in rows:
            assert f"| `{key}` | `{default!r}` | {description} |".replace("'", '"') in text.replace("'", '"'), key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[web]\nport = 'x'", "web.port"),
        ("[web]\nport = 70000", "web.port"),
        ("[wob]\n", "wob"),
        ("[web]\nprt = 1", "prt"),
        ("[merge]\nstrategy = 'magic'", "merge.strategy"),
        ("[merge]\nmin_devices = 0", "merge.min_devices"),
        ("[server]\nfleet = 'a b'", "server.fleet"),
        ("[distill]\nmemory_limit = 'lots'", "distill.memory_limit"),
        ("web = 1", "web"),
        ("[web", "not TOML"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        load(path)
    assert str(path) in caught.value.what
    assert caught.value.remedy


def test_absent_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="server init"):
        load(tmp_path / "none.toml")


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    settings = parse('[server]\ndata_directory = "data"\n[broker]\nca_file = "ca.pem"', tmp_path / "server.toml")
    assert settings.data == tmp_path / "data"
    assert settings.broker_address.ca_file == str(tmp_path / "ca.pem")


@given(st.text(max_size=300))
def test_any_text_gives_settings_or_the_one_error(text: str) -> None:
    try:
        assert isinstance(parse(text, Path("/x/server.toml")), Settings)
    except ConfigurationError as error:
        assert error.remedy
