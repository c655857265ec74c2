"""The README's agent: twelve lines, run without a model, and run for real against the stand-in model."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paidonce.embedded import stop_embedded
from paidonce.testing import AgentTester
from tests.docs.readme_file import ROOT, example


@pytest.fixture
def agents() -> Any:
    """The example as a module; its functions are local to this test."""
    module = types.ModuleType("readme_agents")
    exec(compile(example("my_agents.py"), "my_agents.py", "exec"), module.__dict__)
    return module


def test_the_agent_has_twelve_lines_that_fit_the_page() -> None:
    lines = [line for line in example("my_agents.py").splitlines() if line.strip()]
    assert len(lines) == 12
    assert max(map(len, lines)) <= 123


def test_the_agent_survives_every_crash(agents: Any) -> None:
    async def ask(prompt: str) -> str:
        return prompt.partition(" ")[0]

    with AgentTester(fakes={agents.ask: ask}) as tester:
        run = tester.run_with_every_crash(agents.debate, {"topic": "tabs"})
    assert run.result == "Weigh"
    assert run.executions.total() == 3


@pytest.fixture
def model_url() -> Iterator[str]:
    """The stand-in model server."""
    with subprocess.Popen(
        [sys.executable, "-m", "examples.model_server", "--port", "0", "--latency", "0.05"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield f"{process.stdout.readline().split()[-1]}/v1"
        finally:
            process.terminate()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_agent_runs_from_the_command_line_as_shown(model_url: str, tmp_path: Path) -> None:
    (tmp_path / "my_agents.py").write_text(example("my_agents.py"))
    environment = {**os.environ, "OPENAI_BASE_URL": model_url, "OPENAI_API_KEY": "stand-in", "PYTHONWARNINGS": "ignore"}
    program = str(Path(sys.executable).with_name("paidonce"))
    try:
        done = subprocess.run(
            [program, "run", "my_agents.py:debate", "--input", '{"topic": "tabs"}', "--json"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        stop_embedded(tmp_path / ".paidonce")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["state"], document["bill"]["steps_paid"], document["bill"]["calls"]) == ("succeeded", 3, 3)
    assert document["bill"]["cost_usd"] is not None
