"""Testing agents: one process, a fake clock, no broker, crashes where a test wants them, every run replayed twice.

from paidonce.testing import run_agent

def test_research_survives_a_crash_after_its_second_step():
    run = run_agent(research, {"question": "why?"}, fakes={plan: fake_plan}, crash_after=2)
    assert run.result == ...
    assert run.repeated == []
"""

from paidonce.testing.agent_run import AgentRun
from paidonce.testing.clock import FakeClock
from paidonce.testing.determinism import forbid_nondeterminism
from paidonce.testing.tester import AgentTester, run_agent

__all__ = ["AgentRun", "AgentTester", "FakeClock", "forbid_nondeterminism", "run_agent"]
