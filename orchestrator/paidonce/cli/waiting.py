"""Waiting for a run that this command started, with a worker kept alive beside it."""

from __future__ import annotations

import time

from paidonce.cli.background_worker import BackgroundWorker
from paidonce.cli.live_workers import workers_alive
from paidonce.cli.progress import Progress
from paidonce.client import Client
from paidonce.declarations.declaration import AgentDeclaration
from paidonce_models.states import RunState
from paidonce_models.store.queries import read_state, read_steps

LOOK_EVERY_SECONDS = 0.15
LOOK_FOR_WORKERS_EVERY_SECONDS = 2.0
SHARE_OF_TIME_SPENT_LOOKING = 0.1
UNBLOCK_SECONDS = 15.0
"""How long a blocked run is given, because a worker with fixed code may just have started and unblock it."""


class RunWatch:
    """Shows a run until it has ended or stays blocked."""

    def __init__(
        self, *, client: Client, run_id: str, agent: AgentDeclaration[..., object], worker: BackgroundWorker
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._agent = (agent.name, agent.version)
        self._worker = worker
        self._look_for_workers_at = 0.0
        self._was_blocked = self._state()[0] is RunState.BLOCKED
        self._blocked_since: float | None = None

    def wait(self, progress: Progress) -> None:
        """Return when the run has ended or is blocked for good. Raises ``PaidonceError`` if its worker cannot run."""
        while True:
            began = time.monotonic()
            state, reason = self._state()
            with self._client.database.read() as connection:
                steps = read_steps(connection, self._client.settings.namespace, self._run_id)
            progress.show(state.value if reason is None else f"{state.value} ({reason})", steps)
            if state.is_terminal or self._stays_blocked(state, reason):
                return
            self._keep_a_worker()
            looked = time.monotonic() - began
            # A long run's steps take a while to read: the worker needs the processor more than the picture does.
            time.sleep(max(LOOK_EVERY_SECONDS, looked / SHARE_OF_TIME_SPENT_LOOKING))

    def _state(self) -> tuple[RunState, str | None]:
        with self._client.database.read() as connection:
            return read_state(connection, self._client.settings.namespace, self._run_id)

    def _stays_blocked(self, state: RunState, reason: str | None) -> bool:
        if state is not RunState.BLOCKED:
            self._blocked_since, self._was_blocked = None, False
            return False
        now = time.monotonic()
        self._blocked_since = now if self._blocked_since is None else self._blocked_since
        patience = UNBLOCK_SECONDS if self._was_blocked or reason == "no_worker" else 0.0
        return now - self._blocked_since >= patience

    def _keep_a_worker(self) -> None:
        """Keep our worker running once it is started; until then any live worker that holds the agent will do."""
        if self._worker.is_started:
            self._worker.ensure()
            return
        now = time.monotonic()
        if now < self._look_for_workers_at:
            return
        self._look_for_workers_at = now + LOOK_FOR_WORKERS_EVERY_SECONDS
        if not any(
            self._agent in worker.agents for worker in workers_alive(self._client.database, self._client.settings)
        ):
            self._worker.ensure()
