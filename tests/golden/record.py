"""Records golden histories that are not there yet: ``python -m tests.golden.record [NAME…]``.

Refuses to write over one that is there; see the package for why.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from paidonce.declarations.registry import default_registry
from paidonce.testing import AgentTester
from paidonce_models.store.runs.events import read_events
from paidonce_models.store.runs.runs_head import read_head
from paidonce_models.store.simulation import family_of
from tests.golden import agents
from tests.golden.history import History, event_to_json, replay

FOLDER = Path(__file__).parent / "histories"
SLOW = {agents.slow: timedelta(seconds=20), agents.echo: timedelta(milliseconds=30)}

RECORDED: Mapping[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "sequence": (agents.sequence, {"count": 6}, {}),
    "gather": (agents.gathers, {"words": list("abcde")}, {}),
    "group": (agents.group, {}, {}),
    "first_completed": (agents.first_completed, {}, {}),
    "as_completed": (agents.as_completed, {}, {}),
    "timeout": (agents.timeouts, {}, {}),
    "sleep": (agents.sleeps, {}, {}),
    "failures": (agents.failures, {}, {}),
    "family": (agents.family, {}, {}),
    "draws": (agents.draws, {}, {}),
    "cancelled": (agents.cancelled, {"name": "n"}, {"cancel_after": 1}),
    "values": (agents.values, {"question": "q", "limit": 2}, {}),
    "tools_of_asyncio": (agents.tools_of_asyncio, {}, {}),
}
"""Name to agent, input, and how the tester is to run it."""


def record(name: str) -> list[History]:
    """Run the agent in a simulation; the histories of the run and of its children."""
    declaration, given, options = RECORDED[name]
    with AgentTester(durations=SLOW, seed=random.Random(name).randrange(1_000)) as tester:
        run = tester.run(declaration, given, **options)
        histories: list[History] = []
        with tester.database.read() as connection:
            for run_id in family_of(connection, run.run_id):
                head = read_head(connection, "default", run_id)
                if head is None:
                    raise LookupError(run_id)
                events = [e for e in read_events(connection, head.namespace, run_id, 0) if e.seq <= head.consumed_seq]
                held = default_registry.known_agent(head.agent)
                histories.append(
                    {
                        "run_id": run_id,
                        "agent": head.agent,
                        "depth": head.depth,
                        "state": head.state.value,
                        "events": [event_to_json(event) for event in events],
                        "told": replay(held, run_id, head.depth, events),
                    }
                )
    return histories


def main(names: list[str]) -> int:
    """Record the named ones, or all that are missing."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or [each for each in RECORDED if not (FOLDER / f"{each}.json").exists()]:
        file = FOLDER / f"{name}.json"
        if file.exists():
            print(f"{file} is there: a history is never recorded again; give the new one another name", file=sys.stderr)
            return 1
        document = {"python": "{}.{}".format(*sys.version_info[:2]), "runs": record(name)}
        file.write_text(json.dumps(document, indent=1, ensure_ascii=True) + "\n")
        print(f"recorded {file.name} on Python {document['python']}: {len(document['runs'])} run(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
