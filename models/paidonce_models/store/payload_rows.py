"""Payloads in the store: inserting missing rows, fetching and assembling values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, text

from paidonce_models.errors import NotFound
from paidonce_models.payloads.addressing import Fetch, PayloadRow
from paidonce_models.payloads.documents import Encoded
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.payloads.payload_parts import assemble
from paidonce_models.payloads.payload_reading import read_encoded

_INSERT = text(
    "INSERT INTO payloads (namespace, id, codec, size, sha256, inline) "
    "VALUES (:namespace, :id, :codec, :size, :sha256, :inline) ON CONFLICT (namespace, id) DO NOTHING"
)
_FETCH = text("SELECT id, codec, inline FROM payloads WHERE namespace = :namespace AND id IN :ids").bindparams(
    bindparam("ids", expanding=True)
)
_BATCH = 500


def insert_payloads(connection: Connection, namespace: str, rows: Iterable[PayloadRow]) -> None:
    """Insert rows that do not exist yet; they are content-addressed, so an existing row is the same.

    Rows are inserted by id, so that two transactions which share some cannot deadlock.
    """
    unique = {row.id: row for row in rows}
    if unique:
        connection.execute(
            _INSERT,
            [
                {
                    "namespace": namespace,
                    "id": row.id,
                    "codec": row.codec,
                    "size": row.size,
                    "sha256": row.sha256,
                    "inline": row.inline,
                }
                for _, row in sorted(unique.items())
            ],
        )


def fetch_payload_rows(connection: Connection, namespace: str, ids: list[str]) -> dict[str, tuple[str, bytes]]:
    """The stored rows of these ids as ``{id: (codec, bytes)}``."""
    found: dict[str, tuple[str, bytes]] = {}
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        for row in connection.execute(_FETCH, {"namespace": namespace, "ids": batch}):
            found[row.id] = (row.codec, bytes(row.inline))
    return found


def load_payload(connection: Connection, namespace: str, root_id: str) -> bytes:
    """The JSON bytes of a payload, assembled from its rows. Raises ``NotFound``."""
    return assemble(root_id, _fetcher(connection, namespace, None))


def read_payload(
    connection: Connection,
    namespace: str,
    root_id: str,
    *,
    prefetched: Mapping[str, tuple[str, bytes]] | None = None,
    memory: PayloadMemory | None = None,
) -> Encoded:
    """The encoded value of a payload; what ``memory`` caches is not fetched. Raises ``NotFound``."""
    return read_encoded(root_id, _fetcher(connection, namespace, prefetched), memory)


def _fetcher(connection: Connection, namespace: str, prefetched: Mapping[str, tuple[str, bytes]] | None) -> Fetch:
    def fetch(ids: list[str]) -> dict[str, tuple[str, bytes]]:
        known = {id_: prefetched[id_] for id_ in ids if id_ in prefetched} if prefetched else {}
        missing = [id_ for id_ in ids if id_ not in known]
        if missing:
            known.update(fetch_payload_rows(connection, namespace, missing))
            lost = [id_ for id_ in missing if id_ not in known]
            if lost:
                raise NotFound(f"payload {lost[0]} of namespace {namespace!r} is not in the store; was it erased?")
        return known

    return fetch


def row_or_none(row: Any) -> tuple[str, bytes] | None:
    """``(codec, bytes)`` of a joined payload, ``None`` if the join found none."""
    return None if row.codec is None else (row.codec, bytes(row.inline))
