"""A run's tags, as they come from outside and as tables show them.

Owns the limits of tags: how many, how long, which characters. A tag is copied to every child run, written to the ledger
and grouped by, so it should name something and hold no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from paidonce.settings import Settings
from paidonce.stored_texts import is_storable
from paidonce_models.errors import InvalidInput
from paidonce_models.payloads.json_values import shown

_WAY_OUT: Final = "a tag names a user, a plan or the like; put data into the input"


def checked_tags(settings: Settings, agent: str, tags: Any) -> dict[str, str]:
    """Tags from outside. Raises ``InvalidInput`` naming the first that no store can hold or group by, or the limit."""
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise InvalidInput(f"tags of agent {agent!r} must be an object of strings, found {type(tags).__name__}")
    if len(tags) > settings.max_tags:
        raise InvalidInput(
            f"agent {agent!r} is given {len(tags):,} tags, at most {settings.max_tags:,} are allowed; {_WAY_OUT}, "
            "or raise PAIDONCE_MAX_TAGS"
        )
    total = 0
    for name, value in tags.items():
        if not isinstance(name, str) or not name or not isinstance(value, str):
            raise InvalidInput(
                f"tag {shown(name)}={shown(value)} of agent {agent!r}: names and values must be strings, "
                "a name not empty"
            )
        if not is_storable(name) or not is_storable(value):
            raise InvalidInput(
                f"tag {shown(name)}={shown(value)} of agent {agent!r} holds a NUL or a lone surrogate, which no "
                "store can group by; leave that character out"
            )
        for what, text in (("name", name), ("value", value)):
            size = len(text.encode())
            total += size
            if size > settings.max_tag_bytes:
                raise InvalidInput(
                    f"the {what} of tag {shown(name)} of agent {agent!r} has {size:,} bytes, at most "
                    f"{settings.max_tag_bytes:,} are allowed; {_WAY_OUT}, or raise PAIDONCE_MAX_TAG_BYTES"
                )
    if total > settings.max_tags_bytes:
        raise InvalidInput(
            f"the tags of agent {agent!r} have {total:,} bytes, at most {settings.max_tags_bytes:,} are allowed; "
            f"{_WAY_OUT}, or raise PAIDONCE_MAX_TAGS_BYTES"
        )
    return dict(tags)
