"""The one error tree of Paidonce.

    PaidonceError
    ├── InvalidInput                what a caller passed does not fit
    │   ├── UnknownAgent
    │   ├── KeyConflict             the same key with another input
    │   ├── NotSerialisable         a value has no JSON form that is read back unchanged
    │   ├── PayloadTooLarge
    │   └── DeclarationError        a decorator was used on something it cannot hold
    ├── ConfigurationError          settings, modules, policy files
    │   └── ModuleNotLoadable
    ├── StoreError
    │   ├── StoreUnreachable        waited for: no connection, or
    │   │   ├── StoreUnavailable    … the store cannot take this now: full, read-only, out of memory
    │   │   └── StoreDenied         … the store refuses the login
    │   ├── StatementRefused        about one statement or its data; a retry would be refused too
    │   ├── SchemaMismatch          the store has a different schema version
    │   └── IllegalTransition       a state machine was asked for a move it does not have
    ├── BrokerUnreachable
    ├── NotFound                    no such run, step, worker
    ├── ReplayError                 a run cannot continue in this code
    │   ├── HistoryMismatch         recorded history and the code differ
    │   ├── NotReplayable           the agent used something that cannot be replayed
    │   ├── CodeDoesNotFit          a value or a declaration that the agent needs does not fit its code
    │   ├── SliceTooLong            the agent did not block within its time
    │   └── BoundReached            the agent requests more than a run may
    │       ├── TooManySteps
    │       ├── TooManyTimers
    │       ├── TooManyRuns
    │       └── TooMuchData
    ├── RunEnded                    a run a caller waited for did not succeed
    │   ├── RunFailed
    │   ├── RunCancelled
    │   └── RunBlocked
    ├── ResultTimeout               (also a TimeoutError)
    ├── StepFailed                  what an agent sees of a failed step or child run
    │   ├── StepTimedOut            (also a TimeoutError)
    │   └── CircuitOpen             the dependency is known to be down, the call was not made
    ├── CircuitStoreUnreachable     the Redis that breakers share does not respond
    ├── ResultNotStorable           a step's result cannot be stored by its code; it is kept, and not paid for again
    ├── StepDoesNotFit              a step's arguments or declaration do not fit its code; nothing was paid
    ├── TooDeep                     agents nested deeper than allowed
    └── StepInterrupt               raised inside a step's body to stop it; BaseException, see there

Every error has a stable ``code``; its message says what, where, expected and
found, and what to do. Errors survive JSON: ``to_json`` and ``error_from_json``
keep type, message and the declared details.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Self

type_registry: dict[str, type[PaidonceError]] = {}


class PaidonceError(Exception):
    """Something went wrong in Paidonce; the message says how to fix it."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        type_registry[cls.__name__] = cls

    def __init__(self, message: str | None = None, **details: object) -> None:
        text = message if message is not None else " ".join((self.__doc__ or "").split())
        super().__init__(text)
        self.message: str = text
        self.details: dict[str, object] = details

    def to_json(self) -> dict[str, object]:
        """The error as JSON data; ``details`` must hold JSON values only."""
        return {"type": type(self).__name__, "code": self.code, "message": self.message, "details": self.details}


def error_from_json(data: dict[str, object]) -> PaidonceError:
    """Rebuild an error written by ``to_json``; an unknown type becomes a plain ``PaidonceError``."""
    cls = type_registry.get(str(data.get("type")), PaidonceError)
    details = data.get("details")
    error = cls.__new__(cls)
    PaidonceError.__init__(error, str(data.get("message", "")), **(details if isinstance(details, dict) else {}))
    return error


class InvalidInput(PaidonceError):
    """The input does not fit; correct it and try again."""

    code = "invalid_input"
    exit_code = 2


class UnknownAgent(InvalidInput):
    """No agent of that name is known; check the name and the modules that were loaded."""

    code = "unknown_agent"


class KeyConflict(InvalidInput):
    """The key already belongs to a run with another input; use a new key or the same input."""

    code = "key_conflict"


class NotSerialisable(InvalidInput):
    """The value has no JSON form that is read back unchanged; return JSON types, dataclasses or pydantic models."""

    code = "not_serialisable"


class PayloadTooLarge(InvalidInput):
    """The value is larger than the limit; store it elsewhere and pass its address."""

    code = "payload_too_large"


class DeclarationError(InvalidInput):
    """The declaration cannot be used as it is."""

    code = "declaration"


class ConfigurationError(PaidonceError):
    """A setting has a value that cannot be used."""

    code = "configuration"
    exit_code = 2


class ModuleNotLoadable(ConfigurationError):
    """A module that should hold agents or steps could not be imported."""

    code = "module_not_loadable"


class StoreError(PaidonceError):
    """The store refused or failed an operation."""

    code = "store"
    exit_code = 3


class StoreUnreachable(StoreError):
    """The store cannot be reached; check PAIDONCE_DATABASE_URL and that the server runs. Nothing was lost."""

    code = "store_unreachable"


class StoreUnavailable(StoreUnreachable):
    """The store responds but cannot accept this now: full, read-only, out of memory. Nothing was lost."""

    code = "store_unavailable"


class StoreDenied(StoreUnreachable):
    """The store refuses the login, or is no store; check PAIDONCE_DATABASE_URL. Nothing was changed."""


class StatementRefused(StoreError):
    """The store refuses this statement or its data, now and later; the store itself is well."""

    code = "statement_refused"

    @property
    def is_about_data(self) -> bool:
        """Whether other data would be accepted; otherwise the statement does not fit the schema."""
        return bool(self.details.get("about_data", True))


class SchemaMismatch(StoreError):
    """The store has a different schema version; run `paidonce db upgrade`."""

    code = "schema_mismatch"


class IllegalTransition(StoreError):
    """A state machine was asked for a move it does not have; this is a bug in Paidonce."""

    code = "illegal_transition"


class BrokerUnreachable(PaidonceError):
    """The broker cannot be reached; check PAIDONCE_BROKER_URL. What was submitted is stored and continues later."""

    code = "broker_unreachable"
    exit_code = 3


class NotFound(PaidonceError):
    """There is no such thing."""

    code = "not_found"
    exit_code = 4


class ReplayError(PaidonceError):
    """The run cannot continue in this code."""

    code = "replay"
    exit_code = 5


class HistoryMismatch(ReplayError):
    """Recorded history and the code differ; restore the order or give the agent a new version."""

    code = "history_mismatch"


class NotReplayable(ReplayError):
    """The agent used something that cannot be replayed; move it into a @step."""

    code = "not_replayable"


class CodeDoesNotFit(ReplayError):
    """A value or a declaration that the agent needs does not fit its code; correct it, and the run continues."""

    code = "code_does_not_fit"


class SliceTooLong(ReplayError):
    """The agent computed for too long between two awaits; move the work into a @step."""

    code = "slice_too_long"


class SliceEndsProcess(ReplayError):
    """The agent's code between two awaits ends the process it runs in; move what does that into a @step."""

    code = "slice_ends_process"


class BoundReached(ReplayError):
    """The agent requests more than a run may; raise the setting that its message names, or correct the agent."""

    code = "bound_reached"

    @property
    def limit(self) -> int:
        """The limit."""
        value = self.details.get("limit", 0)
        return value if isinstance(value, int) else 0


class TooManySteps(BoundReached):
    """The agent requests more steps than a run may have; raise PAIDONCE_MAX_STEPS, or correct the agent."""

    code = "too_many_steps"


class TooManyTimers(BoundReached):
    """The agent was woken by timers more often than allowed; raise PAIDONCE_MAX_TIMERS, or sleep longer."""

    code = "too_many_timers"


class TooManyRuns(BoundReached):
    """More runs would stand below one root than allowed; raise PAIDONCE_MAX_RUNS, or correct the agents."""

    code = "too_many_runs"


class TooMuchData(BoundReached):
    """A value is larger than allowed; raise PAIDONCE_MAX_PAYLOAD_BYTES, or store it elsewhere and pass its address."""

    code = "too_much_data"


class RunEnded(PaidonceError):
    """The run ended without a result."""

    code = "run_ended"
    exit_code = 5


class RunFailed(RunEnded):
    """The run failed."""

    code = "run_failed"


class RunCancelled(RunEnded):
    """The run was cancelled."""

    code = "run_cancelled"


class RunBlocked(RunEnded):
    """The run cannot continue until its code is corrected; its finished steps are kept."""

    code = "run_blocked"


class ResultTimeout(PaidonceError, TimeoutError):
    """The run did not end within the given time; it continues, so ask again later."""

    code = "result_timeout"
    exit_code = 6


class StepFailed(PaidonceError):
    """A step (or a child run) failed for good. Attributes: ``error_type``, ``error_message``, ``attempts``."""

    code = "step_failed"

    def __init__(self, message: str | None = None, **details: object) -> None:
        super().__init__(message, **details)

    @property
    def error_type(self) -> str:
        """The name of the type of the step's error."""
        return str(self.details.get("error_type", ""))

    @property
    def error_message(self) -> str:
        """The message of the step's error."""
        return str(self.details.get("error_message", ""))

    @property
    def attempts(self) -> int:
        """How many attempts were made."""
        value = self.details.get("attempts", 0)
        return value if isinstance(value, int) else 0


class StepTimedOut(StepFailed, TimeoutError):
    """A step's last attempt ran out of time."""

    code = "step_timed_out"


class CircuitOpen(StepFailed):
    """A call was not made, because the circuit of its dependency is open; try again at ``retry_at``.

    Attributes: ``target``, ``since``, ``retry_at``, ``reason``. It says nothing about the arguments of the call.
    """

    code = "circuit_open"

    @classmethod
    def of(cls, target: str, *, since: datetime | None, retry_at: datetime | None, reason: str) -> Self:
        """The error of one refused call. ``retry_at`` is ``None`` if the circuit stays open until someone closes it."""
        opened = "is open" if since is None else f"has been open since {since.isoformat(timespec='seconds')}"
        ends = (
            "it stays open until it is closed by hand"
            if retry_at is None
            else f"try again at {retry_at.isoformat(timespec='seconds')}"
        )
        return cls(
            f"the circuit of {target} {opened} ({reason}) and nothing was called; {ends}",
            target=target,
            since=None if since is None else since.isoformat(),
            retry_at=None if retry_at is None else retry_at.isoformat(),
            reason=reason,
        )

    @property
    def target(self) -> str:
        """The tool, or ``provider:NAME``, that was not called."""
        return str(self.details.get("target", ""))

    @property
    def reason(self) -> str:
        """Why the circuit is open."""
        return str(self.details.get("reason", ""))

    @property
    def since(self) -> datetime | None:
        """When the circuit left the closed state, by the clock of Redis; ``None`` if unknown."""
        return _moment(self.details.get("since"))

    @property
    def retry_at(self) -> datetime | None:
        """When a call may be permitted again; ``None`` if only a person closes the circuit."""
        return _moment(self.details.get("retry_at"))


def _moment(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


class CircuitStoreUnreachable(PaidonceError):
    """The Redis that shares the circuits cannot be reached; check PAIDONCE_REDIS_URL. Nothing was changed."""

    code = "circuit_store_unreachable"
    exit_code = 3


class ResultNotStorable(PaidonceError):
    """A step returned a result that this code cannot store; it is kept, and other code continues with it."""

    code = "result_not_storable"


class StepDoesNotFit(PaidonceError):
    """A step's arguments or declaration do not fit this code; nothing was paid, and other code continues with it."""

    code = "step_does_not_fit"


class TooDeep(PaidonceError):
    """Agents are nested deeper than allowed; raise PAIDONCE_MAX_DEPTH or flatten the calls."""

    code = "too_deep"


class StepInterrupt(BaseException):
    """Raised inside a step's body to stop it: timeout, cancellation or a worker that shuts down.

    A ``BaseException`` so that a body's ``except Exception`` does not swallow it.
    """
