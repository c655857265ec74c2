"""What the demo observes: the run's steps in the store, and the requests at the model server.

Reads only, from outside, as any operator could. The two sources are independent: the first is Paidonce's record, the
second is the count of a server that knows nothing of Paidonce.
"""

import json
from dataclasses import dataclass
from datetime import datetime

import httpx

from paidonce_models.database.transactions import Database
from paidonce_models.states import StepState
from paidonce_models.store.queries import AttemptView, StepView, read_attempts, read_step_payloads, read_steps


@dataclass(frozen=True, kw_only=True)
class SeenStep:
    """A step at one moment. Tokens and cost are sums over all its attempts; None is unknown.

    `key` identifies the step at the model server: its `current_step().idempotency_key`.
    """

    position: int
    key: str
    label: str
    is_paid: bool
    state: StepState
    attempts: int
    lost: int
    claimed_at: datetime | None
    finished_at: datetime | None
    outcomes: tuple[str | None, ...]
    tokens: int | None
    cost_nanousd: int | None

    @property
    def is_finished(self) -> bool:
        """Whether its result is in the store, never to be paid for again."""
        return self.state is StepState.SUCCEEDED


class RunObserver:
    """Observes one run; remembers what cannot change any more."""

    def __init__(self, database: Database, namespace: str, run_id: str) -> None:
        """Nothing is read yet."""
        self._database = database
        self._namespace = namespace
        self._run_id = run_id
        self._finished: dict[int, SeenStep] = {}
        self._labels: dict[int, str] = {}

    def steps(self) -> list[SeenStep]:
        """All steps so far, in the order in which the agent requested them."""
        with self._database.read() as connection:
            seen = []
            for view in read_steps(connection, self._namespace, self._run_id):
                step = self._finished.get(view.step)
                if step is None:
                    if view.step not in self._labels:
                        arguments, _ = read_step_payloads(connection, self._run_id, view.step)
                        self._labels[view.step] = label_of(view.name, json.loads(arguments))
                    attempts = read_attempts(connection, self._run_id, view.step)
                    step = _seen(f"{self._run_id}-{view.step}", view, self._labels[view.step], attempts)
                if step.is_finished:
                    self._finished[view.step] = step
                seen.append(step)
        return seen


def _seen(key: str, view: StepView, label: str, attempts: list[AttemptView]) -> SeenStep:
    tokens = [n for a in attempts for n in (a.input_tokens, a.output_tokens) if n is not None]
    costs = [a.cost_nanousd for a in attempts if a.cost_nanousd is not None]
    return SeenStep(
        position=view.step,
        key=key,
        label=label,
        is_paid=view.kind == "step",
        state=StepState(view.state),
        attempts=view.attempts,
        lost=view.lost,
        claimed_at=attempts[-1].claimed_at if attempts else None,
        finished_at=view.finished_at,
        outcomes=tuple(attempt.outcome for attempt in attempts),
        tokens=sum(tokens) if tokens else None,
        cost_nanousd=sum(costs) if costs else None,
    )


def label_of(name: str, arguments: dict[str, object]) -> str:
    """A readable name for this step of `examples.research`."""
    function = name.rpartition(".")[2]
    conversation = arguments.get("conversation")
    if isinstance(conversation, list):
        return f"{function} {1 + sum(turn['role'] == 'assistant' for turn in conversation)}"
    detail = arguments.get("source") or arguments.get("name") or arguments.get("query")
    return f"{function} {detail}" if detail else function


@dataclass(frozen=True, kw_only=True)
class SeenRequest:
    """One completion request at the model server, with the key of the step that sent it; times are epoch seconds."""

    step: str | None
    status: int | None
    arrived_at: float
    is_answered: bool
    delivered: bool
    tokens: int


def requests_at(url: str) -> list[SeenRequest]:
    """Every request that the stand-in model server has received."""
    response = httpx.get(f"{url}/requests", timeout=5)
    response.raise_for_status()
    return [
        SeenRequest(
            step=entry["step"],
            status=entry["status"],
            arrived_at=entry["arrived_at"],
            is_answered=entry["answered_at"] is not None,
            delivered=bool(entry["delivered"]),
            tokens=entry["input_tokens"] + entry["output_tokens"],
        )
        for entry in response.json()["requests"]
    ]
