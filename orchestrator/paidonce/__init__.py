"""Paidonce: durable, cost-aware LLM agents on Celery. Every finished step is paid once.

from paidonce import agent, step, tool, Client
"""

from paidonce.client import Client, RunHandle
from paidonce.current_step import CurrentStep, current_step
from paidonce.decorators import agent, step, tool
from paidonce.determinism import now, random, uuid
from paidonce.provider_clients import provider_client
from paidonce.retry import Retry
from paidonce.usage import record_usage
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
