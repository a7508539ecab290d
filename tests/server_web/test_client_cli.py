"""`sanderling model` and `sanderling fleet` against a real server: what they print, exit status, remedies."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sanderling.cli import main
from sanderling.engine.models import mlp
from sanderling.server.service import Service
from tests.support.brokers import free_port
from tests.support.web import add_device, add_event, add_report, serving


@pytest.fixture(scope="module")
def address(story: Service) -> Iterator[str]:
    """The address of a server with a story."""
    with serving(story) as found:
        yield found


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token and no server from outside; a proxy that must not be asked for this machine."""
    for name in ("SANDERLING_SERVER", "SANDERLING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[str | None]]]:
    """A server of another kind: its address, and the tokens it was given."""
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("fleet status", ["4 of 5 online", "73.0 % before", "101 MiB of 128 MiB", "1/14.5 of plain float32"]),
        ("fleet devices", ["wrist-5", "v3 behind", "silent", "personal", "of 128 MiB"]),
        ("fleet show wrist-6", ["of 41 samples", "supervisor 27", "rejected", "digest"]),
        ("model list", ["wrist", "v4", "raise, fold"]),
        ("model show wrist", ["merge", "push", "between_0.5 (released)", "92.7 %"]),
        ("fleet watch --updates 1", ["wrist-5", "4 of 5 online"]),
    ],
)
def test_what_people_see(address: str, capsys: pytest.CaptureFixture[str], command: str, expected: list[str]) -> None:
    assert main([*command.split(), "--server", address]) == 0
    printed = capsys.readouterr().out
    for text in expected:
        assert text in printed


def test_json_everywhere(address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDERLING_SERVER", address + "/")
    for command in ("fleet status", "fleet devices", "fleet show wrist-5", "model list", "model show wrist"):
        assert main([*command.split(), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
    assert main(["fleet", "watch", "--json", "--updates", "2", "--interval", "0.05"]) == 0
    assert [json.loads(line)["status"]["fleet"] for line in capsys.readouterr().out.splitlines()] == ["wrists"] * 2


def test_push_show_and_roll_back(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, token = tmp_path / "m.onnx", service.settings.data / "api.token"
    with serving(service) as address:
        shared = ["--server", address, "--token-file", str(token)]
        for seed in (1, 2):
            model.write_bytes(mlp(4, [8], 3, seed=seed))
            words = ["--name", "wrist", "--labels", "a, b,c", "--note", "lab=4", "--note", "who=us", *shared]
            assert main(["model", "push", str(model), *words]) == 0
        assert "wrist v2" in capsys.readouterr().out
        assert service.releases("wrist")[0]["notes"] == {"lab": 4, "who": "us"}
        assert service.releases("wrist")[0]["labels"] == ["a", "b", "c"]
        monkeypatch.setenv("SANDERLING_TOKEN", service.token)
        assert main(["model", "rollback", "wrist", "--to", "1", "--server", address, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["version"] == 3
        model.write_bytes(b"no model at all")
        assert main(["model", "push", str(model), "--name", "wrist", *shared]) == 1
        assert "remedy:" in capsys.readouterr().err
        assert main(["model", "push", str(tmp_path / "none.onnx"), "--name", "wrist", *shared]) == 1
        assert "none.onnx cannot be read" in capsys.readouterr().err
    assert len(service.releases("wrist")) == 3


@pytest.mark.parametrize("given", [[], ["--token", "wrong"], ["--token-file", "/none/api.token"], ["--token", "a\nb"]])
def test_without_the_token_nothing_is_sent(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"x" * 3_000_000)
    with serving(service) as address:
        assert main(["model", "push", str(model), "--name", "wrist", "--server", address, *given]) == 1
    error = capsys.readouterr().err
    assert "token" in error and "remedy:" in error
    assert service.store.staged("wrist") == {}


def test_failures_have_remedies(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (f"http://127.0.0.1:{free_port()}", "fleet status", "sanderling server run"),
        ("ftp://host", "fleet status", "http://HOST:PORT"),
        (address, "fleet show nobody", "sanderling fleet devices"),
        (address, "model show nothing", "sanderling model list"),
        (address + "/elsewhere", "fleet status", "remedy"),
    ]
    for server, command, remedy in cases:
        assert main([*command.split(), "--server", server]) == 1
        assert remedy in capsys.readouterr().err


@pytest.mark.parametrize("body", [b"<html>", b'{"error": 3}', b"", b"\xff"])
def test_another_kind_of_server(capsys: pytest.CaptureFixture[str], body: bytes) -> None:
    for status in (200, 404, 500):
        with answering(status, {}, body) as (address, _):
            outcome = main(["fleet", "devices", "--server", address, "--json"])
        if (status, body) != (200, b'{"error": 3}'):
            assert outcome == 1 and "--server" in capsys.readouterr().err


def test_the_token_follows_no_redirect(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, {}, b"{}") as (there, seen), answering(307, {"Location": there}, b"") as (here, asked):
        command = ["model", "rollback", "wrist", "--to", "1", "--server", here, "--token", "secret"]
        assert main(command) == 1
    assert asked == ["Bearer secret"] and seen == []
    assert "307" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["model", "fleet", "model push m.onnx", "model push m.onnx --name a --labels a,,b", "model rollback a --to x",
     "model push m.onnx --name a --note k", "fleet watch --interval 0", "fleet watch --interval nan"],
)  # fmt: skip
def test_wrong_usage(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2 and "usage:" in capsys.readouterr().err


def test_hostile_text_reaches_no_terminal(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b]0;owned\x07[red]wrist[bold]\r\x9b2J"
    add_device(service, hostile)
    add_report(service, hostile, serving=hostile, resident={hostile: 3})
    add_event(service, hostile, 1, "rejected", hostile)
    with serving(service) as address:
        for command in (["fleet", "devices"], ["fleet", "show", hostile], ["fleet", "status"]):
            assert main([*command, "--server", address]) == 0
            printed = capsys.readouterr().out
            assert not set(printed) & {"\x1b", "\x07", "\x9b", "\r"}
            if command[1] == "devices":
                assert "[red]wrist[bold]" in printed


def test_importing_the_commands_is_light() -> None:
    script = (
        "import sys, argparse; from sanderling.server import client_cli;"
        "client_cli.register(argparse.ArgumentParser().add_subparsers());"
        "print([m for m in ('rich', 'urllib.request', 'numpy', 'starlette', 'sqlite_utils') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
