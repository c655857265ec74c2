"""The help texts and the pages that list them."""

from __future__ import annotations

import click
import pytest

from paidonce.cli.exit_codes import MEANINGS
from paidonce.cli.program import COMMANDS, program
from paidonce_models.errors import type_registry
from tests.cli.reference import DOCS, command_paths, generated, help_of, with_part


@pytest.mark.parametrize(("page", "mark"), generated().keys())
def test_the_pages_say_what_the_code_says(page: str, mark: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert with_part(text, mark, generated()[page, mark]) == text, "bring it up to date: python -m tests.cli.reference"


def test_every_error_has_an_exit_code_that_is_documented() -> None:
    assert {error.exit_code for error in type_registry.values()} <= MEANINGS.keys()


def test_every_listed_command_exists_under_its_name() -> None:
    context = click.Context(program)
    for name in COMMANDS:
        command = program.get_command(context, name)
        assert command is not None and command.name == name


def test_every_command_has_the_json_option() -> None:
    assert [path for path in command_paths() if "--json" not in help_of(path)] == []
