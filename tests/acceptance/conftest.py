"""Sites for the acceptance tests: one that the tests of a module share, and ones of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from paidonce.embedded import embedded_status
from tests.acceptance.site import Site

SHARED_MODULES = tuple(f"tests.acceptance.agents.{name}" for name in ("flow", "cancelling", "stepping", "mistakes"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers are processes that take seconds to start on a busy machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, session_servers: set[int]) -> Iterator[Site]:
    """A worker with all the agents, on SQLite and the embedded broker, for the tests of one module."""
    site = Site(tmp_path_factory.mktemp("shared"))
    try:
        worker = site.worker(*SHARED_MODULES)
        session_servers.add(worker.process.pid)
        broker = embedded_status(Path(site.settings["home"])).pid
        session_servers.update([] if broker is None else [broker])
        session_servers.update(child.pid for child in psutil.Process(worker.process.pid).children(recursive=True))
        yield site
    finally:
        site.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site of this test's own with no worker yet."""
    made = Site(tmp_path / "site")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites with settings of their own."""
    made: list[Site] = []

    def make(**settings: str) -> Site:
        made.append(Site(tmp_path / f"site-{len(made)}", **settings))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()
