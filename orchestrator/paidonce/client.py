"""``Client``: how a producer submits runs, reads them and cancels them.

A submission is durable once it returns: the run is in the store; the message
that follows is a hint which the sweeper repeats if the broker is down.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import Connection
from typing_extensions import TypeVar

from paidonce.declarations.declaration import AgentDeclaration
from paidonce.declarations.registry import Registry, default_registry
from paidonce.run_handle import KEPT, UNRESOLVED, RunHandle
from paidonce.runs.agent_queues import AgentQueues
from paidonce.runs.many_submissions import Chunk, Submission, submit_in_chunks
from paidonce.runs.new_run import new_run
from paidonce.settings import Settings, load_settings
from paidonce.store_access import open_checked_store
from paidonce.values.codecs import Codec, codec_for
from paidonce.values.kept import accept_kept
from paidonce_models.database.transactions import Database
from paidonce_models.errors import (
    BrokerUnreachable,
    InvalidInput,
    KeyConflict,
)
from paidonce_models.forks import in_child, leave_to_parent
from paidonce_models.payloads.encoding import encode_json
from paidonce_models.payloads.payload_parts import split
from paidonce_models.privacy.masking import mask
from paidonce_models.store.blocking.blocked_steps import find_blocked_step, read_kept
from paidonce_models.store.messages import AdvanceMessage, Message
from paidonce_models.store.queries import RunView, list_runs, read_run, read_steps, resolve_run
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.runs.submission import NewRun, Outcome, Submitted, store_runs
from paidonce_models.store.steps.resolving import resolve_as_failed, resolve_as_succeeded, resolve_by_retry

if TYPE_CHECKING:
    from paidonce.broker.publisher import Publisher

log = logging.getLogger(__name__)

R = TypeVar("R")


class Client:
    """Submits runs to the store and the broker that the settings name. Thread-safe.

    A forked child may use its parent's client: it opens its own connections there.
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
        self._queues = AgentQueues(self.settings.namespace)
        self._begin_in_child()
        in_child(self, Client._begin_in_child)

    def _begin_in_child(self) -> None:
        self._making = threading.Lock()  # if a thread of the parent holds it, it would stay locked
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
                    database = self._database = open_checked_store(
                        self.settings, pool_size=self.settings.database_pool_size
                    )
        return database

    @overload
    def submit(
        self,
        agent: AgentDeclaration[..., R],
        input: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        priority: int = 5,
        queue: str | None = None,
    ) -> RunHandle[R]: ...
    @overload
    def submit(
        self,
        agent: str,
        input: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        priority: int = 5,
        queue: str | None = None,
    ) -> RunHandle[Any]: ...
    def submit(
        self,
        agent: str | AgentDeclaration[..., Any],
        input: Mapping[str, Any] | None = None,  # noqa: A002  # the public name of the argument
        *,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        priority: int = 5,
        queue: str | None = None,
    ) -> RunHandle[Any]:
        """Create a run, or find the one with the same key. Durable once it returns, even if the broker is down.

        ``input`` are the agent's arguments by name. ``priority`` is 0 to 9, 9 goes first.
        Raises ``InvalidInput`` if the input does not fit an agent that this process knows,
        ``KeyConflict``, ``StoreUnreachable``.
        """
        name, declaration = self._named(agent)
        if declaration is None and queue is None and isinstance(name, str):
            queue = self._queues.queue_of(self.database, name)
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
        (outcome,) = self._store([new])
        if isinstance(outcome, KeyConflict):
            raise outcome
        return RunHandle(self, outcome.run_id, declaration, outcome.created)

    @overload
    async def submit_async(self, agent: AgentDeclaration[..., R], *args: Any, **options: Any) -> RunHandle[R]: ...
    @overload
    async def submit_async(self, agent: str, *args: Any, **options: Any) -> RunHandle[Any]: ...
    async def submit_async(self, agent: str | AgentDeclaration[..., Any], *args: Any, **options: Any) -> RunHandle[Any]:
        """``submit`` for web handlers: writes to the store in a thread."""
        return await asyncio.to_thread(functools.partial(self.submit, agent, *args, **options))

    @overload
    def submit_many(
        self, agent: AgentDeclaration[..., R], submissions: Iterable[Submission | Mapping[str, Any]]
    ) -> list[RunHandle[R]]: ...
    @overload
    def submit_many(
        self, agent: str, submissions: Iterable[Submission | Mapping[str, Any]]
    ) -> list[RunHandle[Any]]: ...
    def submit_many(
        self, agent: str | AgentDeclaration[..., Any], submissions: Iterable[Submission | Mapping[str, Any]]
    ) -> list[RunHandle[Any]]:
        """``submit`` for thousands of runs; returns their handles in order. A mapping is the input of a submission.

        Stored in chunks of up to 500, each durable once it is committed, and read no further than that. Stops at the
        first submission that is refused, with the error that ``submit`` raises: its message names the submission,
        those before it are submitted, and ``details["run_ids"]`` has the run of each that was handled, ``None`` for one
        that was refused. Raises ``StoreUnreachable`` in the same way. Calling again with the same keys submits nothing
        twice.
        """
        name, declaration = self._named(agent)

        def make_run(given: Submission) -> NewRun:
            return new_run(
                self.settings,
                name,
                given.input,
                declaration=declaration,
                key=given.key,
                tags=given.tags,
                priority=given.priority,
                queue=given.queue,
            )

        def store(chunk: Chunk) -> Sequence[Outcome]:
            if declaration is None:
                chunk.route(lambda: self._queues.queue_of(self.database, name))
            return self._store(chunk.runs)

        submitted = submit_in_chunks(submissions, make_run, store)
        return [RunHandle(self, each.run_id, declaration, each.created) for each in submitted]

    @overload
    async def submit_many_async(
        self, agent: AgentDeclaration[..., R], submissions: Iterable[Submission | Mapping[str, Any]]
    ) -> list[RunHandle[R]]: ...
    @overload
    async def submit_many_async(
        self, agent: str, submissions: Iterable[Submission | Mapping[str, Any]]
    ) -> list[RunHandle[Any]]: ...
    async def submit_many_async(
        self, agent: str | AgentDeclaration[..., Any], submissions: Iterable[Submission | Mapping[str, Any]]
    ) -> list[RunHandle[Any]]:
        """``submit_many`` for asynchronous callers: reads the submissions and writes to the store in a thread."""
        return await asyncio.to_thread(self.submit_many, agent, submissions)

    def _named(self, agent: str | AgentDeclaration[..., Any]) -> tuple[str, AgentDeclaration[..., Any] | None]:
        """An agent's name, and its declaration if this process has it."""
        return (agent, self._registry.agent(agent)) if isinstance(agent, str) else (agent.name, agent)

    def _store(self, runs: Sequence[NewRun]) -> list[Outcome]:
        """Store new runs, durable from here on, and publish those that are new."""
        outcomes = store_runs(self.database, runs)
        self._publish(
            [
                AdvanceMessage(run_id=stored.run_id, agent=new.agent, queue=stored.queue, priority=stored.priority)
                for new, stored in zip(runs, outcomes, strict=True)
                if isinstance(stored, Submitted) and stored.created
            ]
        )
        return outcomes

    def run(self, run_id: str) -> RunHandle[Any]:
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
        """Request a run to end; see ``RunHandle.cancel``. Raises ``NotFound`` if the namespace has no such run."""
        namespace, grace = self.settings.namespace, self.settings.cancel_grace_seconds

        def cancel(connection: Connection) -> list[Message]:
            return cancel_run(connection, namespace, resolve_run(connection, namespace, run_id), grace_seconds=grace)

        self._publish(self.database.transact(cancel))

    def resolve(self, run_id: str, step: int, *, result: Any = UNRESOLVED, failed: str | None = None) -> None:
        """Decide an ``unknown`` or ``blocked`` step; with neither ``result`` nor ``failed`` it is retried.

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
            raise InvalidInput(f"nothing is kept of step {step} of run {run_id}; supply its result")
        if blocked.text_only:
            raise InvalidInput(
                f"step {step} of run {run_id}: of {', '.join(blocked.text_only)} only readable text could be kept, "
                f"which is no result; see it with `paidonce show {run_id} --step {step}` and supply its result"
            )
        return accept_kept(data, codec, where, is_same_code=False, by_hand=True)

    def _publish(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        try:
            publisher = self._publisher
            if publisher is None:
                with self._making:
                    publisher = self._publisher
                    if publisher is None:
                        publisher = self._publisher = self._new_publisher()
            publisher.publish(messages)
        except BrokerUnreachable as error:
            log.warning("%s", error.message, extra={"event": "broker_away"})

    def _new_publisher(self) -> Publisher:
        # Celery and its transports take as long to import as everything else: only for publishing.
        from paidonce.broker.celery_app import build_celery_app  # noqa: PLC0415
        from paidonce.broker.publisher import Publisher  # noqa: PLC0415

        return Publisher(build_celery_app(self.settings), self.settings)


@functools.lru_cache(maxsize=1)
def default_client() -> Client:
    """The client of this process's own settings, created on first use."""
    return Client()
