"""The program ``paidonce``: its commands, each imported when it is called, and what an error looks like.

A Paidonce error is one line and an exit code. Anything else is a bug and shows its traceback, without the text of
exceptions that may quote user data. With ``--json`` there is a document on standard output either way.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence

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
from paidonce_models.privacy.log_texts import cause_of
from paidonce_models.privacy.safe_logs import safe_trace
from paidonce_models.privacy.visible_text import visible, visible_lines

FULL_OR_BROKEN_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


COMMANDS = {
    "run": "Run an agent here, and start a worker for it if none is up.",
    "worker": "Start a worker with these modules.",
    "submit": "Submit a run for the workers to execute.",
    "runs": "List runs, the newest first.",
    "show": "Show a run and its steps, or one step's attempts.",
    "costs": "Show what was spent, grouped as you like.",
    "bill": "Show what one run cost, step by step and call by call.",
    "cancel": "Cancel a run.",
    "resolve": "Settle a step whose outcome is unknown or blocked.",
    "budget": "Limit what runs may spend, and see the limits.",
    "breakers": "Show the fleet's circuit breakers, or open and close one.",
    "prices": "List, set or import your own prices.",
    "policies": "Check the policy file, and show the policy of a tool.",
    "db": "Upgrade the store to this version's schema, or check it.",
    "broker": "Show the embedded broker's status, or stop it.",
    "drill": "Break things on purpose and measure what it costs.",
}
"""The commands in the order in which a new user needs them, with their summaries."""


def command_of(name: str) -> click.Command | None:
    """Import one command and nothing that only others need; ``None`` if no command has that name."""
    # ruff: noqa: PLC0415 - a command pays for its own imports only
    match name:
        case "run":
            from paidonce.cli.commands.run_command import run

            return run
        case "worker":
            from paidonce.cli.commands.worker_command import worker

            return worker
        case "submit":
            from paidonce.cli.commands.submit_command import submit

            return submit
        case "runs":
            from paidonce.cli.commands.runs_command import runs

            return runs
        case "show":
            from paidonce.cli.commands.show_command import show

            return show
        case "costs":
            from paidonce.cli.commands.costs_command import costs

            return costs
        case "bill":
            from paidonce.cli.commands.bill_command import bill

            return bill
        case "cancel":
            from paidonce.cli.commands.cancel_command import cancel

            return cancel
        case "resolve":
            from paidonce.cli.commands.resolve_command import resolve

            return resolve
        case "budget":
            from paidonce.cli.commands.budget_command import budget

            return budget
        case "breakers":
            from paidonce.cli.commands.breakers_command import breakers

            return breakers
        case "prices":
            from paidonce.cli.commands.prices_command import prices

            return prices
        case "policies":
            from paidonce.cli.commands.policies_command import policies

            return policies
        case "db":
            from paidonce.cli.commands.db_command import db

            return db
        case "broker":
            from paidonce.cli.commands.broker_command import broker

            return broker
        case "drill":
            from paidonce.cli.commands.drill_command import drill

            return drill
    return None


_EXTRA_ARGUMENTS = re.compile(r"(?s)(Got unexpected extra arguments?) \(.*\)")


class LazyGroup(click.Group):
    """A group that imports a command when it is called, so that ``paidonce --help`` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a new user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; ``None`` if no command has that name."""
        return command_of(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands from their summaries, then the exit codes."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
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
    """Run one command, print its errors, and return its exit code."""
    as_json = "--json" in arguments
    try:
        code = program.main(args=list(arguments), prog_name="paidonce", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except click.ClickException as error:
        # An input that the shell has split arrives as unexpected arguments, which may be user data: do not repeat it.
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
            f"{error.strerror}: {error.filename or 'a file under PAIDONCE_HOME'}; free space on that disk, or repair it"
        )
        if as_json:
            print_json(foreign_error_document(error, "disk", message))
        say_error(message)
        return EXIT_UNAVAILABLE
    except Exception as error:  # noqa: BLE001 - a bug: show everything, and keep the promise of one document
        return _show_bug(error, as_json=as_json)


def _show_bug(error: Exception, *, as_json: bool) -> int:
    """Must be called while the error is being handled."""
    click.echo(visible_lines(safe_trace(error)), err=True)
    if as_json:
        print_json(foreign_error_document(error, "unexpected", cause_of(error)))
    return EXIT_FAILED
