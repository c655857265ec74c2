"""The child process of ``isolation``: reads a claim, runs its body, writes the answer, dies with its parent."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
from typing import Any

from paidonce.module_loading import load_modules
from paidonce.policies import Failure, describe_failure
from paidonce.registry import default_registry
from paidonce.usage import CallRecorder
from paidonce.user_errors import error_of, traceback_of
from paidonce_models.errors import ConfigurationError
from paidonce_models.pricing import PriceBook
from paidonce_workers.capture import install
from paidonce_workers.declared_body import run_declared
from paidonce_workers.isolation import answer_of


def main(answer_descriptor: int) -> None:
    """Run one step and end."""
    claim, modules, provider_hosts, price_rows = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_die_with_parent, name="paidonce-parent-watch", daemon=True).start()
    install(provider_hosts)
    load_modules(modules)
    prices = PriceBook(price_rows)
    recorder = CallRecorder(prices=lambda: prices)
    declaration = default_registry.step(claim.name)

    def run() -> bytes:
        if declaration is None:
            raise ConfigurationError(f"the modules {', '.join(modules)} hold no step {claim.name}")

        def call(fn: Any, args: list[object], kwargs: dict[str, object]) -> object:
            if declaration.is_async:
                return asyncio.run(fn(*args, **kwargs))
            return fn(*args, **kwargs)

        return run_declared(declaration, claim, recorder, None, call)

    def describe(error: BaseException) -> tuple[dict[str, object], str, Failure]:
        # Policies look at the exception's classes, which do not leave this process.
        return error_of(error), traceback_of(error), describe_failure(error)

    answer = answer_of(claim, run, recorder, describe)
    with os.fdopen(answer_descriptor, "wb") as pipe:
        pipe.write(answer)


def _die_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
