"""Hides a message's arguments in Celery's events, and so in Flower, and in its logs.

Owns the representations of arguments that travel with a request. A message for a step holds ids and names, and may
show them; a submission holds the input, and a stranger's message anything. A producer's Celery adds a representation
of the arguments that every listener of events receives. It is replaced here before anyone sees it.
"""

from __future__ import annotations

import re
from typing import Any

from celery.worker.request import Request

from paidonce_models.privacy.visible_text import visible

HIDDEN = "(hidden)"
_OUR_OWN = re.compile(r"\{agent=[^{}\n]{0,150}, (?:step=\d{1,10}, )?run=[0-9a-fA-F-]{32,36}\}")


class QuietRequest(Request):  # type: ignore[misc]  # Celery publishes no types
    """The request of every task of ours."""

    def __init__(self, message: Any, headers: Any = None, **options: Any) -> None:
        shown = message.headers if headers is None else headers
        if isinstance(shown, dict):
            kwargs = shown.get("kwargsrepr")
            if isinstance(kwargs, str) and _OUR_OWN.fullmatch(kwargs) is not None:
                shown = {**shown, "argsrepr": "()", "kwargsrepr": visible(kwargs)}
            else:
                shown = {**shown, "argsrepr": HIDDEN, "kwargsrepr": HIDDEN}
        super().__init__(message, headers=shown, **options)


QUIET_REQUEST = f"{QuietRequest.__module__}:{QuietRequest.__qualname__}"
"""As Celery's option ``Request`` takes it."""
