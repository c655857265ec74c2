"""``paidonce drill``: exercises that break things on purpose; they are ``paidonce.drill.cli``'s own.

Owns only the way there: each command that ``paidonce.drill.cli.COMMANDS`` lists appears under ``drill``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

PLACE = "paidonce.drill.cli"


class DrillGroup(click.Group):
    """The exercises there are; none where the package is left out."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return sorted(_exercises())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them, or ``None``."""
        return _exercises().get(cmd_name)


@click.group(cls=DrillGroup)
def drill() -> None:
    """Break things on purpose and count what it costs."""


def _exercises() -> Mapping[str, click.Command]:
    try:
        commands: Mapping[str, click.Command] = importlib.import_module(PLACE).COMMANDS
    except ModuleNotFoundError as error:
        if error.name not in (PLACE, PLACE.rpartition(".")[0]):
            raise
        return {}
    return commands
