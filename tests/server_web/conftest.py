"""A fresh service for each test, and a fleet with a past for tests that only look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sanderling.server.service import Service
from tests.support.web import Api, make_service, tell_story


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service that has seen nothing yet."""
    made = make_service(tmp_path / "server")
    yield made
    made.close()


@pytest.fixture
def api(service: Service) -> Api:
    """Its application."""
    return Api(service)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with five devices and four releases; not to be changed."""
    made = make_service(tmp_path_factory.mktemp("story") / "server")
    tell_story(made)
    yield made
    made.close()
