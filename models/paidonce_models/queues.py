"""Names of queues: in the store, and on the broker, where they distinguish namespaces.

Owns both and the conversion. In the store a queue is ``paidonce.x`` in any namespace, because each row also has its
namespace. A broker that several namespaces share has only the name, so the name includes the namespace:

    namespace    in the store        on the broker
    default      paidonce.x          paidonce.x
    shop         paidonce.x          paidonce@shop:x

No two pairs of namespace and queue have the same name there: those of ``default`` begin with ``paidonce.``, which no
other does, and a namespace contains no colon, so the first colon ends it, whatever characters the queue's name has.
Everything else of a namespace on a broker (``broker_scope`` and a word after a dot) begins like that and contains no
colon, so that it cannot be a queue's name.
"""

from __future__ import annotations

import re
from typing import Final

from paidonce_models.errors import ConfigurationError

PREFIX: Final = "paidonce."
DEFAULT_QUEUE: Final = "paidonce.default"
SUBMIT_QUEUE: Final = "paidonce.submit"
DEFAULT_NAMESPACE: Final = "default"
LONGEST_NAMESPACE: Final = 64
EXPECTED_NAMESPACE: Final = (
    f"1 to {LONGEST_NAMESPACE} characters: letters and digits of ASCII, after the first one also '.', '_' and '-'"
)

_SCOPE = "paidonce@"
_NAMESPACE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAMESPACE - 1}}}")


def full_queue_name(name: str) -> str:
    """``x`` and ``paidonce.x`` both mean the queue ``paidonce.x``."""
    return name if name.startswith(PREFIX) else PREFIX + name


UNACKED: Final = ("unacked", "unacked_index", "unacked_mutex")
"""Keys that kombu keeps on Redis beside the queues; it would mistake a queue of that name for one of them."""


def is_reserved(queue: str) -> bool:
    """Whether a queue of that name would use a Redis key that holds something else."""
    return full_queue_name(queue).removeprefix(PREFIX) in UNACKED


def is_namespace(value: str) -> bool:
    """Whether this is a valid name of a namespace."""
    return _NAMESPACE.fullmatch(value) is not None


def broker_scope(namespace: str) -> str | None:
    """The prefix of everything of a namespace on a broker except its queues; ``None``: no prefix.

    Raises ``ConfigurationError`` for an invalid namespace: two teams must never share a name by mistake.
    """
    if not is_namespace(namespace):
        raise ConfigurationError(f"the namespace must have {EXPECTED_NAMESPACE}; found {namespace!r:.100}")
    return None if namespace == DEFAULT_NAMESPACE else f"{_SCOPE}{namespace}"


def broker_queue_name(namespace: str, name: str) -> str:
    """The broker's name of a namespace's queue, given as ``x``, ``paidonce.x``, or the broker's name already."""
    scope = broker_scope(namespace)
    if scope is None:
        return full_queue_name(name)
    own = f"{scope}:"
    return name if name.startswith(own) else own + full_queue_name(name).removeprefix(PREFIX)


def stored_queue_name(namespace: str, broker_name: str) -> str:
    """The store's name of a queue that this namespace's workers consume from the broker."""
    scope = broker_scope(namespace)
    return full_queue_name(broker_name if scope is None else broker_name.removeprefix(f"{scope}:"))


def is_submit_queue(broker_name: str) -> bool:
    """Whether this is the broker's name of a queue for submissions, of any namespace."""
    scope, _, name = broker_name.partition(":")
    return broker_name == SUBMIT_QUEUE or (scope.startswith(_SCOPE) and name == SUBMIT_QUEUE.removeprefix(PREFIX))
