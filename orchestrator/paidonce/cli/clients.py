"""A client for the commands that submit runs or change them."""

from __future__ import annotations

from paidonce.client import Client
from paidonce.settings import Settings, load_settings


def open_client(settings: Settings | None = None) -> Client:
    """A client whose store responds and has our schema. Raises ``StoreError`` or ``ConfigurationError``."""
    client = Client(settings if settings is not None else load_settings())
    client.database.close()
    return client
