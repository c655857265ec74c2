"""What happens in the demo, in order: start, watch, kill, wait, recover, compare.

Owns only the plot. `processes` manages processes, `observation` reads, `screen` shows, `verdict` compares, and the bill
is Paidonce's own.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from examples.demo.observation import RunObserver, SeenStep, requests_at
from examples.demo.processes import Child, Deadline, DemoFailed, Stage
from examples.demo.screen import Screen
from paidonce_models.states import StepState

POLL_SECONDS = 0.1
INTO_THE_CALL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The demo's options."""

    question: str
    kill_at: int
    latency_seconds: float
    limit_seconds: float


@dataclass(frozen=True, kw_only=True)
class Servers:
    """The servers that the agent uses. `counting_url` is None if another model server is used."""

    model_url: str
    counting_url: str | None
    documents_url: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a worker."""
        return {
            "OPENAI_BASE_URL": self.model_url,
            "OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY") or "stand-in",
            "RESEARCH_DOCUMENTS_URL": self.documents_url,
        }


def start_servers(stage: Stage, latency_seconds: float) -> Servers:
    """Start the document server, and the stand-in model unless OPENAI_BASE_URL names a server."""
    documents_url = stage.start_server("document server", "examples.document_server")
    given = os.environ.get("OPENAI_BASE_URL")
    if given:
        return Servers(model_url=given, counting_url=None, documents_url=documents_url)
    url = stage.start_server("model server", "examples.model_server", "--latency", str(latency_seconds))
    return Servers(model_url=f"{url}/v1", counting_url=url, documents_url=documents_url)


def start_worker(stage: Stage, name: str, servers: Servers) -> Child:
    """`paidonce worker examples.research`, as on any machine."""
    command = [str(Path(sys.executable).with_name("paidonce")), "worker", "examples.research"]
    return stage.start(name, command, servers.environment)


class Story:
    """The demo from the submission of its run on."""

    def __init__(
        self,
        *,
        plan: Plan,
        stage: Stage,
        servers: Servers,
        screen: Screen,
        observer: RunObserver,
        ended: Callable[[], bool],
    ) -> None:
        """`ended` returns whether the run has ended."""
        self._plan = plan
        self._stage = stage
        self._servers = servers
        self._screen = screen
        self._observer = observer
        self._ended = ended
        self._deadline = Deadline(plan.limit_seconds)

    def play(self) -> list[SeenStep]:
        """Play it; returns the steps as they are at the end."""
        worker = start_worker(self._stage, "worker 1", self._servers)
        self._screen.say(f"Worker 1 is process {worker.pid}.")
        self._watch(worker, f"paid call {self._plan.kill_at}", self._is_in_the_chosen_call)
        worker.kill()
        killed_at = datetime.now(UTC)
        self._screen.mark_kill()
        cut_off = [step for step in self._observer.steps() if step.state is StepState.RUNNING]
        names = ", ".join(step.label for step in cut_off if step.is_paid) or "nothing, between two calls"
        self._screen.say(f"SIGKILL to worker 1 (process {worker.pid}), in the middle of: {names}", "bold red")
        successor = start_worker(self._stage, "worker 2", self._servers)
        self._screen.say(f"Worker 2 is process {successor.pid}. It sees that worker 1 is dead and reclaims its step.")
        positions = {step.position for step in cut_off}
        self._watch(successor, "the recovery", lambda steps: _are_claimed_again(steps, positions))
        waited = (datetime.now(UTC) - killed_at).total_seconds()
        finished = sum(step.is_finished and step.is_paid for step in self._observer.steps())
        self._screen.say(
            f"Recovered {waited:.1f} s after the kill. {finished} paid steps were not repeated.", "bold green"
        )
        self._watch(successor, "the end of the run", lambda steps: self._ended())
        steps = self._observer.steps()
        self._screen.show(steps)
        return steps

    def _watch(self, worker: Child, waiting_for: str, is_reached: Callable[[Sequence[SeenStep]], bool]) -> None:
        """Show the steps until a condition is reached."""
        while True:
            steps = self._observer.steps()
            self._screen.show(steps)
            if is_reached(steps):
                return
            if self._ended():
                raise DemoFailed(f"the run ended while the demo waited for {waiting_for}")
            self._deadline.check(waiting_for, worker)
            time.sleep(POLL_SECONDS)

    def _is_in_the_chosen_call(self, steps: Sequence[SeenStep]) -> bool:
        """Whether the model is processing a call with enough paid calls before it to make the kill interesting."""
        paid = [step for step in steps if step.is_paid]
        running = [step for step in paid if step.state is StepState.RUNNING and step.claimed_at is not None]
        if sum(step.is_finished for step in paid) < self._plan.kill_at - 1 or not running:
            return False
        now = datetime.now(UTC)
        into_call = [
            s for s in running if s.claimed_at and (now - s.claimed_at).total_seconds() > INTO_THE_CALL_SECONDS
        ]
        if not into_call or self._servers.counting_url is None:
            return bool(into_call)
        return any(not request.is_answered for request in requests_at(self._servers.counting_url))


def _are_claimed_again(steps: Sequence[SeenStep], positions: set[int]) -> bool:
    return all(step.attempts > 1 for step in steps if step.position in positions)
