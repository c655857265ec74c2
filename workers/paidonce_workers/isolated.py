"""The child process of ``isolation``: reads a claim, runs its body, writes the answer, dies with its parent."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from paidonce.module_loading import load_modules
from paidonce.policies import describe_failure
from paidonce.registry import default_registry
from paidonce.usage import CallRecorder
from paidonce.user_errors import error_of, traceback_of
from paidonce_models.errors import ConfigurationError
from paidonce_models.pricing import PriceBook
from paidonce_workers.capture import install
from paidonce_workers.declared_body import run_declared
from paidonce_workers.isolation.child import ErrorInChild, Teller


def main(answers: int) -> None:
    """Run one step and end; ``answers`` is the descriptor of the pipe to the parent."""
    claim, modules, provider_hosts, price_rows = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_die_with_parent, name="paidonce-parent-watch", daemon=True).start()
    install(provider_hosts)
    load_modules(modules)
    prices = PriceBook(price_rows)
    recorder = CallRecorder(prices=lambda: prices)
    teller = Teller(Connection(answers, readable=False), recorder)
    declaration = default_registry.step(claim.name)

    def call(fn: Any, args: list[object], kwargs: dict[str, object]) -> object:
        result = fn(*args, **kwargs)
        return asyncio.run(result) if declaration is not None and declaration.is_async else result

    try:
        if declaration is None:
            raise ConfigurationError(f"the modules {', '.join(modules)} hold no step {claim.name}")
        answer: bytes | ErrorInChild = run_declared(declaration, claim, recorder, None, call)
    except BaseException as error:  # noqa: BLE001 - whatever the body raises is its answer
        answer = ErrorInChild(error_of(error), traceback_of(error), describe_failure(error))
    teller.tell(answer)


def _die_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
