"""Retries blocked steps with this worker's code: can it read the kept result, or the step's arguments?

A thread in each worker. Each process tries each blocked attempt once, because its code does not change: all at its
start, and every 30 seconds those that other workers, perhaps with older code, have blocked since. It starts no attempt
of a step that was paid for.
"""

from __future__ import annotations

import logging
import threading

from sqlalchemy import Connection

from paidonce.broker.publisher_protocol import MessagePublisher
from paidonce.declarations.registry import AnyStep, Registry
from paidonce.values.kept import accept_kept
from paidonce.values.signatures import code_hash, result_shape
from paidonce_models.database.transactions import Database
from paidonce_models.errors import InvalidInput, StatementRefused, StoreError
from paidonce_models.payloads.payload_parts import SplitPayload, split
from paidonce_models.privacy.log_texts import failure_of
from paidonce_models.store.blocking.blocked_steps import (
    BODY,
    BlockedStep,
    find_blocked,
    read_kept,
    schedule_again,
    settle,
    tidy_blocked_steps,
)
from paidonce_models.store.messages import Message
from paidonce_models.store.payload_rows import load_payload

log = logging.getLogger(__name__)

EVERY_SECONDS = 30.0
MOST_REMEMBERED = 100_000
AT_ONCE = 1_000
"""How many blocked steps are read per query."""


class BlockedSteps:
    """The blocked steps that one worker checks."""

    def __init__(
        self,
        *,
        database: Database,
        publisher: MessagePublisher,
        registry: Registry,
        namespace: str,
        max_payload_bytes: int,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._registry = registry
        self._namespace = namespace
        self._limit_bytes = max_payload_bytes
        self._every_seconds = every_seconds
        self._tried: set[tuple[str, int, int]] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="paidonce-blocked-steps", daemon=True)

    def start(self) -> None:
        """Check now and from time to time."""
        self._thread.start()

    def stop(self) -> None:
        """Stop checking; a check in progress is finished."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _serve(self) -> None:
        while True:
            try:
                self.look()
            except StoreError as error:  # it may be back at the next check
                log.debug("blocked steps are checked later: %s", failure_of(error))
            except Exception as error:  # noqa: BLE001 - user types decode; the thread must not end with one of them
                log.error("blocked steps: %s", failure_of(error), extra={"event": "blocked_steps_failed"})
            if self._stopping.wait(self._every_seconds):
                return

    def look(self) -> None:
        """Try the blocked steps that this process has not tried. Raises ``StoreError``."""
        found = self._find(None)
        if not found:
            return
        while found and not self._stopping.is_set():
            for blocked in found:
                self._try_once(blocked)
            found = self._find(found[-1])
        self._database.transact(lambda connection: tidy_blocked_steps(connection, self._namespace))

    def _find(self, after: BlockedStep | None) -> list[BlockedStep]:
        names = [held.name for held in self._registry.steps]
        with self._database.read() as connection:
            return find_blocked(connection, namespace=self._namespace, names=names, after=after, most=AT_ONCE)

    def _try_once(self, blocked: BlockedStep) -> None:
        key = (blocked.run_id, blocked.position, blocked.attempt)
        if key in self._tried or self._stopping.is_set():
            return
        self._try(blocked)
        if len(self._tried) >= MOST_REMEMBERED:
            self._tried.clear()
        self._tried.add(key)

    def _try(self, blocked: BlockedStep) -> None:
        declaration = self._registry.step(blocked.step)
        if declaration is None:
            return
        try:
            message = self._go_on(blocked, declaration)
        except StatementRefused as error:
            self._log_still(blocked, error.message)
            return
        except StoreError:
            raise
        except InvalidInput as error:
            self._log_still(blocked, error.message)
            return
        except Exception as error:  # noqa: BLE001 - user types decode; one that raises must not keep others from a try
            self._log_still(blocked, failure_of(error))
            return
        if message is not None:
            log.warning(
                "step %d of run %s, which was blocked (%s), continues with this code",
                blocked.position,
                blocked.run_id,
                blocked.reason,
                extra={"event": "blocked_step_goes_on", "run_id": blocked.run_id, "step": blocked.position},
            )
            self._publisher.publish([message])

    def _go_on(self, blocked: BlockedStep, declaration: AnyStep) -> Message | None:
        with self._database.read() as connection:
            data = read_kept(connection, blocked)
            arguments = load_payload(connection, blocked.namespace, blocked.args_id)
        if blocked.form is None:
            if blocked.shape == BODY and code_hash(declaration.fn) == blocked.code:
                raise InvalidInput("the code has not changed since")
            declaration.parameters.decode_arguments(arguments)
            _ = declaration.result_codec
            return self._database.transact(lambda connection: schedule_again(connection, blocked))
        if data is None or blocked.text_only:
            raise InvalidInput("its result could not be kept completely as data; a person has to supply it")
        where = f"result of step {blocked.position} ({blocked.step})"
        encoded = accept_kept(
            data,
            declaration.result_codec,
            where,
            is_same_code=result_shape(declaration.parameters) == blocked.shape
            and code_hash(declaration.fn) == blocked.code,
        )
        result = split(encoded, limit_bytes=self._limit_bytes)

        def write(connection: Connection, result: SplitPayload = result) -> Message | None:
            return settle(connection, blocked, result)

        return self._database.transact(write)

    def _log_still(self, blocked: BlockedStep, why: str) -> None:
        log.warning(
            "step %d of run %s is blocked (%s) and does not fit this code either: %s",
            blocked.position,
            blocked.run_id,
            blocked.reason,
            why,
            extra={"event": "step_still_blocked", "run_id": blocked.run_id, "step": blocked.position},
        )
