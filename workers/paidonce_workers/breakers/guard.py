"""``Guard``: one inline call under its circuit, as a context manager for ``with`` and for ``async with``."""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import Self

from paidonce.policies import BreakerPolicy
from paidonce_models.errors import CircuitOpen
from paidonce_workers.breakers.circuit_decisions import Decider, end_of
from paidonce_workers.breakers.circuit_state import Admission
from paidonce_workers.breakers.outcome import SUCCESS


class Guard:
    """For one call; create another one for the next. A probe is renewed as long as its guard is alive."""

    def __init__(self, decider: Decider, circuit: str, policy: BreakerPolicy, target: str) -> None:
        """``target`` is the name in ``CircuitOpen``."""
        self._decider = decider
        self._circuit = circuit
        self._policy = policy
        self._target = target
        self._admission: Admission | None = None

    def __enter__(self) -> Self:
        """Raises ``CircuitOpen`` if the call may not be made. Blocks this thread on Redis."""
        self._begin(self._decider.admit(self._circuit, self._policy, token=self._new_token(), owner=self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Report the outcome."""
        self._decider.report(self._take(), SUCCESS if error is None else self._decider.outcome_of(error))

    async def __aenter__(self) -> Self:
        """Raises ``CircuitOpen`` if the call may not be made."""
        token = self._new_token()
        self._begin(await self._decider.admit_async(self._circuit, self._policy, token=token, owner=self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Report the outcome, even if the task is cancelled meanwhile."""
        outcome = SUCCESS if error is None else self._decider.outcome_of(error)
        reporting = self._decider.report_soon(self._take(), outcome)
        if not isinstance(error, GeneratorExit):  # a coroutine that is being closed must not await
            await end_of(reporting)

    def _new_token(self) -> str:
        if self._admission is not None:
            raise RuntimeError(f"circuit {self._circuit}: a guard is for one call; create another one for the next")
        return uuid.uuid4().hex

    def _begin(self, admission: Admission) -> None:
        if not admission.is_admitted:
            raise CircuitOpen.of(
                self._target, since=admission.since, retry_at=admission.retry_at, reason=admission.reason
            )
        self._admission = admission

    def _take(self) -> Admission:
        admission, self._admission = self._admission, None
        if admission is None:
            raise RuntimeError("the guard was not entered")
        return admission
