"""Faults inside a worker, named by the environment: it kills or stops itself at an exact point, once in the fleet.

A test puts this module last into ``PAIDONCE_AGENTS``. ``TEST_FAULTS`` is JSON: a list of
``[point, how many passages first, signal]``; a marker file in ``TEST_FAULTS_FOLDER`` keeps each fault from
happening twice, whatever process comes by. Nothing of this is in the product: the points are wrapped here.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paidonce.broker.publisher import Publisher
from paidonce.runs import advancer as advance
from paidonce.runs import claiming
from paidonce_models.store.commits import committer
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.steps import completion
from paidonce_workers.execution.eager_execution import EagerExecution
from paidonce_workers.execution.executor import Executor
from paidonce_workers.execution.local_delivery import LocalDelivery
from paidonce_workers.recovery import death_watch, heartbeat, sweeper

_lock = threading.Lock()
_passages: dict[str, int] = {}


def reached(point: str) -> None:
    """The worker has come to this point; it may be its last."""
    for name, first, how in json.loads(os.environ.get("TEST_FAULTS", "[]")):
        if name != point:
            continue
        with _lock:
            _passages[point] = _passages.get(point, 0) + 1
            if _passages[point] <= first:
                continue
        try:
            marker = Path(os.environ["TEST_FAULTS_FOLDER"]) / point
            with marker.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.Signals[how])


def around(owner: Any, name: str, *, before: str | None = None, after: str | None = None) -> None:
    """Wrap a function with points before and after it; ``after`` counts only where it came to something."""
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **options: Any) -> Any:
        if before is not None:
            reached(before)
        result = original(*args, **options)
        if after is not None and result is not None:
            reached(after)
        return result

    setattr(owner, name, wrapped)


def around_publishing() -> None:
    """Before and after the hints that follow a commit."""
    original = Publisher.publish

    def publish(self: Publisher, messages: Any) -> int:
        steps = [message for message in messages if isinstance(message, StepMessage)]
        if steps:
            reached("before publishing")
        sent = original(self, messages)
        if os.environ.get("TEST_PUBLISH_TWICE"):
            original(self, messages)
        if steps:
            reached("after publishing")
        return sent

    Publisher.publish = publish  # type: ignore[method-assign]


def around_batches() -> None:
    """Before and after the commit of several runs, which their threads do not know of yet."""
    original = committer.commit_items

    def commit_items(execute: Any, items: Any) -> set[str]:
        if len(items) > 1:
            reached("before the commit of several runs")
        committed = original(execute, items)
        if len(items) > 1:
            reached("after the commit of several runs")
        return committed

    committer.commit_items = commit_items


# The functions that run inside of a transaction: after them and before its commit.
around(claiming, "claim_step", before="before the claim", after="before the claim's commit")
around(claiming, "claim_within_budgets", after="before the commit that reserves or holds")
around(completion, "release", before="before the commit that settles")
around(sweeper, "let_go", after="before the commit that lets a step go")
around(advance, "complete_with_progress", after="before the completion's commit with its advance")
around(advance, "complete_alone", after="before the completion's commit alone")
around(advance, "advance_and_claim", after="before the advance's commit")
around(sweeper, "reclaim_step", after="before the commit that takes a step back")
around(death_watch, "reclaim_step", after="before the commit that takes a step back")
# On PostgreSQL these are items of one statement, which is its own transaction.
around(advance, "together_item", before="before the completion's commit with its advance")
around(advance, "completion_item", before="before the completion's commit alone")
around(advance, "advance_item", before="before the advance's commit")
around(heartbeat, "renew_leases", after="before the heartbeat's commit")
# The functions that have committed when they return.
around(claiming.Claimer, "_claim", after="after the claim's commit")
around(Executor, "_attempt", after="after the body")
around(advance.Advancer, "complete", after="after the completion's commit")
around(advance.Advancer, "advance", after="after the advance's commit")
# A step that is scheduled or claimed for the thread that has completed the last one, which has not begun it.
around(EagerExecution, "keep_claim", before="after the commit that takes a step on")
around(LocalDelivery, "deliver", before="before a step begins where the last one ended")
around(sweeper.Sweeper, "_reclaim", after="after the commit that takes steps back")
around(death_watch.DeathWatch, "_bury", before="after the commit that takes steps back")
around_publishing()
around_batches()
