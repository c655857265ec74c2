"""Celery's configuration of our app, independent of the environment.

``CELERY_BROKER_URL``, ``CELERY_CONFIG_MODULE`` and the like belong to a team's own Celery app, but Celery applies them
to every app of the process: our worker would consume from another broker than producers publish to. Here they are
ignored. Paidonce is configured by ``PAIDONCE_*``.
"""

from __future__ import annotations

from typing import Any

from celery.app.utils import Settings
from celery.loaders.app import AppLoader


class OwnLoader(AppLoader):  # type: ignore[misc]  # Celery publishes no types
    """Celery's loader of an app, without a configuration module."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:
        """Nothing, whatever ``CELERY_CONFIG_MODULE`` names."""
        del env
        return {}


class OwnSettings(Settings):  # type: ignore[misc]  # Celery publishes no types
    """Celery's settings, as this process has set them."""

    @property
    def broker_url(self) -> Any:
        """Not ``CELERY_BROKER_URL``."""
        return self.first("broker_url", "broker_host")

    @property
    def broker_read_url(self) -> Any:
        """Not ``CELERY_BROKER_READ_URL``."""
        return self.get("broker_read_url") or self.broker_url

    @property
    def broker_write_url(self) -> Any:
        """Not ``CELERY_BROKER_WRITE_URL``."""
        return self.get("broker_write_url") or self.broker_url

    @property
    def result_backend(self) -> Any:
        """Not ``CELERY_RESULT_BACKEND``."""
        return self.first("result_backend")
