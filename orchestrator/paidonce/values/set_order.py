"""Writes sets in the same order in every process.

Owns the JSON form of sets. A set iterates in the order of its members' hashes, and hashes
of texts differ between processes: written as iterated, the same arguments would have
other bytes on replay. Members are sorted by their own JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paidonce_models.payloads.encoding import decode_json, encode_json
from paidonce_models.payloads.json_values import JsonValue


def holds_sets(schema: object) -> bool:
    """Whether a pydantic core schema mentions a set anywhere."""
    seen: set[int] = set()
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, (str, bytes)) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Mapping):
            if node.get("type") in ("set", "frozenset"):
                return True
            pending.extend(node.values())
        elif isinstance(node, Sequence):
            pending.extend(node)
    return False


def in_stable_order(data: bytes, parallel: object) -> bytes:
    """``data`` with sets sorted; ``parallel`` is the same value dumped to Python, where sets are still sets."""
    return encode_json(_sorted(decode_json(data), parallel))


def _sorted(written: JsonValue, parallel: object) -> JsonValue:
    if isinstance(written, dict) and isinstance(parallel, dict):
        # Keys may have become text; both dumps keep the order.
        pairs = zip(written.items(), parallel.values(), strict=True)
        return {key: _sorted(member, original) for (key, member), original in pairs}
    if isinstance(written, list) and isinstance(parallel, (list, tuple, set, frozenset)):
        members = [_sorted(member, original) for member, original in zip(written, parallel, strict=True)]
        return sorted(members, key=encode_json) if isinstance(parallel, (set, frozenset)) else members
    return written
