"""``Client``: how a producer submits runs, reads them and cancels them.

A submission is durable once it returns: the run is in the store; the message
that follows is a hint which the sweeper repeats if the broker is down.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

from paidonce.celery_app import build_celery_app
from paidonce.declarations import AgentDeclaration
from paidonce.home import make_home
from paidonce.opening import open_store
from paidonce.publishing import Publisher
from paidonce.registry import Registry, default_registry
from paidonce.settings import Settings, load_settings
from paidonce.submission import new_run
from paidonce.values import Codec, codec_for, natural_json
from paidonce.values.kept import accept_kept
from paidonce_models.database import Database
from paidonce_models.encoding import decode_json, encode_json
from paidonce_models.errors import (
    BrokerUnreachable,
    InvalidInput,
    ResultTimeout,
    RunBlocked,
    RunCancelled,
    RunFailed,
)
from paidonce_models.forks import in_child, leave_to_parent
from paidonce_models.masking import mask
from paidonce_models.payloads import split
from paidonce_models.schema import ensure_schema
from paidonce_models.states import RunState
from paidonce_models.store.blocked_steps import find_blocked_step, read_kept
from paidonce_models.store.cancel_run import cancel_run
from paidonce_models.store.messages import AdvanceMessage, Message
from paidonce_models.store.queries import RunView, StepView, list_runs, read_run, read_state, read_steps, resolve_run
from paidonce_models.store.resolving import resolve_as_failed, resolve_as_succeeded, resolve_by_retry
from paidonce_models.store.submission import submit_run
from paidonce_models.store.workers import queue_of_agent

log = logging.getLogger(__name__)

UNRESOLVED: Final = object()
"""No result was given; ``None`` is one."""
KEPT: Final = object()
"""Stands for the result that was kept of a blocked step."""
FIRST_POLL_SECONDS = 0.02
LONGEST_POLL_SECONDS = 0.5


class RunHandle:
    """A run that was submitted. Every read asks the store."""

    def __init__(self, client: Client, run_id: str, agent: AgentDeclaration[..., Any] | None = None) -> None:
        self.id = run_id
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
        """Ask the run to end; its ``finally`` blocks may still await steps. Does nothing where it has ended."""
        self._client.cancel(self.id)

    def resolve_succeeded(self, step: int, result: Any) -> None:
        """Say that an ``unknown`` step did its work and returned this; its agent goes on with it.

        The result is checked against the step's type where this process knows the step. Raises ``InvalidInput`` if
        the step is not unknown, ``NotFound`` if there is none.
        """
        self._client.resolve(self.id, step, result=result)

    def resolve_kept(self, step: int) -> None:
        """Say that what was kept of a ``blocked`` step is its result, as JSON if not as the objects that it was.

        Raises ``InvalidInput`` where nothing is kept as data, or today's type does not take it.
        """
        self._client.resolve(self.id, step, result=KEPT)

    def resolve_failed(self, step: int, message: str | None = None) -> None:
        """Say that an ``unknown`` step did not do its work; its agent gets ``StepFailed``. Raises as above."""
        self._client.resolve(self.id, step, failed=message or "a person has found that it did not do its work")

    def resolve_retry(self, step: int) -> None:
        """Have an ``unknown`` step tried once more. Raises as above."""
        self._client.resolve(self.id, step)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the run and return what it returned.

        ``timeout`` in seconds, ``None`` waits for ever. Raises ``RunFailed``,
        ``RunCancelled``, ``RunBlocked`` (its code must be mended first) or
        ``ResultTimeout``, which is also a ``TimeoutError``; the run goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        while not self._has_ended():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise self._timed_out(timeout)
            time.sleep(pause if remaining is None else min(pause, remaining))
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)
        return self._result_of(self.view())

    async def result_async(self, timeout: float | None = None) -> Any:
        """``result`` for asynchronous callers; holds no thread while it waits."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        while not await asyncio.to_thread(self._has_ended):
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise await asyncio.to_thread(self._timed_out, timeout)
            await asyncio.sleep(pause if remaining is None else min(pause, remaining))
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)
        return self._result_of(await asyncio.to_thread(self.view))

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
            f"run {self.id} is still {state}{why}{waited}; it goes on, ask again later or `paidonce show` it"
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


class Client:
    """Submits runs to the store and the broker that the settings name. Safe to share between threads.

    A forked child may go on with the client of its parent: it makes connections of its own there.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        registry: Registry | None = None,
        publisher: Publisher | None = None,
        **overrides: Any,
    ) -> None:
        """``overrides`` are settings by name, such as ``database_url=``. Raises ``ConfigurationError``."""
        self.settings = settings if settings is not None else load_settings(**overrides)
        self._registry = registry if registry is not None else default_registry
        self._publisher = publisher
        self._publisher_is_ours = publisher is None
        self._database: Database | None = None
        self._begin_in_child()
        in_child(self, Client._begin_in_child)

    def _begin_in_child(self) -> None:
        self._making = threading.Lock()  # one that a thread of the parent holds would stay locked
        if self._publisher_is_ours and self._publisher is not None:
            leave_to_parent(self._publisher)
            self._publisher = None

    @property
    def database(self) -> Database:
        """The store, its schema checked. Raises ``StoreUnreachable`` or ``SchemaMismatch``."""
        database = self._database
        if database is None:
            with self._making:
                database = self._database
                if database is None:
                    database = self._database = self._open()
        return database

    def _open(self) -> Database:
        make_home(self.settings)
        database = open_store(self.settings, pool_size=self.settings.database_pool_size)
        try:
            ensure_schema(database)
        except BaseException:
            database.close()
            raise
        return database

    def submit(
        self,
        agent: str | AgentDeclaration[..., Any],
        input: Mapping[str, Any] | None = None,  # noqa: A002  # the public name of the argument
        *,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        priority: int = 5,
        queue: str | None = None,
    ) -> RunHandle:
        """Create a run, or find that of the same key. Durable once it returns, also with the broker down.

        ``input`` are the agent's arguments by name. ``priority`` 0 to 9, 9 goes
        first. Raises ``InvalidInput`` where the input does not fit an agent this
        process knows, ``KeyConflict``, ``StoreUnreachable``.
        """
        name = agent if isinstance(agent, str) else agent.name
        declaration = self._registry.agent(name) if isinstance(agent, str) else agent
        if declaration is None and queue is None and isinstance(name, str):
            with self.database.read() as connection:
                queue = queue_of_agent(connection, self.settings.namespace, name)
        new = new_run(
            self.settings,
            name,
            {} if input is None else input,
            declaration=declaration,
            key=key,
            tags=tags,
            priority=priority,
            queue=queue,
        )
        submitted = self.database.transact(lambda connection: submit_run(connection, new), single=True)
        if submitted.created:
            self._publish(
                [
                    AdvanceMessage(
                        run_id=submitted.run_id, agent=name, queue=submitted.queue, priority=submitted.priority
                    )
                ]
            )
        return RunHandle(self, submitted.run_id, declaration)

    async def submit_async(self, agent: str | AgentDeclaration[..., Any], *args: Any, **options: Any) -> RunHandle:
        """``submit`` for web handlers: the store is written to in a thread."""
        return await asyncio.to_thread(functools.partial(self.submit, agent, *args, **options))

    def run(self, run_id: str) -> RunHandle:
        """The handle of a run by its id or an alias such as the Celery task's id. Raises ``NotFound``."""
        with self.database.read() as connection:
            found = resolve_run(connection, self.settings.namespace, run_id)
            agent = read_run(connection, self.settings.namespace, found, with_payloads=False).agent
        return RunHandle(self, found, self._registry.agent(agent))

    def runs(self, *, state: str | None = None, agent: str | None = None, most: int = 100) -> list[RunView]:
        """The newest runs first."""
        with self.database.read() as connection:
            return list_runs(connection, self.settings.namespace, state=state, agent=agent, most=most)

    def cancel(self, run_id: str) -> None:
        """Ask a run to end; see ``RunHandle.cancel``. Raises ``NotFound`` where the namespace has no such run."""
        namespace, grace = self.settings.namespace, self.settings.cancel_grace_seconds

        def cancel(connection: Connection) -> list[Message]:
            return cancel_run(connection, namespace, resolve_run(connection, namespace, run_id), grace_seconds=grace)

        self._publish(self.database.transact(cancel))

    def resolve(self, run_id: str, step: int, *, result: Any = UNRESOLVED, failed: str | None = None) -> None:
        """Say what came of an ``unknown`` or ``blocked`` step; neither ``result`` nor ``failed``: try it again.

        See ``RunHandle``.
        """
        self._publish(
            [self.database.transact(lambda connection: self._resolve(connection, run_id, step, result, failed))]
        )

    def _resolve(self, connection: Connection, run_id: str, step: int, result: Any, failed: str | None) -> Message:
        namespace = self.settings.namespace
        run_id = resolve_run(connection, namespace, run_id)
        if failed is not None:
            return resolve_as_failed(
                connection, namespace=namespace, run_id=run_id, position=step, message=mask(failed)
            )
        if result is UNRESOLVED:
            return resolve_by_retry(connection, namespace=namespace, run_id=run_id, position=step)
        where = f"result of step {step} of run {run_id}"
        name = next((each.name for each in read_steps(connection, namespace, run_id) if each.step == step), "")
        declaration = self._registry.step(name)
        codec = None if declaration is None else declaration.result_codec
        if result is KEPT:
            encoded = self._kept(connection, run_id, step, codec or codec_for(object), where)
        else:
            encoded = encode_json(result, where) if codec is None else codec.accept(result, where)
        split_result = split(encoded, limit_bytes=self.settings.max_payload_bytes)
        return resolve_as_succeeded(connection, namespace=namespace, run_id=run_id, position=step, result=split_result)

    def _kept(self, connection: Connection, run_id: str, step: int, codec: Codec, where: str) -> bytes:
        blocked = find_blocked_step(connection, run_id=run_id, position=step)
        data = None if blocked is None else read_kept(connection, blocked)
        if blocked is None or data is None:
            raise InvalidInput(f"nothing is kept of step {step} of run {run_id}; say what it returned")
        if blocked.text_only:
            raise InvalidInput(
                f"step {step} of run {run_id}: of {', '.join(blocked.text_only)} only a text for people could be kept, "
                f"which is no result; see it with `paidonce show {run_id} --step {step}` and say what it was"
            )
        return accept_kept(data, codec, where, is_same_code=False, by_hand=True)

    def _publish(self, messages: list[Message]) -> None:
        try:
            publisher = self._publisher
            if publisher is None:
                with self._making:
                    publisher = self._publisher
                    if publisher is None:
                        publisher = self._publisher = Publisher(build_celery_app(self.settings), self.settings)
            publisher.publish(messages)
        except BrokerUnreachable as error:
            log.warning("%s", error.message, extra={"event": "broker_away"})


@functools.lru_cache(maxsize=1)
def default_client() -> Client:
    """The client of this process's own settings, made when first needed."""
    return Client()
