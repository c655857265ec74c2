"""The public names: what ``from paidonce import …`` promises. A name that leaves this list breaks somebody's code."""

from __future__ import annotations

import subprocess
import sys

import paidonce
import paidonce.testing

PUBLIC = {
    *("agent", "step", "tool", "Retry", "current_step", "CurrentStep", "record_usage"),
    "provider_client",
    *("now", "uuid", "random"),
    *("Client", "RunHandle"),
    *("PaidonceError", "InvalidInput", "UnknownAgent", "KeyConflict", "NotSerialisable", "PayloadTooLarge"),
    *("DeclarationError", "ConfigurationError", "StoreUnreachable", "SchemaMismatch", "BrokerUnreachable"),
    *("RunFailed", "RunCancelled", "RunBlocked", "ResultTimeout", "StepFailed", "StepTimedOut"),
    *("CircuitOpen", "CircuitStoreUnreachable"),
}


def test_the_public_names_are_these() -> None:
    assert set(paidonce.__all__) == PUBLIC
    assert list(paidonce.__all__) == sorted(paidonce.__all__)
    for name in PUBLIC:
        assert getattr(paidonce, name) is not None


def test_the_names_for_testing_are_these() -> None:
    assert set(paidonce.testing.__all__) == {
        *("AgentRun", "AgentTester", "FakeClock", "forbid_nondeterminism", "run_agent"),
    }


def test_importing_paidonce_starts_nothing_and_imports_no_worker() -> None:
    """A web application that only submits must not pay for what workers need."""
    code = (
        "import sys, threading, paidonce; "
        "assert 'paidonce_workers' not in sys.modules and 'flower' not in sys.modules; "
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_every_error_has_a_code_and_survives_json() -> None:
    from paidonce_models.errors import error_from_json, type_registry

    # One that has none of its own is told as the kind that it is one of.
    kinds = [kind for kind in type_registry.values() if kind.__module__ == "paidonce_models.errors"]
    codes = [kind.code for kind in kinds if "code" in vars(kind)]
    assert len(codes) == len(set(codes))
    for kind in type_registry.values():
        if kind.__module__ != "paidonce_models.errors":
            continue
        error = kind("what went wrong", detail=[1, "a"])
        again = error_from_json(error.to_json())
        assert type(again) is kind
        assert (again.message, again.details) == ("what went wrong", {"detail": [1, "a"]})
