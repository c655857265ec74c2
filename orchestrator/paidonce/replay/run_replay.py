"""``Machine``: one run's coroutine in this process, fed the run's events one at a time.

A pure function of the event history: the same events give the same commands in the same
order, in every process. It reads no store and writes none; ``advance`` passes it events
and records what it requests.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from paidonce.declarations.declaration import AgentDeclaration, Declaration
from paidonce.declarations.lazy_results import drop, is_lazy, lazy_message
from paidonce.replay.bounds import RunBounds, too_many_steps, too_many_tasks, too_many_timers
from paidonce.replay.commands import CancelStep, Command, Outcome, Schedule
from paidonce.replay.eviction import discard
from paidonce.replay.loop import ReplayLoop
from paidonce.replay.run_errors import cancelled_error, code_does_not_fit, failure_of, too_much_data
from paidonce.replay.tasks import ReplayFuture, ReplayTask
from paidonce.user_errors import error_of
from paidonce_models.errors import (
    BoundReached,
    CodeDoesNotFit,
    DeclarationError,
    HistoryMismatch,
    InvalidInput,
    PaidonceError,
    PayloadTooLarge,
    SliceTooLong,
    TooDeep,
)
from paidonce_models.payloads.documents import Encoded
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.payloads.payload_parts import MAX_PAYLOAD_BYTES
from paidonce_models.states import RunState
from paidonce_models.store.runs.events import Event, EventKind

LATEST_TIMER: Final = 253_370_764_800.0
"""1 January 9999, in seconds since the epoch: the limit of stores and calendars. A later timer is due then."""
DEFAULT_BOUNDS: Final = RunBounds()


class Machine:
    """The coroutine of one run and what it waits for. Belongs to one thread at a time."""

    def __init__(
        self,
        run_id: str,
        declaration: AgentDeclaration[..., Any],
        *,
        depth: int = 0,
        max_depth: int = 10,
        slice_seconds: float = 5.0,
        memory: PayloadMemory | None = None,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        bounds: RunBounds = DEFAULT_BOUNDS,
        has_begun: bool = False,
    ) -> None:
        """``has_begun``: a worker has fed the run its first event before, and accepted its input."""
        self.run_id = run_id
        self._has_begun = has_begun
        self._unfit: list[PaidonceError] = []
        self.memory = memory
        self._max_payload_bytes = max_payload_bytes
        self.declaration = declaration
        self._bounds = bounds
        self.loop = ReplayLoop(most_tasks=bounds.max_tasks, on_too_many_tasks=self._refuse_task)
        self.loop.machine = self  # type: ignore[attr-defined]  # how Invocation and now() find their run
        self.random = random.Random(run_id)  # reproducible by design, no secret
        self.consumed = 0
        self.confirmed = 0
        self.commands: list[Command] = []
        self.open: dict[int, tuple[ReplayFuture, Declaration[..., Any]]] = {}
        self.next_position = 1
        self.outcome: Outcome | None = None
        self._depth = depth
        self._max_depth = max_depth
        self._slice_seconds = slice_seconds
        self._main: ReplayTask | None = None
        self._leaving = False
        self._closing: ReplayTask | None = None
        self._cancel_requested = False
        self._forced = False
        self._exit: dict[str, object] | None = None
        self._calls_in_slice = 0
        self._timers_fired = 0

    # -- called by advance -------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Deliver the next event and run the agent until it blocks.

        Raises ``HistoryMismatch``, ``NotReplayable``, ``SliceTooLong`` or ``BoundReached``;
        then the machine must be discarded.
        """
        if event.seq != self.consumed + 1:
            raise HistoryMismatch(
                f"run {self.run_id}: event {event.seq} follows {self.consumed}; its history has a gap; please report it"
            )
        self.consumed = event.seq
        if self.outcome is not None:
            return
        self._calls_in_slice = 0
        self.loop.deliver_time(event.recorded_at_us / 1e6)
        self._deliver(event)
        self._run()

    def feed_all(self, events: Sequence[Event]) -> None:
        """Feed several, in order; raises as ``feed``."""
        for event in events:
            self.feed(event)

    @property
    def wake_at_us(self) -> int | None:
        """When the agent's earliest timer is due, in microseconds since the epoch."""
        if self.outcome is not None:
            return None
        when = self.loop.next_timer()
        return None if when is None else int(min(when, LATEST_TIMER) * 1e6) + 1

    @property
    def suspended_state(self) -> RunState:
        """The state of a run whose agent blocks here: running if a step can proceed."""
        if any(declaration.kind != "agent" for _, declaration in self.open.values()):
            return RunState.RUNNING
        if self.open or self.loop.next_timer() is not None:
            return RunState.WAITING
        return RunState.BLOCKED

    def confirm(self, seq: int) -> None:
        """Drop the commands up to an event: they are recorded."""
        self.confirmed = max(self.confirmed, seq)
        self.commands = [command for command in self.commands if command.seq > seq]

    @property
    def unconfirmed_position(self) -> int:
        """The first position that is not known to be recorded: requested and unconfirmed, or the next one."""
        asked = (command.position for command in self.commands if isinstance(command, Schedule))
        return next(asked, self.next_position)

    def waits_only_for(self, position: int) -> bool:
        """Whether this step's outcome is the only one that the agent waits for."""
        return len(self.open) == 1 and position in self.open

    def discard(self) -> None:
        """Drop the coroutine without running any of it."""
        discard(self.loop, self.loop.live_tasks())
        self.open.clear()

    # -- called by the agent's code, through Invocation --------------------------

    def note_call(self) -> None:
        """A call was made; it will be scheduled when it is awaited.

        Raises ``TooManySteps`` if this slice has made more calls than the run has left: a million of them, made for
        ``gather``, are stopped here, before they fill the memory.
        """
        self._calls_in_slice += 1
        if self.next_position - 1 >= self._bounds.max_steps or self._calls_in_slice > self._bounds.max_steps:
            self._refuse_step()

    def note_unfit(self, error: PaidonceError) -> None:
        """A call's arguments could not be encoded. If that error ends the agent, its run is blocked, not failed."""
        self._unfit.append(error)

    def schedule(self, declaration: Declaration[..., Any], arguments: Encoded) -> tuple[int, ReplayFuture]:
        """Give the call the run's next position; its future gets the step's recorded outcome."""
        if self.next_position > self._bounds.max_steps:
            self._refuse_step()
        if declaration.kind == "agent" and self._depth + 1 > self._max_depth:
            raise TooDeep(
                f"run {self.run_id}: agent {declaration.name!r} would be nested {self._depth + 1} deep, at most "
                f"{self._max_depth} is allowed; raise PAIDONCE_MAX_DEPTH or flatten the calls"
            )
        if len(arguments) > self._max_payload_bytes:
            too_large = PayloadTooLarge(
                f"run {self.run_id}: the arguments of {declaration.name!r} have {len(arguments):,} bytes, the limit is "
                f"{self._max_payload_bytes:,}; raise PAIDONCE_MAX_PAYLOAD_BYTES, "
                "or store the value elsewhere and pass its address"
            )
            self._unfit.append(too_large)
            raise too_large
        position = self.next_position
        self.next_position += 1
        self.commands.append(Schedule(self.consumed, position, declaration, arguments))
        future = self.loop.create_future()
        self.open[position] = (future, declaration)
        return position, future

    def cancel_step(self, position: int) -> None:
        """The await of a step was cancelled: its later outcome is ignored, on every replay."""
        if self.open.pop(position, None) is not None:
            self.commands.append(CancelStep(self.consumed, position))

    # -- inside --------------------------------------------------------------------

    def _refuse_step(self) -> NoReturn:
        limit = self._bounds.max_steps
        self._refuse(too_many_steps(self.run_id, self.declaration.name, asked=limit + 1, limit=limit))

    def _refuse_task(self) -> NoReturn:
        """Called by the loop; see ``RunBounds.max_tasks``."""
        self._refuse(
            too_many_tasks(
                self.run_id,
                self.declaration.name,
                limit=self._bounds.max_tasks,
                max_steps=self._bounds.max_steps,
            )
        )

    def _refuse(self, error: BoundReached) -> NoReturn:
        """Raise the error in the agent, and block the run with it whatever the agent does about it."""
        if not self.loop.refusals:
            self.loop.refusals.append(error)
        raise error

    def _deliver(self, event: Event) -> None:
        if event.kind is EventKind.STARTED:
            self._start(event)
        elif event.kind is EventKind.TIMER:
            self._timers_fired += 1
            if self._timers_fired > self._bounds.max_timers and not self._cancel_requested:
                raise too_many_timers(self.run_id, self.declaration.name, limit=self._bounds.max_timers)
            self.loop.fire_timers(event.recorded_at_us / 1e6)
        elif event.kind is EventKind.CANCEL:
            self._cancel(event)
        elif event.position is not None:
            self._settle(event.position, event)

    def _start(self, event: Event) -> None:
        try:
            args, kwargs = self.declaration.parameters.decode_arguments(
                event.payload or b"{}", checked=True, from_outside=self._depth == 0
            )
        except InvalidInput as error:
            if isinstance(error, DeclarationError) or self._has_begun or self._depth:
                # The fault is not in what a producer sent: the code has changed, or is inconsistent.
                raise code_does_not_fit(
                    self.run_id, self.declaration, "its input does not fit the code", error
                ) from error
            self.outcome = Outcome(RunState.FAILED, error=error.to_json())
            return
        self._main = self.loop.create_task(self.declaration.fn(*args, **kwargs), name=self.declaration.name)

    def _settle(self, position: int, event: Event) -> None:
        future, declaration = self.open.pop(position, (None, None))
        if future is None or declaration is None or future.done():
            return
        if event.kind is EventKind.STEP_SUCCEEDED:
            where = f"run {self.run_id} step {position} ({declaration.name})"
            try:
                future.set_result(declaration.result_codec.decode(event.payload or b"null", where))
            except Exception as error:
                reason = error.message if isinstance(error, PaidonceError) else type(error).__name__
                raise HistoryMismatch(
                    f"{where}: its recorded result no longer fits the code: {reason}; "
                    "keep the type readable, or give the agent a new version",
                    in_types=True,
                ) from error
        else:
            future.set_exception(failure_of(declaration, position, event))

    def _cancel(self, event: Event) -> None:
        if self._cancel_requested or self._main is None:
            return
        self._cancel_requested = True
        grace = (event.data or {}).get("grace_seconds", 60.0)
        seconds = float(grace) if isinstance(grace, int | float) else 60.0
        self.loop.call_later(seconds, self._force)
        self._main.cancel()

    def _force(self) -> None:
        self._forced = True

    def _run(self) -> None:
        if self.outcome is not None:
            return
        try:
            self._run_slice()
            if self._main is not None and (self._main.done() or self._exit is not None):
                self._leave()
        except SliceTooLong:
            if self.loop.refusals:  # an agent that swallowed the refusal and retried again and again
                raise self.loop.refusals[0] from None
            raise
        if self.loop.refusals:
            raise self.loop.refusals[0]
        if self._forced and self.outcome is None:
            self.outcome = Outcome(
                RunState.CANCELLED, error=cancelled_error("its `finally` took longer than its grace period")
            )
            self.discard()

    def _run_slice(self) -> None:
        """Run until the agent blocks. ``sys.exit()`` in it ends the run as it would end a program, not the worker.

        A ``KeyboardInterrupt`` that Ctrl-C may have raised is a person's and passes through.
        """
        while True:
            try:
                self.loop.run_until_blocked(self._slice_seconds)
                return
            except (SystemExit, KeyboardInterrupt) as error:
                if isinstance(error, KeyboardInterrupt) and ctrl_c_raises_here():
                    raise
                if self._exit is None:
                    self._exit = error_of(error)
                if not self._leaving:
                    return  # the other tasks are cancelled before they continue

    def _leave(self) -> None:
        """Like ``asyncio.run``: cancel the remaining tasks, wait for them, close async generators, then end."""
        if not self._leaving:
            self._leaving = True
            for task in self.loop.live_tasks():
                task.cancel()
            self._run_slice()
        if self._closing is None and not self.loop.live_tasks():
            self._closing = self.loop.create_task(self.loop.shutdown_asyncgens())
            self._run_slice()
        if self._closing is not None and not self.loop.live_tasks():
            self.outcome = self._conclude()

    def _conclude(self) -> Outcome:
        main = self._main
        if self._exit is not None:
            return Outcome(RunState.FAILED, error=self._exit)
        if main is None or main.cancelled():
            if self._cancel_requested:
                return Outcome(RunState.CANCELLED, error=cancelled_error("cancelled on request"))
            return Outcome(
                RunState.FAILED,
                error={
                    "type": "CancelledError",
                    "code": "agent_failed",
                    "message": "the agent let a CancelledError escape that nobody requested; catch it, "
                    "and before Python 3.13 put no asyncio.timeout around a TaskGroup that may fail",
                },
            )
        error = main.exception()
        if error is not None:
            unfit = next((each for each in self._unfit if _is_among(each, error)), None)
            if isinstance(unfit, PayloadTooLarge):
                raise too_much_data(
                    self.run_id, "the arguments of a call are larger than allowed", limit=self._max_payload_bytes
                ) from unfit
            if unfit is not None:
                raise code_does_not_fit(
                    self.run_id, self.declaration, "a call cannot be written down", unfit
                ) from unfit
            return Outcome(RunState.FAILED, error=error_of(error))
        where = f"result of agent {self.declaration.name!r}"
        value = main.result()
        if is_lazy(value):
            drop(value)
            why = DeclarationError(lazy_message(self.declaration.fn, type(value).__name__))
            raise self._does_not_fit("it has not returned a result", why)
        try:
            result = self.declaration.result_codec.encode_result(value, where)
        except Exception as unfit:  # a type's own code may raise anything, and the run has paid for what led here
            raise self._does_not_fit("its result cannot be stored", unfit) from unfit
        if len(result) > self._max_payload_bytes:
            raise too_much_data(self.run_id, f"{where} has {len(result):,} bytes", limit=self._max_payload_bytes)
        return Outcome(RunState.SUCCEEDED, result=result)

    def _does_not_fit(self, what: str, error: Exception) -> CodeDoesNotFit:
        return code_does_not_fit(self.run_id, self.declaration, what, error)


def _is_among(error: BaseException, raised: BaseException) -> bool:
    """Whether an error is the one that was raised, or in its group."""
    if isinstance(raised, BaseExceptionGroup):
        return any(_is_among(error, each) for each in raised.exceptions)
    return raised is error


def ctrl_c_raises_here() -> bool:
    """Whether Python turns Ctrl-C into ``KeyboardInterrupt`` on this thread; a worker's processes turn that off."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    return on_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
