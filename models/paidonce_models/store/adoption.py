"""Handing a running step from one process to another without a moment in which it belongs to nobody.

The worker that has claimed a step goes on renewing its lease until the other process has adopted it. Of an
adoption and a hand-back that race, the row's lock lets one through; the other finds another owner, and does nothing.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from paidonce_models.store.leases import LeaseKey, hand_back
from paidonce_models.store.messages import StepMessage

_ADOPT_STEP = text(
    "UPDATE steps SET lease_owner = :to, lease_expires_at_us = paidonce_now() + :lease_us "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt AND lease_owner = :owner "
    "AND state IN ('running', 'cancelled') RETURNING attempt"
)
_ADOPT_ATTEMPT = text(
    "UPDATE attempts SET worker = :to WHERE run_id = :run_id AND position = :position AND number = :attempt "
    "AND worker = :owner AND outcome IS NULL"
)
_OWNED = (
    "SELECT attempt FROM steps WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    "AND lease_owner = :owner AND state = 'running'"
)
_OWNED_STATEMENTS = {"postgresql": text(f"{_OWNED} FOR UPDATE"), "sqlite": text(_OWNED)}


def adopt(connection: Connection, key: LeaseKey, *, owner: str, to: str, lease_us: int) -> bool:
    """Take over the lease of an attempt that runs or was cancelled; False where it is not ``owner``'s any more."""
    parameters = {**_parameters(key), "owner": owner, "to": to, "lease_us": lease_us}
    if connection.execute(_ADOPT_STEP, parameters).first() is None:
        return False
    connection.execute(_ADOPT_ATTEMPT, parameters)
    return True


def hand_back_own(
    connection: Connection, key: LeaseKey, *, owner: str, reason: str, redeliver_us: int = 1_000_000
) -> StepMessage | None:
    """As ``hand_back``; ``None``, and nothing is written, where another process has adopted the step."""
    owned = _OWNED_STATEMENTS[connection.dialect.name]
    if connection.execute(owned, {**_parameters(key), "owner": owner}).first() is None:
        return None
    return hand_back(connection, key, reason=reason, redeliver_us=redeliver_us)


def _parameters(key: LeaseKey) -> dict[str, object]:
    return {"run_id": key.run_id, "position": key.position, "attempt": key.attempt}
