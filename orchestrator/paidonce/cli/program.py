"""The program ``paidonce``: its commands, each imported when it is called, and what an error looks like.

An error of ours is one line and an exit code; anything else is a bug and shows its traceback, without the words of
exceptions that may quote what was handed over. With ``--json`` there is a document on standard output either way.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from paidonce.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE, MEANINGS
from paidonce.cli.output import (
    configure_logging,
    error_document,
    foreign_error_document,
    interruption_document,
    print_json,
    say,
    say_error,
)
from paidonce_models.errors import PaidonceError
from paidonce_models.log_texts import cause_of
from paidonce_models.safe_logs import safe_trace
from paidonce_models.visible_text import visible, visible_lines

FULL_OR_BROKEN_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@dataclass(frozen=True)
class CommandPlace:
    """Where a command is defined, and its line in the list of commands."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "run": CommandPlace(
        "paidonce.cli.run_command", "run", "Run an agent here, with a worker of its own if none is up."
    ),
    "worker": CommandPlace("paidonce.cli.worker_command", "worker", "Start a worker that holds these modules."),
    "submit": CommandPlace("paidonce.cli.submit_command", "submit", "Submit a run; workers take it from there."),
    "runs": CommandPlace("paidonce.cli.runs_command", "runs", "List runs, the newest first."),
    "show": CommandPlace("paidonce.cli.show_command", "show", "Show a run and its steps, or one step's attempts."),
    "costs": CommandPlace("paidonce.cli.costs_command", "costs", "Show what was spent, by whatever is asked."),
    "bill": CommandPlace("paidonce.cli.bill_command", "bill", "Show what one run cost, step by step and call by call."),
    "cancel": CommandPlace("paidonce.cli.cancel_command", "cancel", "Ask a run to end."),
    "resolve": CommandPlace(
        "paidonce.cli.resolve_command", "resolve", "Say what came of a step whose outcome nobody knows."
    ),
    "budget": CommandPlace("paidonce.cli.budget_command", "budget", "Limit what runs may spend, and see the limits."),
    "breakers": CommandPlace(
        "paidonce.cli.breakers_command", "breakers", "Look at the fleet's circuit breakers, or move one by hand."
    ),
    "prices": CommandPlace("paidonce.cli.prices_command", "prices", "List, set or import one's own prices."),
    "policies": CommandPlace(
        "paidonce.cli.policies_command", "policies", "Check the policy file, and see what holds for a tool."
    ),
    "db": CommandPlace("paidonce.cli.db_command", "db", "Bring the store to this version's schema, or check it."),
    "broker": CommandPlace("paidonce.cli.broker_command", "broker", "Look at the embedded broker, or stop it."),
    "drill": CommandPlace("paidonce.cli.drill_command", "drill", "Break things on purpose and count what it costs."),
}


_EXTRA_ARGUMENTS = re.compile(r"(?s)(Got unexpected extra arguments?) \(.*\)")


class LazyGroup(click.Group):
    """A group that imports a command when it is called, so that ``paidonce --help`` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a new user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; ``None`` if there is none of that name."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        command: click.Command = getattr(importlib.import_module(place.module), place.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands from their summaries, then the exit codes."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.summary) for name, place in COMMANDS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in MEANINGS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paidonce", message="%(prog)s %(version)s")
def program() -> None:
    """LLM agents as Celery tasks: every finished step is paid once.

    Settings come from PAIDONCE_* in the environment, .env, or [tool.paidonce] in pyproject.toml.
    """


def main() -> None:
    """The entry point of ``paidonce``; ends the process with the exit code."""
    configure_logging()
    sys.exit(run_program(sys.argv[1:]))


def run_program(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors have been printed."""
    as_json = "--json" in arguments
    try:
        code = program.main(args=list(arguments), prog_name="paidonce", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except click.ClickException as error:
        # An input that the shell has split up arrives as arguments that nobody expects: it is not repeated.
        said = _EXTRA_ARGUMENTS.sub(r"\1; quote the input for the shell", error.format_message())
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
            click.echo(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
        say_error(said)
        if as_json:
            print_json(foreign_error_document(error, "usage", visible(said)))
        return error.exit_code if not isinstance(error, click.UsageError) else EXIT_USAGE
    except PaidonceError as error:
        if as_json:
            print_json(error_document(error))
        log = error.details.get("log")
        if isinstance(log, list):  # lines of ours below the message, which holds them too
            say_error(error.message.partition("\n")[0], [str(line) for line in log])
        else:
            say_error(error.message)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as interruption:
        if as_json:
            print_json(interruption_document(interruption))
        say("Interrupted.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever reads our output has gone; the interpreter must not complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in FULL_OR_BROKEN_DISK:
            return _show_bug(error, as_json=as_json)
        message = (
            f"{error.strerror}: {error.filename or 'a file under PAIDONCE_HOME'}; free space on that disk, or mend it"
        )
        if as_json:
            print_json(foreign_error_document(error, "disk", message))
        say_error(message)
        return EXIT_UNAVAILABLE
    except Exception as error:  # noqa: BLE001 - a bug: show everything, and keep the promise of one document
        return _show_bug(error, as_json=as_json)


def _show_bug(error: Exception, *, as_json: bool) -> int:
    """Of an error that is being handled."""
    click.echo(visible_lines(safe_trace(error)), err=True)
    if as_json:
        print_json(foreign_error_document(error, "unexpected", cause_of(error)))
    return EXIT_FAILED
