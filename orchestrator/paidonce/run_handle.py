"""``RunHandle``: one submitted run, to wait for, read, cancel and resolve."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Generic, Protocol

from typing_extensions import TypeVar

from paidonce.declarations.declaration import AgentDeclaration
from paidonce.settings import Settings
from paidonce.values.stored_form import natural_json
from paidonce_models.database.transactions import Database
from paidonce_models.errors import ResultTimeout, RunBlocked, RunCancelled, RunFailed
from paidonce_models.payloads.encoding import decode_json
from paidonce_models.states import RunState
from paidonce_models.store.queries import RunView, StepView, read_run, read_state, read_steps

Result_co = TypeVar("Result_co", covariant=True, default=Any)

UNRESOLVED: Final = object()
"""No result was given; ``None`` is a result."""
KEPT: Final = object()
"""Stands for the result that was kept of a blocked step."""
FIRST_POLL_SECONDS = 0.02
LONGEST_POLL_SECONDS = 0.5


class Submitter(Protocol):
    """What a handle needs of the ``Client`` that has made it."""

    @property
    def settings(self) -> Settings: ...
    @property
    def database(self) -> Database: ...
    def cancel(self, run_id: str) -> None: ...
    def resolve(self, run_id: str, step: int, *, result: Any = UNRESOLVED, failed: str | None = None) -> None: ...


class RunHandle(Generic[Result_co]):
    """A submitted run. Every read queries the store. ``RunHandle[str]`` is one whose agent returns a text."""

    def __init__(
        self,
        client: Submitter,
        run_id: str,
        agent: AgentDeclaration[..., Any] | None = None,
        created: bool | None = None,
    ) -> None:
        self.id = run_id
        self.created = created
        """Whether its submission created the run: false if the key was known, ``None`` if nothing was submitted."""
        self._client = client
        self._agent = agent

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    @property
    def state(self) -> str:
        """The run's state, such as ``running`` or ``succeeded``."""
        with self._client.database.read() as connection:
            return read_state(connection, self._client.settings.namespace, self.id)[0].value

    def view(self) -> RunView:
        """The run as it is in the store."""
        with self._client.database.read() as connection:
            return read_run(connection, self._client.settings.namespace, self.id)

    def steps(self) -> list[StepView]:
        """The run's steps in order."""
        with self._client.database.read() as connection:
            return read_steps(connection, self._client.settings.namespace, self.id)

    def cancel(self) -> None:
        """Request the run to end; its ``finally`` blocks may still await steps. Does nothing if it has ended."""
        self._client.cancel(self.id)

    def resolve_succeeded(self, step: int, result: Any) -> None:
        """Declare that an ``unknown`` step did its work and returned this; its agent continues with it.

        The result is checked against the step's type if this process knows the step. Raises ``InvalidInput`` if the
        step is not unknown, ``NotFound`` if it does not exist.
        """
        self._client.resolve(self.id, step, result=result)

    def resolve_kept(self, step: int) -> None:
        """Declare that what was kept of a ``blocked`` step is its result, as JSON if not as the original objects.

        Raises ``InvalidInput`` if nothing is kept as data, or if the current type does not accept it.
        """
        self._client.resolve(self.id, step, result=KEPT)

    def resolve_failed(self, step: int, message: str | None = None) -> None:
        """Declare that an ``unknown`` step did not do its work; its agent gets ``StepFailed``. Raises as above."""
        self._client.resolve(self.id, step, failed=message or "a person has found that it did not do its work")

    def resolve_retry(self, step: int) -> None:
        """Retry an ``unknown`` step. Raises as above."""
        self._client.resolve(self.id, step)

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait for the run and return its result.

        ``timeout`` in seconds, ``None`` waits for ever. Raises ``RunFailed``,
        ``RunCancelled``, ``RunBlocked`` (its code must be corrected first) or
        ``ResultTimeout``, which is also a ``TimeoutError``; the run continues.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        while not self._has_ended():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise self._timed_out(timeout)
            time.sleep(pause if remaining is None else min(pause, remaining))
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)
        result: Result_co = self._result_of(self.view())
        return result

    async def result_async(self, timeout: float | None = None) -> Result_co:
        """``result`` for asynchronous callers; blocks no thread while it waits."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        while not await asyncio.to_thread(self._has_ended):
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise await asyncio.to_thread(self._timed_out, timeout)
            await asyncio.sleep(pause if remaining is None else min(pause, remaining))
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)
        result: Result_co = self._result_of(await asyncio.to_thread(self.view))
        return result

    async def cancel_async(self) -> None:
        """``cancel`` for asynchronous callers."""
        await asyncio.to_thread(self.cancel)

    def _has_ended(self) -> bool:
        with self._client.database.read() as connection:
            state, reason = read_state(connection, self._client.settings.namespace, self.id)
        return state.is_terminal or (state is RunState.BLOCKED and reason != "no_worker")

    def _timed_out(self, timeout: float | None) -> ResultTimeout:
        with self._client.database.read() as connection:
            state, reason = read_state(connection, self._client.settings.namespace, self.id)
        why = f" ({reason})" if reason else ""
        waited = "" if timeout is None else f" after {timeout:g} s"
        return ResultTimeout(
            f"run {self.id} is still {state}{why}{waited}; it continues; ask again later or use `paidonce show`"
        )

    def _result_of(self, run: RunView) -> Any:
        if run.state is RunState.SUCCEEDED:
            data = run.result if run.result is not None else b"null"
            if self._agent is not None:
                return self._agent.result_codec.decode(data, f"result of run {self.id}")
            return natural_json(decode_json(data))
        error = run.error or {}
        described = f"{error.get('type', 'Error')}: {error.get('message', '')}"
        kind = {RunState.CANCELLED: RunCancelled, RunState.BLOCKED: RunBlocked}.get(run.state, RunFailed)
        raise kind(f"run {self.id} of agent {run.agent!r} {run.state}: {described}", run_id=self.id, error=error)
