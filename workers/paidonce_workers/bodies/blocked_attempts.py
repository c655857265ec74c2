"""Attempts that this code cannot complete through no fault of the dependency: they are blocked, not failed.

Two cases. The body returned a value that cannot be stored: the value was paid for, so it is kept. Or the arguments or
the declaration do not fit, and the body never started. ``AttemptBlocked`` is raised where that is found, in a worker or
in a child process, so it carries plain data only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paidonce.declarations.lazy_results import drop, is_lazy, lazy_message
from paidonce.declarations.registry import AnyStep
from paidonce.user_errors import error_of
from paidonce.values.kept import Kept, keep, keep_encoded
from paidonce.values.signatures import code_hash, result_shape
from paidonce_models.errors import DeclarationError, InvalidInput, ResultNotStorable, StepDoesNotFit
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.payloads.payload_parts import split
from paidonce_models.store.blocking.blocked_steps import BODY, ENCODED, RENDERED, Blocking
from paidonce_models.store.steps.claims import Claim

REMEDY = (
    "The result is kept and not paid for again. Start a worker whose code accepts it (another annotation of the "
    "result, a type that can read it), or supply the result with `paidonce resolve`"
)


@dataclass(frozen=True, kw_only=True)
class BlockedAttempt:
    """The reason in the form that the store keeps, and the result that was kept."""

    reason: str
    error: dict[str, object]
    form: str | None = None
    kept: Kept | None = None
    shape: str = ""
    code: str = ""

    def blocking(self, memory: PayloadMemory | None) -> Blocking:
        """Convert to the store's form."""
        kept = self.kept
        return Blocking(
            reason=self.reason,
            form=self.form,
            kept=None if kept is None else split(kept.data, memory=memory, limit_bytes=len(kept.data)),
            text_only=() if kept is None else kept.text_only,
            shape=self.shape,
            code=self.code,
        )


class AttemptBlocked(Exception):
    """Ends an attempt whose step must be blocked."""

    def __init__(self, blocked: BlockedAttempt) -> None:
        super().__init__(blocked.reason)
        self.blocked = blocked


def result_not_storable(declaration: AnyStep, claim: Claim, value: object, why: BaseException) -> AttemptBlocked:
    """The body returned a value that has no stored form."""
    return _kept(declaration, claim, RENDERED, keep(value), why)


def result_without_room(declaration: AnyStep, claim: Claim, data: bytes, why: BaseException) -> AttemptBlocked:
    """The body returned a value that is larger than allowed."""
    return _kept(declaration, claim, ENCODED, keep_encoded(data), why)


def step_does_not_fit(declaration: AnyStep, claim: Claim, why: InvalidInput, *, shape: str = "") -> AttemptBlocked:
    """The body cannot be called; nothing was paid."""
    error = StepDoesNotFit(
        f"step {claim.position} ({claim.name}, {declaration.place}) of run {claim.run_id} cannot be executed by this "
        f"code: {why.message}. Nothing was paid for it; it continues on a worker whose code fits",
        step=claim.position,
    )
    return AttemptBlocked(
        BlockedAttempt(reason=error.code, error=error_of(error), shape=shape, code=code_hash(declaration.fn))
    )


def not_held(claim: Claim, modules: Sequence[str]) -> AttemptBlocked:
    """A child process that imported the modules afresh does not find the step in them."""
    error = StepDoesNotFit(
        f"step {claim.position} of run {claim.run_id}: the modules {', '.join(modules)} no longer hold a step "
        f"{claim.name}. Nothing was paid for it; it continues on a worker that holds it",
        step=claim.position,
    )
    return AttemptBlocked(BlockedAttempt(reason=error.code, error=error_of(error)))


def refuse_coroutine(declaration: AnyStep, claim: Claim, value: object) -> None:
    """A body that returned a coroutine has not done its work: close the coroutine, never store it."""
    if not is_lazy(value):
        return
    drop(value)
    error = DeclarationError(lazy_message(declaration.fn, type(value).__name__))
    raise step_does_not_fit(declaration, claim, error, shape=BODY)


def _kept(declaration: AnyStep, claim: Claim, form: str, kept: Kept, why: BaseException) -> AttemptBlocked:
    text = getattr(why, "message", None) or f"{type(why).__name__} while it was encoded"
    incomplete = ""
    if kept.text_only:
        shown = ", ".join(kept.text_only[:3])
        incomplete = f" Only a human-readable text of {shown:.300} could be kept."
    error = ResultNotStorable(
        f"step {claim.position} ({claim.name}, {declaration.place}) of run {claim.run_id} returned what this code "
        f"cannot store: {text}. {REMEDY}.{incomplete}",
        step=claim.position,
    )
    return AttemptBlocked(
        BlockedAttempt(
            reason=error.code,
            error=error_of(error),
            form=form,
            kept=kept,
            shape=result_shape(declaration.parameters),
            code=code_hash(declaration.fn),
        )
    )
