"""What a worker sends to its isolation host: first the settings, pickled, then one JSON document per line."""

from __future__ import annotations

import json
from dataclasses import dataclass

from paidonce.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Claim and execute this step, if it still waits. A lost order costs a delay, like a lost message."""

    run_id: str
    position: int
    name: str
    agent: str


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The first message to a host."""

    settings: Settings
    at_once: int
    log_level: int


def order_line(order: Order) -> bytes:
    """The order as a line."""
    return _line({"run": order.run_id, "step": order.position, "name": order.name, "agent": order.agent})


def drain_line(seconds: float) -> bytes:
    """Drain: give bodies so many seconds to end, then release the rest."""
    return _line({"drain": seconds})


def read_order(line: bytes) -> Order | float:
    """Parse a line: an order, or the seconds of a drain."""
    said = json.loads(line)
    if "drain" in said:
        return float(said["drain"])
    return Order(run_id=said["run"], position=said["step"], name=said["name"], agent=said["agent"])


def _line(said: dict[str, object]) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
