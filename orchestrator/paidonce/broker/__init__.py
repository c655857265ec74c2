"""The broker: addresses, the Celery app, publishing, transports that survive every message."""
