"""Fixtures of the chaos tests: the three pairs of engines, and a stage that is always taken down."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.engines import ONE_OF_EACH, PAIRS, Engines, engines_named
from tests.chaos.stage import Stage

TEST_SECONDS = 420


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is chaos and takes its time."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.chaos)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(params=PAIRS)
def engines(request: pytest.FixtureRequest) -> Engines:
    """The test runs once on each pair."""
    return engines_named(request.param, request)


@pytest.fixture(params=ONE_OF_EACH)
def some_engines(request: pytest.FixtureRequest) -> Engines:
    """The test runs once on each store."""
    return engines_named(request.param, request)


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Make a stage on given engines; ended with the test."""
    stages: list[Stage] = []

    def make(engines: Engines, **settings: str) -> Stage:
        stage = Stage(tmp_path / f"stage-{len(stages)}", engines, settings)
        stages.append(stage)
        return stage

    yield make
    for stage in stages:
        stage.stop()
