"""Reads docker-compose.yml as far as the tests need: commands, environment, healthchecks.

Owns the interpolation of ``${NAME:-default}``; what else Compose can do is not used in the file.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # publishes no types

COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


@dataclass(frozen=True)
class Service:
    """One service: ``command`` is None where the image's own is used."""

    name: str
    image: str
    command: list[str] | None
    environment: dict[str, str]
    healthcheck: list[str] | None
    is_built_here: bool


def read_services() -> dict[str, Service]:
    """All services of the file, with every variable at its default."""
    text = _VARIABLE.sub(lambda match: match.group(2), COMPOSE_FILE.read_text(encoding="utf-8"))
    document = yaml.safe_load(text)
    return {name: _service(name, found) for name, found in document["services"].items()}


def _service(name: str, found: dict[str, Any]) -> Service:
    command = found.get("command")
    check = found.get("healthcheck", {}).get("test")
    return Service(
        name=name,
        image=found["image"],
        command=None if command is None else shlex.split(command),
        environment={key: str(value) for key, value in found.get("environment", {}).items()},
        healthcheck=None if check is None else shlex.split(check),
        is_built_here="build" in found,
    )
