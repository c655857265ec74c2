"""The drill's fleet, with workers that are forked from an interpreter that has imported everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from paidonce.drill.fleet import Fleet
from tests.services import fork_server
from tests.services.fork_server import ForkedProcess


class ForkedFleet(Fleet):
    """Most of the CPU of starting is saved; what is killed are processes of their own all the same."""

    def _begin(self, arguments: Sequence[str], environment: Mapping[str, str], log: int) -> ForkedProcess:
        return fork_server.start(
            "celery",
            arguments,
            folder=Path.cwd(),
            environment=environment,
            stdout=log,
            stderr=log,
            new_session=True,
        )
