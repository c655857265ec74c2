"""The parts of the documentation that the code writes. ``python -m tests.cli.reference`` puts them into ``docs/``."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import click
from click.testing import CliRunner

from paidonce.cli.exit_codes import MEANINGS
from paidonce.cli.program import COMMANDS, program
from paidonce.policies.durations import DURATION_EXAMPLES
from paidonce.policies.keys import FIELDS, KEYS, PARTS, default_value, part_of, value_text
from paidonce.policies.matchers import MATCHER_EXAMPLES
from paidonce.settings import describe_settings

DOCS = Path(__file__).parents[2] / "docs"
WIDTH = 100


def command_paths() -> list[tuple[str, ...]]:
    """Every command that can be called, subcommands with their group's name."""
    paths: list[tuple[str, ...]] = []
    context = click.Context(program)
    for name in COMMANDS:
        command = program.get_command(context, name)
        if isinstance(command, click.Group):
            paths += [(name, inner) for inner in sorted(command.list_commands(context))]
        else:
            paths.append((name,))
    return paths


def help_of(path: tuple[str, ...]) -> str:
    """What ``--help`` prints for a command."""
    result = CliRunner().invoke(program, [*path, "--help"], prog_name="paidonce", terminal_width=WIDTH)
    assert result.exit_code == 0, result.output
    return result.output.rstrip()


def reason_of(path: str) -> str:
    """Why a policy's key has its default: what stands below the field in the code."""
    (body,) = ast.parse(inspect.getsource(PARTS[part_of(path)])).body
    assert isinstance(body, ast.ClassDef)
    for field, below in zip(body.body, body.body[1:], strict=False):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and field.target.id == FIELDS[path]:
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant), path
            return " ".join(str(below.value.value).split()).replace("``", "`")
    raise AssertionError(f"no field for {path}")


def policy_key_lines() -> list[str]:
    """The table of a policy's keys: what each may hold, its default, what it does, and why its default is that."""
    lines = ["| key | allowed | default | what it does | why that default |", "|---|---|---|---|---|"]
    for key in KEYS.values():
        allowed = key.allowed.replace(f", {DURATION_EXAMPLES}", "").replace(MATCHER_EXAMPLES, "matchers")
        default, reason = "", ""
        if key.path in FIELDS:
            default, reason = f"`{value_text(key.path, default_value(key.path))}`", reason_of(key.path)
        lines.append(f"| `{key.path}` | {allowed} | {default} | {key.meaning} | {reason} |")
    return lines


def generated() -> dict[tuple[str, str], str]:
    """Each generated part by its page and its mark there."""
    commands = "\n\n".join(
        f"### `paidonce {' '.join(path)}`\n\n```text\n{help_of(path)}\n```" for path in command_paths()
    )
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in MEANINGS.items())
    settings = "\n".join(f"| `{line.name}` | `{line.default}` | {line.meaning} |" for line in describe_settings())
    return {
        ("reference/cli.md", "commands"): commands,
        ("reference/cli.md", "exit codes"): f"| code | meaning |\n|---|---|\n{codes}",
        ("reference/policies.md", "keys"): "\n".join(policy_key_lines()),
        ("reference/settings.md", "settings"): f"| name | default | meaning |\n|---|---|---|\n{settings}",
    }


def with_part(page: str, mark: str, part: str) -> str:
    """The page with what stands between the mark's two lines replaced. Fails where the mark is missing."""
    pattern = re.compile(rf"(<!-- begin {re.escape(mark)} -->\n).*?(<!-- end {re.escape(mark)} -->)", re.DOTALL)
    assert pattern.search(page), f"the page has no mark {mark!r}"
    return pattern.sub(lambda found: f"{found[1]}{part}\n{found[2]}", page)


def main() -> None:
    """Bring the pages up to date."""
    for (page, mark), part in generated().items():
        path = DOCS / page
        path.write_text(with_part(path.read_text(encoding="utf-8"), mark, part), encoding="utf-8")


if __name__ == "__main__":
    main()
