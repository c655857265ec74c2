"""Converts a producer's input to a run to create: validation, encoding, the hash that keys compare."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from paidonce.declarations.declaration import AgentDeclaration
from paidonce.runs.tags import checked_tags
from paidonce.settings import Settings
from paidonce.stored_texts import MAX_ALIAS_CHARACTERS, MAX_KEY_BYTES, MAX_NAME_BYTES, fits, found_instead, is_storable
from paidonce_models.errors import InvalidInput, NotSerialisable
from paidonce_models.ids import new_run_id
from paidonce_models.payloads.encoding import canonical_sha256, decode_json, encode_json
from paidonce_models.payloads.json_values import shown
from paidonce_models.payloads.payload_parts import split
from paidonce_models.queues import DEFAULT_QUEUE, full_queue_name, is_reserved
from paidonce_models.store.runs.submission import NewRun

A_NAME = f"a name of 1 to {MAX_NAME_BYTES} characters, no more than {MAX_NAME_BYTES} bytes in UTF-8"


def new_run(
    settings: Settings,
    agent: Any,
    given: Any,
    *,
    declaration: AgentDeclaration[..., Any] | None = None,
    key: Any = None,
    tags: Any = None,
    priority: Any = 5,
    queue: str | None = None,
    alias: str | None = None,
) -> NewRun:
    """A run of the agent with this input. Raises ``InvalidInput`` naming what does not fit.

    Plain input is stored as given, so that the same input compares equal whether or not
    the producer has the agent's code and its defaults.
    """
    if not is_name(agent):
        raise InvalidInput(f"agent must be {A_NAME}, found {found_instead(agent)}")
    if not isinstance(given, Mapping):
        raise InvalidInput(
            f"input of agent {agent!r} must be a JSON object of its arguments by name, found {type(given).__name__}"
        )
    data = _encoded(agent, given, declaration)
    if queue is None:
        queue = declaration.queue if declaration is not None else DEFAULT_QUEUE
    if not is_name(queue):
        raise InvalidInput(f"queue of agent {agent!r} must be {A_NAME}, found {found_instead(queue)}")
    if is_reserved(queue):
        raise InvalidInput(
            f"queue {queue!r} of agent {agent!r} is a name that Paidonce uses on Redis for submissions; choose another"
        )
    run_id = new_run_id()
    return NewRun(
        run_id=run_id,
        namespace=settings.namespace,
        shard=zlib.crc32(run_id.encode()) % settings.shards,
        agent=agent,
        input=split(data, limit_bytes=settings.max_payload_bytes),
        input_sha256=canonical_sha256(decode_json(data)),
        queue=full_queue_name(queue),
        key=_checked_key(agent, key),
        tags=checked_tags(settings, agent, tags),
        priority=_checked_priority(agent, priority),
        alias=alias,
    )


def is_name(value: object) -> bool:
    """Whether a value from outside can name an agent or a queue in every store."""
    return fits(value, MAX_NAME_BYTES)


def is_alias(value: object) -> bool:
    """Whether a value from outside, such as a foreign message's id, can be an alias of a run."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ALIAS_CHARACTERS and is_storable(value)


def _encoded(agent: str, given: Mapping[str, Any], declaration: AgentDeclaration[..., Any] | None) -> bytes:
    where = f"input of agent {agent!r}"
    if declaration is None:
        return encode_json(dict(given), where)
    validated = declaration.parameters.validate_input(given)
    try:
        return encode_json(dict(given), where)
    except NotSerialisable:
        return validated


def _checked_key(agent: str, key: Any) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str) or not fits(key, MAX_KEY_BYTES):
        raise InvalidInput(
            f"key of agent {agent!r} must be a text of 1 to {MAX_KEY_BYTES} bytes in UTF-8, found "
            f"{found_instead(key)}; the hash of a longer key makes a good key"
        )
    return key


def _checked_priority(agent: str, priority: Any) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 9:
        raise InvalidInput(f"priority {shown(priority)} of agent {agent!r}; expected 0 to 9, 9 goes first")
    return priority
