"""Names of queues: as the store keeps them, and as the broker sees them, which is where namespaces are told apart.

Owns both and the way between them. In the store a queue is ``paidonce.x`` whatever the namespace, for each row says
its namespace beside it. On a broker that several namespaces share nothing else does, so the name says it:

    namespace    in the store        on the broker
    default      paidonce.x          paidonce.x
    shop         paidonce.x          paidonce@shop:x

No two pairs of namespace and queue have one name there: those of ``default`` begin with ``paidonce.``, which no other
does, and a namespace holds no colon, so that the first colon ends it, whatever characters the queue's name has.
Everything else of a namespace on a broker (``broker_scope`` and a word after a dot) begins like that and holds no
colon, so that it is no queue's name either.
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
"""What kombu keeps on Redis beside the queues; without a namespace's own its submissions would be given to others."""


def is_reserved(queue: str) -> bool:
    """Whether a queue of that name would be kept under a key that holds something else on Redis."""
    return full_queue_name(queue).removeprefix(PREFIX) in UNACKED


def is_namespace(value: str) -> bool:
    """Whether this can name a namespace."""
    return _NAMESPACE.fullmatch(value) is not None


def broker_scope(namespace: str) -> str | None:
    """What everything of a namespace on a broker begins with but its queues; ``None``: the names without any.

    Raises ``ConfigurationError`` for what is no namespace: two teams must never share a name by a slip.
    """
    if not is_namespace(namespace):
        raise ConfigurationError(f"the namespace must have {EXPECTED_NAMESPACE}; found {namespace!r:.100}")
    return None if namespace == DEFAULT_NAMESPACE else f"{_SCOPE}{namespace}"


def broker_queue_name(namespace: str, name: str) -> str:
    """The broker's name of a namespace's queue: of ``x``, ``paidonce.x``, or what is the broker's name already."""
    scope = broker_scope(namespace)
    if scope is None:
        return full_queue_name(name)
    own = f"{scope}:"
    return name if name.startswith(own) else own + full_queue_name(name).removeprefix(PREFIX)


def stored_queue_name(namespace: str, broker_name: str) -> str:
    """The store's name of a queue that this namespace's workers take from the broker."""
    scope = broker_scope(namespace)
    return full_queue_name(broker_name if scope is None else broker_name.removeprefix(f"{scope}:"))


def is_submit_queue(broker_name: str) -> bool:
    """Whether a name on the broker is that of a queue for submissions, of whatever namespace."""
    scope, _, name = broker_name.partition(":")
    return broker_name == SUBMIT_QUEUE or (scope.startswith(_SCOPE) and name == SUBMIT_QUEUE.removeprefix(PREFIX))
