"""The embedded Valkey: a broker that Paidonce starts itself if none is configured, one per home."""

from paidonce.embedded.server import EmbeddedStatus, embedded_status, ensure_embedded_valkey, stop_embedded

__all__ = ["EmbeddedStatus", "embedded_status", "ensure_embedded_valkey", "stop_embedded"]
