"""What a worker says to its isolation host: first its settings, pickled, then one JSON document a line."""

from __future__ import annotations

import json
from dataclasses import dataclass

from paidonce.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Claim this step and execute it, if it still waits. Losing an order costs a delay, like losing a message."""

    run_id: str
    position: int
    name: str
    agent: str


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The first thing that a host is told."""

    settings: Settings
    at_once: int
    log_level: int


def order_line(order: Order) -> bytes:
    """As it is sent."""
    return _line({"run": order.run_id, "step": order.position, "name": order.name, "agent": order.agent})


def drain_line(seconds: float) -> bytes:
    """End: let bodies end for so many seconds, then hand them back."""
    return _line({"drain": seconds})


def read_order(line: bytes) -> Order | float:
    """An order, or the seconds of a drain."""
    said = json.loads(line)
    if "drain" in said:
        return float(said["drain"])
    return Order(run_id=said["run"], position=said["step"], name=said["name"], agent=said["agent"])


def _line(said: dict[str, object]) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
