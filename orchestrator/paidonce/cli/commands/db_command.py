"""``paidonce db``: the store's schema."""

from __future__ import annotations

import click

from paidonce.cli.connections import open_database
from paidonce.cli.output import json_option, print_json, tell
from paidonce.settings import load_settings
from paidonce_models.database.schema import current_revision, head_revision, upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.errors import SchemaMismatch


@click.group()
def db() -> None:
    """Upgrade the store to this version's schema, or check it."""


@db.command("upgrade")
@json_option
def upgrade_store(as_json: bool) -> None:
    """Upgrade the store of PAIDONCE_DATABASE_URL to this version's schema; safe to repeat and to run concurrently."""
    settings = load_settings()
    database = open_database(settings)
    before = current_revision(database)
    try:
        schema = upgrade(database)
    finally:
        database.close()
    if as_json:
        print_json({"store": _shown(database), "schema": schema, "was": before, "changed": schema != before})
    elif schema == before:
        tell(f"The store {_shown(database)} is at schema {schema} already.")
    else:
        tell(f"The store {_shown(database)} is at schema {schema} now (was {before or 'empty'}).")


@db.command("check")
@json_option
def check_store(as_json: bool) -> None:
    """Check whether the store is at this version's schema; exit code 3 if it is not. Changes nothing."""
    settings = load_settings()
    database = open_database(settings)
    found, expected = current_revision(database), head_revision()
    database.close()
    if found != expected:
        raise SchemaMismatch(
            f"the store {_shown(database)} is at schema {found or '(empty)'}, this version of Paidonce works with "
            f"{expected}; run `paidonce db upgrade`",
            expected=expected,
            found=found,
        )
    if as_json:
        print_json({"store": _shown(database), "schema": found, "matches": True})
    else:
        tell(f"The store {_shown(database)} is at schema {found}, as it should be.")


def _shown(database: Database) -> str:
    return database.shown_url
