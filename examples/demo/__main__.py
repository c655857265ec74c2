"""`python -m examples.demo`: the research agent survives a SIGKILL, and the bill shows what was not paid twice.

Exits with 1 if a finished step was repeated or if something failed, with 130 after Ctrl-C.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.panel import Panel

from examples.demo.bill import bill_of, print_bill, server_lines
from examples.demo.observation import RunObserver, requests_at
from examples.demo.processes import DemoFailed, Stage
from examples.demo.screen import Screen
from examples.demo.story import Plan, Servers, Story, start_servers
from examples.demo.verdict import Verdict, judge, judge_record
from paidonce import Client
from paidonce.embedded import stop_embedded
from paidonce.settings import load_settings
from paidonce_models.errors import PaidonceError
from paidonce_models.privacy.private_files import make_private_folder
from paidonce_models.states import RunState

QUESTION = (
    "How did the shipping container change world trade, and what did ports and dock workers have to give up for it?"
)
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main() -> int:
    """Set up, play the demo, and clean up whatever happens."""
    plan = _plan()
    console = Console(highlight=False)
    home = Path(".paidonce", "demo", datetime.now(UTC).strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}").absolute()
    make_private_folder(home)
    os.environ["PAIDONCE_HOME"] = str(home)
    try:
        with Stage(home) as stage:
            try:
                return _perform(plan, stage, console)
            finally:
                stage.clear()
                stop_embedded(home)
    except KeyboardInterrupt:
        console.print("Interrupted; every process of the demo has been stopped.")
        return EXIT_INTERRUPTED
    except (DemoFailed, PaidonceError) as failure:
        console.print(f"The demo failed: {failure}", style="bold red", markup=False)
        return EXIT_FAILED


def _perform(plan: Plan, stage: Stage, console: Console) -> int:
    settings = load_settings()
    began = time.monotonic()
    console.print(Panel(plan.question, title="the question", title_align="left", expand=False))
    servers = start_servers(stage, plan.latency_seconds)
    _introduce(servers, console)
    os.environ.update(servers.environment)
    client = Client()
    handle = client.submit("research", {"question": plan.question}, tags={"from": "demo"})
    database = client.database
    try:
        with Screen(console) as screen:
            screen.say(f"Submitted run {handle.id}.")
            story = Story(
                plan=plan,
                stage=stage,
                servers=servers,
                screen=screen,
                observer=RunObserver(database, settings.namespace, handle.id),
                ended=lambda: RunState(handle.state).is_terminal,
            )
            steps = story.play()
        _print_report(handle.result(timeout=1), console)
        requests = [] if servers.counting_url is None else requests_at(servers.counting_url)
        verdict = judge_record(steps) if servers.counting_url is None else judge(steps, requests)
        counted = [] if servers.counting_url is None else server_lines(requests, verdict)
        print_bill(console, [*bill_of(database, handle.id, steps), *counted])
    finally:
        database.close()
    _print_verdict(verdict, time.monotonic() - began, console)
    console.print(
        f"Look again: PAIDONCE_HOME={_shown(settings.home)} {_command()} show {handle.id}",
        style="dim",
        soft_wrap=True,
    )
    return 0 if verdict.holds else EXIT_FAILED


def _plan() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--kill-at", type=int, default=8, metavar="N", help="kill during the N-th paid model call")
    parser.add_argument("--latency", type=float, default=2.5, metavar="SECONDS", help="of the stand-in model")
    parser.add_argument("--limit", type=float, default=240, metavar="SECONDS", help="give up after this long")
    options = parser.parse_args()
    return Plan(
        question=options.question,
        kill_at=options.kill_at,
        latency_seconds=options.latency,
        limit_seconds=options.limit,
    )


def _introduce(servers: Servers, console: Console) -> None:
    model = servers.model_url
    console.print(f"Model server    {model}{'' if servers.counting_url is None else '  (a stand-in that counts)'}")
    console.print(f"Document server {servers.documents_url}")


def _command() -> str:
    """The command line as the reader's shell finds it: by its path if the environment is not activated."""
    return "paidonce" if shutil.which("paidonce") else _shown(Path(sys.executable).parent / "paidonce")


def _print_report(report: object, console: Console) -> None:
    """The agent's result as text, whatever type the client returns."""
    value = report if isinstance(report, Mapping) else vars(report)
    text = f"{value['summary']}\n\n{value['text']}\n\nSources: {', '.join(value['sources'])}"
    console.print(Panel(text, title="the result", title_align="left"))


def _print_verdict(verdict: Verdict, seconds: float, console: Console) -> None:
    for line in (*verdict.repeated, *verdict.unexplained):
        console.print(line, style="bold red", markup=False)
    if verdict.holds:
        console.print(f"No finished step was paid twice. ({seconds:.0f} s)", style="bold green")
    else:
        console.print("The promise was broken.", style="bold red")


def _shown(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


if __name__ == "__main__":
    sys.exit(main())
