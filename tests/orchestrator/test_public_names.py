"""The public names: what ``from paidonce import …`` promises. A name that leaves this list breaks somebody's code."""

from __future__ import annotations

import subprocess
import sys

import pytest

import paidonce
import paidonce.testing

PUBLIC = {
    *("agent", "step", "tool", "Retry", "current_step", "CurrentStep", "record_usage"),
    "provider_client",
    *("now", "uuid", "random"),
    *("Client", "RunHandle", "Submission"),
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


FROM_MANY_THREADS = """
import sys, threading
sys.setswitchinterval(1e-6)
import pytest

import paidonce
from paidonce_models.errors import PaidonceError

errors = []
together = threading.Barrier(12)

def ask(names):
    together.wait()
    try:
        for name in names:
            getattr(paidonce, name)
        {act}
    except BaseException as error:
        errors.append(repr(error))

orders = [("Client", "agent"), ("agent", "step"), ("now", "Client"), ("step", "record_usage")] * 3
threads = [threading.Thread(target=ask, args=(order,)) for order in orders]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit("\\n".join(errors) or 0)
"""
READ_A_BROKER_URL = (
    "from paidonce.configuration.server_urls import check_broker_url; check_broker_url('amqp://localhost', redis=False)"
)


@pytest.mark.slow
@pytest.mark.parametrize("act", ["pass", READ_A_BROKER_URL], ids=["names", "names and settings"])
def test_names_may_be_asked_for_in_many_threads_at_once(act: str) -> None:
    for _ in range(3):
        code = FROM_MANY_THREADS.replace("{act}", act)
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=50)
        assert (done.returncode, done.stderr) == (0, "")


def test_modules_that_import_paidonce_has_always_brought_along_are_there() -> None:
    code = "import paidonce; assert paidonce.settings.load_settings and paidonce.client.Client and paidonce.embedded"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
