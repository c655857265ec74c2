"""The default Celery pool of a worker: threads whose tasks can time out, be revoked and be drained.

Owns what Celery expects of a pool: accept, success, failure and timeout callbacks,
in an order that acknowledges late and exactly once. The stock threads pool ignores
time limits and ``revoke(terminate=True)`` and swallows whatever a callback raises.
Here limits and revokes interrupt the task (through ``interrupt.TaskScope``, so that
a step's *body* is stopped and the executor around it still completes), and every
failure of a callback is logged.

Must never know the store, leases or steps. A thread that is blocked in C cannot be
stopped; it is reported, and at the end of a drain the process exits without it
(``worker_program``).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency import base, thread
from celery.exceptions import SoftTimeLimitExceeded, Terminated

from paidonce_models.errors import PaidonceError, StepInterrupt
from paidonce_models.privacy.log_texts import failure_of, loggable
from paidonce_workers.bodies.deadlines import Deadlines
from paidonce_workers.bodies.interrupt import Reason, TaskScope, call_interruptibly, current_task_scope
from paidonce_workers.execution.eager_execution import EagerExecution, current_eager_execution
from paidonce_workers.pools.draining import Drain
from paidonce_workers.pools.growing_threads import GrowingThreads
from paidonce_workers.process.worker_parts import worker_parts_of

logger = logging.getLogger(__name__)

DEFAULT_THREADS = 16
MOST_THREADS = 10_000


class TaskExited(PaidonceError):
    """A task raised something that would end a thread or a process; treated as an ordinary failure of that task."""

    code = "task_exited"


class Job:
    """One Celery task in the pool; also the result object through which Celery's request terminates it."""

    def __init__(
        self,
        *,
        name: str,
        call: Callable[[], Any],
        accept_callback: Callable[[int, float], object] | None,
        success_callback: Callable[[Any], object] | None,
        error_callback: Callable[[Any], object] | None,
        timeout_callback: Callable[[bool, float], object] | None,
        soft_limit_seconds: float | None,
        hard_limit_seconds: float | None,
        deadlines: Deadlines,
    ) -> None:
        self.name = name
        self.future: Future[None] = Future()
        self._call = call
        self._accept_callback = accept_callback
        self._success_callback = success_callback
        self._error_callback = error_callback
        self._timeout_callback = timeout_callback
        self._soft_limit_seconds = soft_limit_seconds
        self._hard_limit_seconds = hard_limit_seconds
        self._deadlines = deadlines
        self._scope = TaskScope()
        self._lock = threading.RLock()  # a signal handler may terminate the job that its own thread was inspecting
        self._ended = False
        self._hard_limit_passed = False
        self._handed_back = False
        self._terminated_by: int | None = None

    # The part of an apply result that Celery's Request and its callers use.

    def get(self, timeout: float | None = None) -> None:
        """Wait for the end of the task; ignores its outcome."""
        self.future.result(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the task; returns silently on timeout."""
        wait([self.future], timeout)

    def terminate(self, signal: int) -> None:
        """Stop the task: it was revoked, or the worker shuts down cold. The request has already announced it."""
        with self._lock:
            if self._ended:
                return
            cold_shutdown = bool(getattr(self._request(), "_already_cancelled", False))
            if cold_shutdown:
                self._handed_back = True
            else:
                self._terminated_by = signal
        self._scope.interrupt(Reason.HANDED_BACK if cold_shutdown else Reason.REVOKED)

    # The part that the pool uses.

    def hand_back(self) -> None:
        """Stop the task because the worker is stopping; its message stays with the broker unless the task ends."""
        with self._lock:
            if self._ended:
                return
            self._handed_back = True
        self._scope.interrupt(Reason.HANDED_BACK)

    def run(self) -> None:
        """In a pool thread: accept, call, call back."""
        token = current_task_scope.set(self._scope)
        deadlines = []
        try:
            if self._accept_callback is not None:
                self._call_back(self._accept_callback, os.getpid(), time.monotonic())
            if self._is_stopped_before_it_began():
                return
            if self._soft_limit_seconds is not None:
                deadlines.append(self._deadlines.add(self._soft_limit_seconds, self._pass_soft_limit))
            if self._hard_limit_seconds is not None:
                deadlines.append(self._deadlines.add(self._hard_limit_seconds, self._pass_hard_limit))
            try:
                value = call_interruptibly(self._scope, self._call)
            except BaseException as error:  # noqa: BLE001 - every end of a task is reported to its request
                self._end_with(error)
            else:
                self._end_with_value(value)
        finally:
            for deadline in deadlines:
                deadline.cancel()
            current_task_scope.reset(token)

    def _is_stopped_before_it_began(self) -> bool:
        """A request that is revoked while it waits is terminated on acceptance, when it may not know this job yet."""
        with self._lock:
            if self._terminated_by is not None or self._handed_back:
                return True
        request = self._request()
        return any(getattr(request, name, False) for name in ("_already_revoked", "_already_cancelled"))

    def _request(self) -> object:
        """Celery's request, found through its bound callback: a pool has no other way to it."""
        return getattr(self._accept_callback, "__self__", None)

    def _pass_soft_limit(self) -> None:
        with self._lock:
            if self._ended or self._hard_limit_passed:
                return
        self._scope.interrupt(Reason.TIMED_OUT, SoftTimeLimitExceeded)
        if self._timeout_callback is not None:
            self._call_back(self._timeout_callback, True, self._soft_limit_seconds)

    def _pass_hard_limit(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._hard_limit_passed = True
        self._scope.interrupt(Reason.TIMED_OUT)
        # Now, not when the thread reacts: as under prefork, the request ends at its limit.
        if self._timeout_callback is not None:
            self._call_back(self._timeout_callback, False, self._hard_limit_seconds)

    def _mark_ended(self) -> bool:
        """True if the request still expects to be notified of the end."""
        with self._lock:
            self._ended = True
            return not self._hard_limit_passed

    def _end_with_value(self, value: Any) -> None:
        if not self._mark_ended():
            return
        if self._terminated_by is not None:
            # Announced as revoked; otherwise Celery would announce it as succeeded as well.
            self._report(Terminated(self._terminated_by))
        elif self._success_callback is not None:
            eager = current_eager_execution.get()
            if eager is not None and isinstance(value, tuple) and not value[0]:  # Celery: (failed, value, runtime)
                eager.hold_acknowledgement(self._request())
            self._call_back(self._success_callback, value)

    def _end_with(self, error: BaseException) -> None:
        if not self._mark_ended():
            return
        if self._terminated_by is not None:
            self._report(Terminated(self._terminated_by))
        elif self._handed_back and isinstance(error, StepInterrupt):
            # Not acknowledged: the broker redelivers the message when this connection closes.
            logger.info(
                "%s was interrupted; its message is redelivered", self.name, extra={"event": "task_handed_back"}
            )
        elif isinstance(error, Exception) and not isinstance(error, MemoryError):
            self._report(error)
        else:
            self._report(TaskExited(f"{self.name} raised {failure_of(error)}"))

    def _report(self, error: BaseException) -> None:
        if self._error_callback is None:
            return
        # Never WorkerLostError, as in the stock pool: nothing was lost, and it would requeue the message for ever.
        try:
            raise error
        except BaseException:  # noqa: BLE001 - only to give it a traceback
            info = ExceptionInfo()
        self._call_back(self._error_callback, info)

    def _call_back(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            callback(*arguments)
        except BaseException as error:  # noqa: BLE001 - told by type and place
            logger.error(
                "Celery's %s failed for %s; its message may be redelivered: %s",
                getattr(callback, "__name__", "callback"),
                self.name,
                failure_of(error),
                extra={"event": "pool_callback_failed"},
            )


class _OfThisThread(threading.local):
    """State for a signal handler about the code that it has interrupted."""

    applies = False
    drains_next = False


class TaskPool(thread.TaskPool):  # type: ignore[misc] # Celery publishes no types
    """Threads with time limits, terminate and a bounded drain. Selected by ``worker_program.choose_pool``."""

    limit: int

    def __init__(self, *args: Any, **options: Any) -> None:
        # Not the stock pool's: `--autoscale=4` means a minimum of 0 threads, but there must be one.
        base.BasePool.__init__(self, *args, **options)
        self.limit = max(1, self.limit or 1)
        self.executor = GrowingThreads(self.limit, name="paidonce-worker")
        self.parts = worker_parts_of(self.app)
        self.drain: Drain | None = None
        self._jobs: set[Job] = set()
        self._jobs_lock = threading.RLock()  # a signal handler may interrupt its own thread's hold of it
        self._own = _OfThisThread()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        accept_callback: Callable[[int, float], object] | None = None,
        timeout_callback: Callable[[bool, float], object] | None = None,
        error_callback: Callable[[Any], object] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Job:
        """Run ``target`` in a thread. Limits are in seconds; 0 and ``None`` mean the worker's, as all over Celery."""
        arguments = args or ()
        job = Job(
            # The first two arguments of Celery's trace function are the task's name and id.
            name=loggable("[".join(map(str, arguments[:2])) + "]") if len(arguments) > 1 else repr(target),
            call=partial(target, *arguments, **(kwargs or {})),
            accept_callback=accept_callback,
            success_callback=callback,
            error_callback=error_callback,
            timeout_callback=timeout_callback,
            soft_limit_seconds=soft_timeout or self.options.get("soft_timeout") or None,
            hard_limit_seconds=timeout or self.options.get("timeout") or None,
            deadlines=self.parts.bodies.deadlines,
        )
        self._own.applies = True
        try:
            self._begin(job, current_eager_execution.get())
        finally:
            self._own.applies = False
        if self._own.drains_next:
            self._drain(0.0)
        return job

    def _begin(self, job: Job, eager: EagerExecution[Job] | None) -> None:
        with self._jobs_lock:
            # A message that arrives while the worker stops is not started and not acknowledged.
            if self.drain is None:
                self._jobs.add(job)
                if eager is None:
                    job.future = self.executor.submit(self._run, job)
                else:  # delivered by this thread, in `_deliver_here`
                    eager.following = job

    def _run(self, job: Job) -> None:
        """In a pool thread: execute a message of the broker, and what this thread executes eagerly after it."""
        eager: EagerExecution[Job] = EagerExecution(may_take=self._may_take, seconds=self.parts.eager_seconds)
        token = current_eager_execution.set(eager)
        try:
            self._run_one(job)
            while (following := self._deliver_here(eager)) is not None:
                try:
                    self._run_one(following)
                finally:
                    following.future.set_result(None)
        finally:
            current_eager_execution.reset(token)

    def _may_take(self, queue: str, task: str) -> bool:
        delivery = self.parts.local_delivery
        return self.drain is None and delivery is not None and delivery.may_take(queue, task)

    def _run_one(self, job: Job) -> None:
        try:
            job.run()
        finally:
            with self._jobs_lock:
                self._jobs.discard(job)

    def _deliver_here(self, eager: EagerExecution[Job]) -> Job | None:
        """The job of the next message of eager execution; ``None`` if eager execution is over."""
        kept = eager.take()
        delivery = self.parts.local_delivery
        if kept is None or delivery is None:
            return None
        try:
            delivery.deliver(kept)
        except Exception as error:  # noqa: BLE001 - told by type and place
            logger.error(
                "a step could not start eagerly after the last one; it goes through the broker: %s",
                failure_of(error),
                extra={"event": "local_delivery_failed"},
            )
        following, eager.following = eager.following, None
        if following is None:
            # The worker is stopping, or it failed: the broker has it, or else the sweeper will send it.
            kept.acknowledge(logger, ())
            if self.parts.release_kept is not None:
                self.parts.release_kept(kept)
        return following

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Does nothing: under prefork this kills the child; here Celery next calls ``Job.terminate``, which acts."""

    def jobs(self) -> list[Job]:
        """The jobs that run or wait for a thread."""
        with self._jobs_lock:
            return list(self._jobs)

    def on_stop(self) -> None:
        """Warm shutdown: let tasks end for ``drain_seconds``, then release the rest. Never waits longer."""
        self._drain(self.parts.drain_seconds)

    def on_terminate(self) -> None:
        """Cold shutdown: release everything now."""
        self._drain(0.0)

    def _drain(self, seconds: float) -> None:
        if self._own.applies:
            # Celery drains in its SIGQUIT handler, which has interrupted `on_apply` in this very thread: the locks
            # that it holds, ours and the executor's, would never be released. That handler could not cancel the task
            # that is about to start, hence no waiting for it.
            self._own.drains_next = True
            return
        with self._jobs_lock:
            if self.drain is not None:  # Celery's second call; the drain itself sees a second signal (`hurry`)
                return
            self.drain = Drain(parts=self.parts)
        self.executor.shutdown()
        with self._jobs_lock:
            self._jobs = {job for job in self._jobs if not job.future.cancelled()}
        self.drain.run(self.jobs, seconds)

    def grow(self, n: int = 1) -> None:
        """``--autoscale`` and ``pool_grow``. Raises ``ValueError``, which the remote control sends as its reply."""
        self._resize(_checked_count(n))

    def shrink(self, n: int = 1) -> None:
        """``--autoscale`` and ``pool_shrink``: surplus threads end after their current task. Raises as above."""
        self._resize(-_checked_count(n))

    def _resize(self, more: int) -> None:
        with self._jobs_lock:
            if self.limit + more < 1:
                raise ValueError(f"the pool has {self.limit} thread(s), of which at least one must stay")
            self.limit += more
            self.executor.resize(self.limit)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = base.BasePool._get_info(self)
        info["threads"] = self.executor.count
        info["running"] = [str(key) for key in self.parts.bodies.running()]
        return info


def _checked_count(n: object) -> int:
    """How many threads to add or remove; a broadcast may hold anything."""
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST_THREADS:
        raise ValueError(f"n must be a number from 1 to {MOST_THREADS}")
    return n
