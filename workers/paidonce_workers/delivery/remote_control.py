"""Remote control that no broadcast can break: what is not a valid command is dropped.

Celery responds to a command that it cannot read by re-creating its channel, each
time, with a traceback that quotes the command; and if it adopted a stranger's clock,
that would spread in every event and reply. Anyone who can reach the broker may still
control the worker (``celery control``), because messages are not signed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery.worker import pidbox
from celery.worker.consumer import control

from paidonce.broker.flood_log import FloodLog
from paidonce_models.privacy.log_texts import failure_of

logger = logging.getLogger(__name__)

LARGEST_CLOCK = 2**53
FIELDS = {"method", "arguments", "destination", "pattern", "matcher", "ticket", "reply_to"}


class Pidbox(pidbox.Pidbox):  # type: ignore[misc] # Celery publishes no types
    """Celery's mailbox of one worker."""

    def __init__(self, consumer: Any) -> None:
        super().__init__(consumer)
        self.junk: FloodLog = consumer.junk

    def start(self, c: Any) -> None:
        """Start listening."""
        super().start(c)
        self.consumer.on_decode_error = self.on_decode_error

    def on_decode_error(self, message: Any, error: BaseException) -> None:
        """Log it. Broadcasts are not acknowledged, so there is nothing else to do."""
        del message
        self._drop(f"its body cannot be decoded ({type(error).__name__})")

    def on_message(self, body: Any, message: Any) -> None:
        """Execute a command, if it is one."""
        wrong = wrong_with(body, self.node.handlers)
        if wrong is not None:
            self._drop(wrong)
            return
        clock = message.headers.get("clock")
        if type(clock) is not int or not 0 <= clock <= LARGEST_CLOCK:
            message.headers["clock"] = 0
        self._forward_clock()
        try:
            self.node.handle_message(body, message)
            if body["method"] == "time_limit":
                self.c.update_strategies()  # Celery's strategies keep a copy of the old rate limits
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # First: kombu's Redis transport counts KeyError among its connection errors.
            self._drop(f"{type(error).__name__}")
        except Exception as error:  # noqa: BLE001 - told by type and place
            logger.error(
                "remote control failed and is set up again: %s",
                failure_of(error),
                extra={"event": "remote_control_failed"},
            )
            self.reset()

    def _drop(self, found: str) -> None:
        self.junk.report(
            "a broadcast is no command and was dropped",
            logging.ERROR,
            "a broadcast is no command that this worker knows and was dropped: %s",
            found,
            event="command_malformed",
        )


class Control(control.Control):  # type: ignore[misc] # Celery publishes no types
    """Celery's step of the consumer, with our mailbox."""

    def __init__(self, c: Any, **options: Any) -> None:
        super().__init__(c, **options)
        if not self.is_green:
            self.box = Pidbox(c)
            self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown


def wrong_with(body: object, handlers: Mapping[str, object]) -> str | None:
    """Why this is not a command of Celery's; ``None`` if it is one."""
    if not isinstance(body, Mapping):
        return f"its body is no object, found {type(body).__name__}"
    unknown = len(body.keys() - FIELDS)
    if unknown:
        return f"it has {unknown} unknown field(s)"
    method = body.get("method")
    if not isinstance(method, str) or method not in handlers:
        return "there is no such command"
    expected: dict[str, type | tuple[type, ...]] = {
        "arguments": Mapping,
        "destination": (list, tuple),
        "pattern": str,
        "matcher": str,
        "ticket": str,
        "reply_to": Mapping,
    }
    for name, types in expected.items():
        if body.get(name) is not None and not isinstance(body[name], types):
            return f"its {name} is a value of type {type(body[name]).__name__}"
    reply_to = body.get("reply_to")
    if reply_to is not None and not all(isinstance(reply_to.get(name), str) for name in ("exchange", "routing_key")):
        return "its reply_to names no exchange and routing key"
    return None
