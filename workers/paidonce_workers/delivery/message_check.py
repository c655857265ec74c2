"""The one check before every task: what a message requests of a worker.

Owns the conversion of a raw message, which anyone may have sent, to a task of ours
and its arguments. Only those and the id are used; everything else by which a Celery
message can control a worker is dropped: ``eta``, ``expires``, ``retries``,
``timelimit``, ``group``, ``shadow``, ``stamps``, ``callbacks``, ``errbacks``, ``chain``, ``chord``,
``reply_to``. A message for a step or a run is a hint whose meaning is in the store,
and one of ``paidonce.submit`` becomes a run, which has its own settings.

Must never raise anything but ``UnusableMessage``, and never reveal the content of a
message, which may be a user's input.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import DecodeError

from paidonce.broker.publisher import ADVANCE_TASK, SUBMIT_TASK
from paidonce.runs.new_run import is_name
from paidonce_models.errors import PaidonceError
from paidonce_models.privacy.log_texts import shown_type

LARGEST_HINT_BYTES = 64 * 1024
"""Limit in bytes for the body of a message for a step or a run; ours have about 200."""
LONGEST_TASK_NAME = 255
LONGEST_ID = 255
LARGEST_STEP = 2**31 - 1
JSON_TYPES = ("application/json", "json")
TEXT_ENCODINGS = ("utf-8", "utf8", "us-ascii", "ascii", "binary")
"""No other codec of Python's: some decompress (``zlib_codec``), some take minutes (``punycode``)."""

_RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class UnusableMessage(PaidonceError):
    """A message that no worker can use. ``kind`` says why, without any content of the message."""

    code = "unusable_message"

    def __init__(self, kind: str, found: str = "") -> None:
        super().__init__(f"{kind}: {found}" if found else kind)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """A task to run: name, id and arguments, and nothing else of the message."""

    task: str
    task_id: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    submitted_as: str = ""
    """The id of a submission as its producer sent it, which Celery or a log may be unable to use."""

    def headers(self) -> dict[str, Any]:
        """The headers that Celery reads of a message of protocol 2."""
        run, step = self.kwargs.get("run"), self.kwargs.get("step")
        shown = {"agent": self.kwargs.get("agent"), "step": step, "run": run} if self.task != SUBMIT_TASK else {}
        return {
            "lang": "py",
            "task": self.task,
            "id": self.task_id,
            "root_id": self.task_id,
            "parent_id": None,
            "group": None,
            "shadow": None,
            "eta": None,
            "expires": None,
            "retries": 0,
            "timelimit": [None, None],
            "argsrepr": "()",
            "kwargsrepr": f"{{{', '.join(f'{key}={value}' for key, value in shown.items() if value is not None)}}}",
            "ignore_result": True,
            "origin": "message",
            "submitted_as": self.submitted_as,
        }

    def body(self) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, None]]:
        """The decoded body of such a message, without callbacks, errbacks, chains or chords."""
        return self.args, self.kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def read_message(message: Any, *, largest_submission_bytes: int) -> Incoming:
    """What the message requests. Raises ``UnusableMessage``; not for a step of code that this worker does not hold."""
    headers = headers_of(message)
    named = headers.get("task")
    is_hint = isinstance(named, str) and named != SUBMIT_TASK
    payload = read_body(message, LARGEST_HINT_BYTES if is_hint else largest_submission_bytes)
    if named is None:  # protocol 1: everything is in the body
        named = payload.get("task") if isinstance(payload, Mapping) else None
        task_id = payload.get("id") if isinstance(payload, Mapping) else None
    else:
        task_id = headers.get("id")
    task = _checked_name(named)
    args, kwargs = _arguments(payload)
    if task == SUBMIT_TASK:
        # Whatever its id, its producer can find the run or the refusal.
        submitted_as = task_id if isinstance(task_id, str) else ""
        shown_as = submitted_as if is_shown_id(submitted_as) else str(uuid.uuid4())
        return Incoming(task=task, task_id=shown_as, args=args, kwargs=kwargs, submitted_as=submitted_as)
    if task != ADVANCE_TASK and task.startswith("celery."):
        raise UnusableMessage("it requests a task of Celery's own")
    return Incoming(
        task=task, task_id=checked_id(task_id), args=(), kwargs=checked_address(kwargs, with_step=task != ADVANCE_TASK)
    )


def checked_address(kwargs: Mapping[str, Any], *, with_step: bool) -> dict[str, Any]:
    """The run, step and agent that such a message names, and no other argument. Raises ``UnusableMessage``."""
    run, step, agent = kwargs.get("run"), kwargs.get("step"), kwargs.get("agent", "")
    if not isinstance(run, str) or _RUN_ID.fullmatch(run) is None:
        raise UnusableMessage("run= must be the id of a run, a UUID in lower case", f"found {_type_of(run)}")
    if agent != "" and not is_name(agent):
        raise UnusableMessage("agent= must be the name of an agent", f"found {_type_of(agent)}")
    if not with_step:
        return {"run": run, "agent": agent}
    if type(step) is not int or not 1 <= step <= LARGEST_STEP:
        raise UnusableMessage("step= must be the number of a step, from 1 on", f"found {_type_of(step)}")
    return {"run": run, "step": step, "agent": agent}


def checked_id(task_id: object) -> str:
    """An id that Celery can use and a log can show. Raises ``UnusableMessage``."""
    if not isinstance(task_id, str) or not is_shown_id(task_id):
        raise UnusableMessage(
            f"its id must be a text of 1 to {LONGEST_ID} printable characters", f"found {_type_of(task_id)}"
        )
    return task_id


def is_shown_id(task_id: str) -> bool:
    """Whether a log can show this id."""
    return 0 < len(task_id) <= LONGEST_ID and task_id.isprintable()


def submission_id(message: Any) -> str | None:
    """The id of a message that claims to be a submission, empty if it has none; ``None`` for any other message."""
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    if headers.get("task") == SUBMIT_TASK:
        task_id = headers.get("id")
    else:
        decoded = getattr(message, "_decoded_cache", None)  # protocol 1, if it could be decoded
        if "task" in headers or not isinstance(decoded, Mapping) or decoded.get("task") != SUBMIT_TASK:
            return None
        task_id = decoded.get("id")
    return task_id if isinstance(task_id, str) else ""


def headers_of(message: Any) -> Mapping[str, Any]:
    """Its headers. Raises ``UnusableMessage``."""
    headers: object = message.headers
    if not isinstance(headers, Mapping):
        raise UnusableMessage("its headers are no mapping")
    return headers


def read_body(message: Any, limit_bytes: int) -> Any:
    """The decoded body of a message from a broker. Raises ``UnusableMessage``."""
    body = message.body
    size = len(body) if isinstance(body, str | bytes | bytearray | memoryview) else 0
    if size > limit_bytes:
        raise UnusableMessage("its body is too large", f"{size} bytes, expected at most {limit_bytes}")
    if headers_of(message).get("compression"):
        raise UnusableMessage("its body is compressed", "send it as it is")
    if message.content_type not in JSON_TYPES:
        raise UnusableMessage(
            "its body cannot be decoded",
            f"the content type is {shown_type(message.content_type)}, expected application/json",
        )
    encoding = message.content_encoding
    if encoding and (not isinstance(encoding, str) or encoding.lower() not in TEXT_ENCODINGS):
        raise UnusableMessage(
            "its body cannot be decoded", f"the content encoding is {_type_of(encoding)}, expected utf-8"
        )
    try:
        return message.decode()
    except Exception as error:  # noqa: BLE001 - nesting, text, numbers, and whatever kombu's own types raise
        raise UnusableMessage("its body cannot be decoded", _why_undecoded(error)) from None


def _why_undecoded(error: BaseException) -> str:
    """The type of an error; its message only where that is known not to quote the body."""
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, json.JSONDecodeError):
        return f"{cause.msg} at character {cause.pos}"
    return type(cause if isinstance(error, DecodeError) else error).__name__


def _checked_name(name: object) -> str:
    if name is None:
        raise UnusableMessage("it names no task")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_TASK_NAME or not name.isprintable():
        raise UnusableMessage(
            f"the name of its task must be a text of 1 to {LONGEST_TASK_NAME} printable characters",
            f"found {_type_of(name)}",
        )
    return name


def _arguments(payload: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of protocol 2, a list of three, or of protocol 1, an object."""
    if isinstance(payload, Mapping):
        args, kwargs = payload.get("args") or [], payload.get("kwargs") or {}
        if "args" not in payload and "kwargs" not in payload:
            raise UnusableMessage("its body is an object without args and kwargs, expected a list of three")
    elif isinstance(payload, list | tuple):
        if len(payload) != 3:
            raise UnusableMessage("its body has another number of parts", f"expected 3, got {len(payload)}")
        args, kwargs = payload[0], payload[1]
    else:
        raise UnusableMessage("its body is no list", f"found {_type_of(payload)}")
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise UnusableMessage(
            "its arguments are no list and mapping", f"found {type(args).__name__} and {type(kwargs).__name__}"
        )
    return tuple(args), kwargs


def _type_of(value: object) -> str:
    """A description of what was found, without any of its content."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, int) and not isinstance(value, bool):
        return "a number out of range"
    return f"a value of type {type(value).__name__}"
