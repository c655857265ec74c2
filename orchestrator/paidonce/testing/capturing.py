"""Usage capture around a simulated body, as in a worker.

The capture belongs to the workers, and imports point from there to here: it is
asked for by its name, which is part of the same installation.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager


def capturing() -> AbstractContextManager[None]:
    """Requests to providers in this block are recorded; with no hosts but the well-known ones."""
    capture: AbstractContextManager[None] = importlib.import_module("paidonce_workers.capture").capturing()
    return capture
