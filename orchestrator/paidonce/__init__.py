"""Paidonce: durable, cost-aware LLM agents on Celery. Every finished step is paid once.

from paidonce import agent, step, tool, Client

Modules that are slow to import are imported when one of their names is first used: a module of agents needs no store,
and a web application that only submits needs no decorators.
"""

from threading import RLock
from typing import TYPE_CHECKING

from paidonce.declarations.current_step import CurrentStep, current_step
from paidonce_models.errors import (
    BrokerUnreachable,
    CircuitOpen,
    CircuitStoreUnreachable,
    ConfigurationError,
    DeclarationError,
    InvalidInput,
    KeyConflict,
    NotSerialisable,
    PaidonceError,
    PayloadTooLarge,
    ResultTimeout,
    RunBlocked,
    RunCancelled,
    RunFailed,
    SchemaMismatch,
    StepFailed,
    StepTimedOut,
    StoreUnreachable,
    UnknownAgent,
)

if TYPE_CHECKING:
    from paidonce.agents import agent
    from paidonce.client import Client
    from paidonce.declarations.decorators import step, tool
    from paidonce.policies.retry import Retry
    from paidonce.replay.deterministic_values import now, random, uuid
    from paidonce.run_handle import RunHandle
    from paidonce.runs.many_submissions import Submission
    from paidonce.usage.explicit_usage import record_usage
    from paidonce.usage.provider_clients import provider_client

__all__ = [
    "BrokerUnreachable",
    "CircuitOpen",
    "CircuitStoreUnreachable",
    "Client",
    "ConfigurationError",
    "CurrentStep",
    "DeclarationError",
    "InvalidInput",
    "KeyConflict",
    "NotSerialisable",
    "PaidonceError",
    "PayloadTooLarge",
    "ResultTimeout",
    "Retry",
    "RunBlocked",
    "RunCancelled",
    "RunFailed",
    "RunHandle",
    "SchemaMismatch",
    "StepFailed",
    "StepTimedOut",
    "StoreUnreachable",
    "Submission",
    "UnknownAgent",
    "agent",
    "current_step",
    "now",
    "provider_client",
    "random",
    "record_usage",
    "step",
    "tool",
    "uuid",
]


_importing = RLock()

if not TYPE_CHECKING:  # type checkers must still report names that do not exist
    # ruff: noqa: PLC0415 - imports on demand are made here

    def __getattr__(name):
        """Import a public name on first access (PEP 562), and keep it."""
        # One thread at a time: two that enter an import cycle from two sides (asyncio has one) see half-made modules.
        with _importing:
            return _imported(name)

    def _imported(name):
        match name:
            case "Client" | "RunHandle":
                import paidonce.client as home
            case "agent":
                import paidonce.agents as home
            case "step" | "tool":
                import paidonce.declarations.decorators as home
            case "Submission":
                import paidonce.runs.many_submissions as home
            case "Retry":
                import paidonce.policies.retry as home
            case "now" | "random" | "uuid":
                import paidonce.replay.deterministic_values as home
            case "provider_client":
                import paidonce.usage.provider_clients as home
            case "record_usage":
                import paidonce.usage.explicit_usage as home
            case "client" | "embedded" | "policies" | "settings" | "usage" | "values":
                # Modules that `import paidonce` has always imported.
                import paidonce.client
                import paidonce.embedded
                import paidonce.policies
                import paidonce.settings
                import paidonce.usage
                import paidonce.values  # noqa: F401 - the import sets the attribute

                return globals()[name]
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(home, name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
