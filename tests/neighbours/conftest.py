"""Only the environment of `make test-neighbours` has the neighbours; elsewhere their tests are not collected."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("gunicorn") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies here is a neighbour's."""
    for item in items:
        if "neighbours" in item.path.parts:
            item.add_marker(pytest.mark.neighbour)
