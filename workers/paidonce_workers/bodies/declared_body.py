"""Calls a step's function with the arguments of its claim, in a worker or in a separate child process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from paidonce.declarations.current_step import CurrentStep, executing
from paidonce.declarations.registry import AnyStep
from paidonce.policies.attempt_policies import AttemptPolicies, under_policies
from paidonce.usage.call_recorder import CallRecorder, innermost_tool, recording_into
from paidonce_models.errors import InvalidInput
from paidonce_models.store.steps.claims import Claim
from paidonce_workers.bodies.blocked_attempts import refuse_coroutine, result_not_storable, step_does_not_fit


def run_declared(
    declaration: AnyStep,
    claim: Claim,
    recorder: CallRecorder,
    policies: AttemptPolicies | None,
    call: Callable[[Callable[..., Any], list[object], dict[str, object]], object],
) -> bytes:
    """Decode the arguments, run the body through ``call``, and return its result as encoded JSON.

    Raises ``AttemptBlocked`` where the code does not fit: before the body starts, or with the result it returned.
    """
    try:
        args, kwargs = declaration.parameters.decode_arguments(claim.arguments)
        results = declaration.result_codec  # before the body: do not pay for a result that cannot be stored
    except InvalidInput as error:
        raise step_does_not_fit(declaration, claim, error) from error
    token = executing.set(
        CurrentStep(run_id=claim.run_id, step=claim.position, attempt=claim.attempt, agent=claim.agent, name=claim.name)
    )
    try:
        tool = innermost_tool(declaration.name) if declaration.kind == "tool" else nullcontext()
        with recording_into(recorder), under_policies(policies), tool:
            value = call(declaration.fn, args, kwargs)
    finally:
        executing.reset(token)
    refuse_coroutine(declaration, claim, value)
    try:
        return results.encode_result(value, f"result of step {claim.position} ({claim.name})")
    except Exception as error:  # a type's own code may raise anything, and the value was paid for
        raise result_not_storable(declaration, claim, value, error) from error
