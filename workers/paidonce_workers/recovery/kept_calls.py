"""Keeps calls whose usage is still to come in the store, with the heartbeat, so that a killed worker loses none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from paidonce_models.store.ledger.awaited_calls import NewAwaitedCall, forget_written, keep_awaited
from paidonce_models.usage import CallRecord
from paidonce_workers.execution.held_leases import HeldLease


@dataclass(kw_only=True, slots=True)
class AwaitedChanges:
    """The changes that one heartbeat writes."""

    new: list[NewAwaitedCall]
    over: set[str]
    """Ids of calls that are no longer awaited."""
    forgotten: set[str] = field(default_factory=set)

    def write(self, connection: Connection) -> None:
        """Insert the new ones, delete those that the ledger has by now. Idempotent."""
        keep_awaited(connection, self.new)
        self.forgotten = forget_written(connection, self.over)


class AwaitedCalls:
    """What the store keeps for this process; used only by the heartbeat's thread."""

    def __init__(self) -> None:
        self._kept: dict[str, CallRecord] = {}

    def __bool__(self) -> bool:
        """Whether the store keeps any."""
        return bool(self._kept)

    def changes(self, leases: Iterable[HeldLease]) -> AwaitedChanges:
        """The difference between the calls that these attempts await and those in the store."""
        awaited = [
            NewAwaitedCall(key=lease.key, step=lease.step_name, record=record)
            for lease in leases
            for record in lease.recorder.awaited()
        ]
        return AwaitedChanges(
            new=[each for each in awaited if self._kept.get(each.record.id) != each.record],
            over=self._kept.keys() - {each.record.id for each in awaited},
        )

    def written(self, changes: AwaitedChanges) -> None:
        """Call it once the transaction is committed."""
        self._kept.update((each.record.id, each.record) for each in changes.new)
        for call_id in changes.forgotten:
            self._kept.pop(call_id, None)
