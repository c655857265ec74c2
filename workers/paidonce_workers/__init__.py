"""The worker: leases, bodies, sweeping, and the Celery app.

``celery -A paidonce_workers worker`` finds its app here. The app is built on first
access, with the modules that ``PAIDONCE_AGENTS`` names.
"""

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    if name in {"app", "celery"}:
        # Made on demand, so that importing a part of this package starts no broker.
        from paidonce_workers.startup.worker_app import the_app  # noqa: PLC0415

        return the_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
