"""Records a program on the replay loop and replays a record, also in another process.

    python -m tests.conformance.recording < histories.json

reads a list of histories, replays each from scratch after every prefix of its
events, and prints what differed as a JSON list of sentences.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
from typing import Any

from paidonce.replay.eviction import discard
from paidonce.replay.loop import ReplayLoop
from tests.conformance.programs import PROGRAMS, CallFailed

START_SECONDS = 1_000.0
MOST_EVENTS = 300

History = dict[str, Any]


class Run:
    """One program on one loop, fed with events; the smallest thing that could be called a machine."""

    def __init__(self, program: str) -> None:
        self.loop = ReplayLoop(START_SECONDS)
        self.commands: list[list[Any]] = []
        self.calls: list[tuple[asyncio.Future[Any], Any, bool]] = []
        self.main = self.loop.create_task(self._main(program))
        self.loop.run_until_blocked()

    async def _main(self, program: str) -> Any:
        result = await PROGRAMS[program](self._call)
        left = [task for task in self.loop.live_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        return result

    async def _call(self, name: str, value: Any, *, fail: bool = False) -> Any:
        position = len(self.calls)
        future = self.loop.create_future()
        self.commands.append(["call", position, name, value])
        self.calls.append((future, value, fail))
        try:
            return await future
        except asyncio.CancelledError:
            self.commands.append(["cancel", position])
            raise

    def deliver(self, event: list[Any]) -> None:
        """One event: ``["timer", seconds]`` or ``["completed", seconds, position]``."""
        kind, seconds, *rest = event
        self.loop.deliver_time(seconds)
        if kind == "timer":
            self.loop.fire_timers(seconds)
        else:
            future, value, fail = self.calls[rest[0]]
            if not future.done():  # completed after its cancellation: ignored
                if fail:
                    future.set_exception(CallFailed(f"call {rest[0]} with {value!r}"))
                else:
                    future.set_result(value)
        self.loop.run_until_blocked()

    def state(self) -> list[Any]:
        """Everything that must be the same on replay, as JSON data."""
        outcome: Any = None
        if self.main.done():
            error = self.main.exception()
            outcome = ["failed", repr(error)] if error else ["ended", self.main.result()]
        state = [self.commands, outcome, self.loop.next_timer(), self.loop.next_ordinal(), len(self.loop.live_tasks())]
        copied: list[Any] = json.loads(json.dumps(state))
        return copied


def record(program: str, seed: int) -> History:
    """Run ``program`` to its end with completions and timers in an order drawn from ``seed``."""
    chance = random.Random(f"{program} {seed}")
    run = Run(program)
    seconds = START_SECONDS
    events: list[list[Any]] = []
    states = [run.state()]
    delivered: set[int] = set()
    while not run.main.done():
        assert len(events) < MOST_EVENTS, f"{program} does not end"
        choices: list[list[Any]] = [["completed", n] for n in range(len(run.calls)) if n not in delivered]
        if (when := run.loop.next_timer()) is not None:
            choices.append(["timer", when])
        assert choices, f"{program} waits for nothing: {run.commands}"
        kind, choice = chance.choice(choices)
        if kind == "timer":
            seconds = max(seconds, choice)
            event = [kind, seconds]
        else:
            seconds += chance.choice([0.0, 0.1, 0.7])
            delivered.add(choice)
            event = [kind, seconds, choice]
        run.deliver(event)
        events.append(event)
        states.append(run.state())
    assert run.loop.unhandled == []
    assert run.loop.refusals == []
    return {"program": program, "seed": seed, "events": events, "states": states}


def replay(history: History) -> list[str]:
    """What differs when ``history`` is replayed from scratch up to each of its events."""
    events = history["events"]
    for crash in range(len(events) + 1):
        run = Run(history["program"])
        for number, event in enumerate([None, *events[:crash]]):
            if event is not None:
                run.deliver(event)
            found, expected = run.state(), history["states"][number]
            if found != expected:
                what = f"{history['program']} (seed {history['seed']}), crashed after {crash}, event {number}"
                return [f"{what}: recorded {expected}, replayed {found}"]
        discard(run.loop, [run.main])
    return []


def main() -> None:
    """Replay what comes on standard input, with other memory addresses and collections at other moments."""
    chance = random.Random()
    ballast = [bytearray(chance.randrange(1, 2_000)) for _ in range(20_000)]
    chance.shuffle(ballast)
    del ballast[::2]
    gc.set_threshold(chance.randrange(3, 50))
    differences = [difference for history in json.load(sys.stdin) for difference in replay(history)]
    json.dump(differences, sys.stdout)


if __name__ == "__main__":
    main()
