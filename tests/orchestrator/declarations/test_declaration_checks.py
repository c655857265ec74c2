"""What is wrong with a declaration is found when a worker starts, all of it, with its place and the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paidonce.configuration.module_loading import load_modules
from paidonce.declarations.declaration_checks import refuse_unfit
from paidonce.declarations.registry import Registry, default_registry
from paidonce_models.errors import ConfigurationError

BROKEN = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from paidonce import agent, step
if TYPE_CHECKING:
    from decimal import Decimal

class Opaque: ...

@dataclass
class Bill:
    total: Decimal

@step
def adds(amount: Decimal) -> str: return ""

@step
def bills(number: int) -> Bill: ...

@step
def opens(path: str) -> Opaque: ...

@step
def defaults(at: int = "now") -> str: return ""

@step
def fine(at: int = 1) -> str: return ""
"""


def test_all_that_is_wrong_is_one_error_with_place_annotation_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_declarations.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_modules(["broken_declarations"])
    registry = Registry()
    for declaration in default_registry.steps:
        if declaration.name.startswith("broken_declarations."):
            registry.add_step(declaration)
    with pytest.raises(ConfigurationError) as caught:
        refuse_unfit(registry)
    adds, bills, opens, defaults = caught.value.details["problems"]  # type: ignore[misc]  # a list
    assert (
        "adds" in adds and "amount: Decimal" in adds and "TYPE_CHECKING" in adds and "broken_declarations.py:" in adds
    )
    assert "bills" in bills and "Bill" in bills and "Decimal" in bills
    assert "opens" in opens and "Opaque" in opens and "dataclass" in opens
    assert "defaults" in defaults and "'at'" in defaults


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("-m", "paidonce.cli", "worker", "broken_declarations"),
        ("-m", "celery", "-A", "paidonce_workers", "worker"),
    ],
)
def test_a_worker_refuses_to_start(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "broken_declarations.py").write_text(BROKEN)
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={
            "PATH": "",
            "PYTHONPATH": str(tmp_path),
            "HOME": str(tmp_path),
            "PAIDONCE_HOME": str(tmp_path / "home"),
            "PAIDONCE_AGENTS": "broken_declarations",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "amount: Decimal" in ended.stderr and "broken_declarations.py:" in ended.stderr
    assert "Traceback" not in ended.stderr
