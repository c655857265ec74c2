"""The error for a bad setting: where it was set, what is expected and what was found."""

from __future__ import annotations

import re

from paidonce.configuration.setting_sources import ENVIRONMENT_PREFIX, place_of
from paidonce_models.privacy.masking import MASK, mask
from paidonce_models.privacy.visible_text import visible

_ADDRESSES = ("database_url", "broker_url", "redis_url")
_SHOWN_CHARACTERS = 300


def explain_bad_value(name: str | None, message: str, given: dict[str, object]) -> str:
    """Describe one bad value: where it was set, what is expected and what was found. Never shows a password."""
    expected = re.sub(r"^(Value error, |Input should be )", "", message)
    if name is None:
        return f"settings: expected {expected}; change one of them"
    place, value = place_of(name, given)
    try:
        text = str(value)
        found = repr(_without_credentials(text) if name in _ADDRESSES else mask(text))
    except (ValueError, RecursionError):  # more digits or levels than Python can write
        found = f"a {type(value).__name__} too large to show"
    if len(found) > _SHOWN_CHARACTERS:
        found = f"{found[:_SHOWN_CHARACTERS]}… ({len(found):,} characters)"
    return visible(
        f"{ENVIRONMENT_PREFIX}{name.upper()} (set in {place}): expected {mask(expected)}, found {found}; "
        "correct it there"
    )


def _without_credentials(url: str) -> str:
    """A possibly mistyped address: everything before its last ``@`` counts as a credential."""
    masked = mask(url)
    if (masked == url and "@" in url) or masked.count("@") > 1:
        scheme, separator, rest = url.partition("://")
        return f"{scheme}://{MASK}@{rest.rpartition('@')[2]}" if separator else f"{MASK}@{url.rpartition('@')[2]}"
    return masked
