"""The quickstart's agent, as it stands there."""

from __future__ import annotations

import types

import pytest

from paidonce.testing import AgentTester
from tests.docs.readme_file import example

pytestmark = pytest.mark.slow


def test_the_agent_of_the_quickstart_survives_every_crash() -> None:
    module = types.ModuleType("hello_agents")
    exec(compile(example("hello_agents.py"), "hello_agents.py", "exec"), module.__dict__)
    with AgentTester() as tester:
        run = tester.run_with_every_crash(module.greet, {"words": ["hello", "world"]})
    assert run.result == "HELLO WORLD"
    assert run.executions.total() == 3
