"""The folder ``PAIDONCE_HOME``, made where something of it is needed and only there.

With PostgreSQL and a broker of one's own nothing is: such a process writes to no disk, and runs where the root file
system is read-only and its user has no home.
"""

from __future__ import annotations

from pathlib import Path

from paidonce.settings import Settings
from paidonce_models.errors import ConfigurationError
from paidonce_models.private_files import make_private_folder

_SQLITE = "sqlite:///"


def make_home(settings: Settings) -> None:
    """Create it for the SQLite store or the embedded broker. Raises ``ConfigurationError`` naming what to set."""
    wanted = []
    if settings.database_url.startswith(_SQLITE):
        file = Path(settings.database_url.removeprefix(_SQLITE))
        if file.is_relative_to(settings.home):
            wanted.append("the SQLite store (set PAIDONCE_DATABASE_URL for PostgreSQL)")
    if settings.broker_url is None:
        wanted.append("the embedded broker (set PAIDONCE_BROKER_URL for one of your own)")
    if wanted:
        make_folder(settings.home, settings, " and ".join(wanted))


def make_folder(folder: Path, settings: Settings, wanted_for: str) -> None:
    """Create the home, or a folder in it. Raises as above."""
    try:
        make_private_folder(folder, is_ours=True)
    except OSError as error:
        raise ConfigurationError(
            f"PAIDONCE_HOME is {settings.home}, which cannot be created or written: {error.strerror}; it is needed for "
            f"{wanted_for}. Set it to a folder that can be written"
        ) from None
