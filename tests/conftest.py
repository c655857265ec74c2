"""What every test gets: real engines behind fixtures, a clean environment, and a check that nothing is left behind."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from paidonce.declarations.registry import default_registry

pytest_plugins = [
    "tests.services.certificates",
    "tests.services.databases",
    "tests.services.disks",
    "tests.services.leaks",
    "tests.services.postgres",
    "tests.services.pgbouncer",  # imports the one above, whose asserts are rewritten first
    "tests.services.rabbitmq",
    "tests.services.private_rabbitmq",
    "tests.services.valkey",
    "tests.services.secured",  # imports the one above
]

ROOT = Path(__file__).parent
SERVER_FIXTURES = {"postgres_server", "postgres_binaries", "rabbitmq_server", "tls_rabbitmq"}
WRITTEN_MARKERS = {"browser", "chaos", "neighbour", "slow"}
"""That stand in the file of the test or the ``conftest.py`` of its folder; ``service`` is set by fixtures."""
SLOW_SECONDS = 240
EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "40"))
SETTINGS_OF_THE_DEVELOPER = ("AGENTS", "BROKER_URL", "DATABASE_URL", "HOME", "POLICIES", "REDIS_URL")

# How long an example takes says nothing on a shared machine; pytest-timeout bounds the whole test.
hypothesis.settings.register_profile("paidonce", deadline=None, print_blob=True, max_examples=EXAMPLES)
hypothesis.settings.load_profile("paidonce")


def pytest_configure() -> None:
    """Keep tests, and the processes they start, away from the stores, brokers and signals of whoever runs them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a shell that runs them in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in SETTINGS_OF_THE_DEVELOPER:
        os.environ.pop(f"PAIDONCE_{name}", None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file whose text does not name the marker that ``-m`` demands: importing all costs half a minute."""
    demanded = _demanded_marker(config.option.markexpr)
    if demanded is None or collection_path.suffix != ".py":
        return None
    texts = [collection_path, *(folder / "conftest.py" for folder in collection_path.parents if ROOT in folder.parents)]
    return None if any(f"mark.{demanded}" in text.read_text() for text in texts if text.exists()) else True


def _demanded_marker(expression: str) -> str | None:
    """What ``slow and not chaos`` asks of every test; ``None`` where one can do without."""
    words = expression.split(" and ")
    return words[0] if words[0] in WRITTEN_MARKERS and "or" not in expression.split() else None


@pytest.hookimpl(trylast=True)  # a folder of tests may say something else
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by what a test uses, so that nobody has to remember it."""
    for item in items:
        if item.get_closest_marker("slow") and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
        if SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.service)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no later collection, of which some tests ask for several, looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def forget_local_declarations() -> Iterator[None]:
    """Agents and steps that a test defines inside a function are gone after it, and stand in nobody's way."""
    steps = dict(default_registry._steps)
    agents = {name: dict(versions) for name, versions in default_registry._agents.items()}
    yield
    _undo_local(default_registry._steps, steps)
    for name, versions in default_registry._agents.items():
        _undo_local(versions, agents.get(name, {}))


def _undo_local(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name, declaration in list(now.items()):
        if declaration.is_local and before.get(name) is not declaration:
            if name in before:
                now[name] = before[name]
            else:
                del now[name]
