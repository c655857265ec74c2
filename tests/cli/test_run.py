"""`paidonce run`: an agent in the foreground with a worker of its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import NOBODY_LISTENS, Project
from tests.services.waiting import wait_until


def test_run_prints_the_result_then_the_bill_and_shows_the_steps_on_standard_error(project: Project) -> None:
    done = project.paidonce("run", "agents.py:adder", "--input", '{"count": 4}', "--tag", "user=u1", "--tag", "a=b=c")
    assert done.code == 0, done.err
    result, _, bill = done.out.partition("\n\n")
    assert json.loads(result) == 6
    assert [line.split()[:2] for line in bill.splitlines()][:2] == [["Bill"], ["steps", "paid"]]
    assert "step 4 agents.add: succeeded" in done.err
    assert "Traceback" not in done.err
    (run,) = project.paidonce("runs", "--json").document
    assert run["tags"] == {"user": "u1", "a": "b=c"}


@pytest.mark.slow
def test_everything_that_was_recorded_can_be_shown_afterwards(project: Project) -> None:
    ran = project.paidonce("run", "agents:family", "--input", "-", "--json", stdin='{"count": 2}')
    assert ran.code == 0, ran.err
    run_id = ran.document["run_id"]
    assert (ran.document["state"], ran.document["result"]) == ("succeeded", 2)
    # The price is the catalogue's; that three equal calls cost three times one call is arithmetic.
    own, tree = ran.document["bill"], ran.document["bill"]["tree"]
    assert (own["steps_paid"], own["input_tokens"], own["output_tokens"], own["child_runs"]) == (1, 1_000, 50, 1)
    assert (tree["steps_paid"], tree["calls"], tree["unpriced_calls"]) == (3, 3, 0)
    assert float(tree["cost_usd"]) == pytest.approx(3 * float(own["cost_usd"]))

    shown = project.paidonce("show", run_id, "--json").document
    assert (shown["run_id"], shown["agent"], shown["state"], shown["result"]) == (run_id, "family", "succeeded", 2)
    assert (shown["error"], shown["tags"], shown["input"], shown["key"]) == (None, {}, {"count": 2}, None)
    assert shown["created_at"].endswith("Z") and shown["finished_at"] > shown["created_at"]
    child, last = shown["steps"]
    assert (child["step"], child["name"], child["kind"], child["state"]) == (1, "adder", "agent", "succeeded")
    assert (last["step"], last["name"], last["kind"], last["attempts"]) == (2, "agents.add", "step", 1)
    assert last["worker"] and last["started_at"] <= last["finished_at"] and last["error"] is None
    assert project.paidonce("show", child["child_run_id"], "--json").document["parent_run_id"] == run_id

    step = project.paidonce("show", run_id, "--step", "2", "--json").document
    assert (step["arguments"], step["result"]) == ({"a": 1, "b": 1}, 2)
    (attempt,) = step["attempts"]
    assert (attempt["number"], attempt["outcome"], attempt["worker"]) == (1, "accepted", last["worker"])
    assert attempt["started_at"] <= attempt["finished_at"]

    assert "agents.add" in project.paidonce("show", run_id).out
    assert "accepted" in project.paidonce("show", run_id, "--step", "2").out


@pytest.mark.slow
def test_a_failed_run_is_one_error_and_its_traceback_is_kept_with_the_attempt(project: Project) -> None:
    # The tool's queue is not the default one: a run of its own has a worker for all queues of its module.
    failed = project.paidonce("run", "agents.py:divides", "--input", '{"a": 1, "b": 0}', "--json")
    assert failed.code == 5
    assert failed.error["code"] == "run_failed"
    assert "ZeroDivisionError" in failed.error["message"]
    assert failed.document["state"] == "failed"
    assert failed.document["bill"]["steps_paid"] == 0
    run_id = failed.document["run_id"]
    step = project.paidonce("show", run_id, "--step", "1", "--json").document
    assert step["error"]["type"] == "ZeroDivisionError"
    assert step["attempts"][0]["outcome"] == "failed"
    assert "return a / b" in step["attempts"][0]["traceback"]
    shown = project.paidonce("show", run_id, "--step", "1")
    assert "return a / b" in shown.out and shown.code == 0


@pytest.mark.slow
def test_the_same_key_gives_the_same_run_and_pays_nothing_again(project: Project) -> None:
    (project.folder / "input.json").write_text('{"count": 1}')
    first = project.paidonce("run", "agents:adder", "--input", "@input.json", "--key", "k", "--json")
    second = project.paidonce("run", "agents:adder", "--input", '{"count":1}', "--key", "k", "--json")
    assert first.code == second.code == 0
    assert first.document == second.document
    other = project.paidonce("run", "agents:adder", "--input", '{"count": 2}', "--key", "k", "--json")
    assert other.code == 2
    assert other.error["code"] == "key_conflict"
    assert '{"count":1}' in other.error["message"] and '{"count":2}' in other.error["message"]


def write_held(project: Project) -> Path:
    """A module ``held`` whose step goes on as long as the file exists that is returned."""
    hold = project.folder / "hold"
    hold.touch()
    (project.folder / "held.py").write_text(
        "import asyncio, os\nfrom paidonce import agent, step\n"
        "@step\nasync def dawdle() -> str:\n"
        f"    while os.path.exists({str(hold)!r}):\n        await asyncio.sleep(0.05)\n"
        "    return 'done'\n"
        "@agent\nasync def slow() -> str:\n    return await dawdle()\n"
    )
    return hold


@pytest.mark.chaos
def test_a_killed_worker_is_replaced_and_the_bill_names_the_lost_attempt(project: Project) -> None:
    settings = {"LEASE_SECONDS": "2", "HEARTBEAT_SECONDS": "0.5", "SWEEP_SECONDS": "0.5"}
    hold = write_held(project)
    with project.started("run", "held:slow", "--key", "k", **settings) as process:
        wait_until(lambda: "held.dawdle: running" in project.log(), "the step runs", 40)
        (worker,) = _workers_of(process.pid)
        worker.kill()
        hold.unlink()
        assert process.wait(100) == 0, project.log()
    shown = project.paidonce("show", project.paidonce("runs", "--json").document[0]["run_id"], "--json").document
    assert (shown["result"], shown["bill"]["attempts_lost"], shown["steps"][0]["attempts"]) == ("done", 1, 2)


@pytest.mark.chaos
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_no_worker_behind_and_can_be_gone_on_with(
    project: Project, number: int, code: int
) -> None:
    arguments = ("run", "held:slow", "--key", "k")
    hold = write_held(project)
    with project.started(*arguments, DRAIN_SECONDS="0") as process:
        wait_until(lambda: "held.dawdle: running" in project.log(), "the step runs", 40)
        (worker,) = _workers_of(process.pid)
        process.send_signal(number)
        assert process.wait(100) == code
    wait_until(lambda: not worker.is_running(), "the worker has ended", 20)
    hold.unlink()
    if number != signal.SIGKILL:
        assert "paidonce worker held" in project.log()
    again = project.paidonce(*arguments, "--json")
    assert (again.code, again.document["result"]) == (0, "done")


def test_a_worker_that_cannot_start_is_reported_with_its_last_words(project: Project) -> None:
    (project.folder / "only_here.py").write_text(
        "import os, sys\nfrom paidonce import agent\n"
        "if 'attached_worker' in ' '.join(sys.orig_argv): raise RuntimeError('not in a worker')\n"
        "@agent\nasync def alone() -> int:\n    return 1\n"
    )
    done = project.paidonce("run", "only_here.py:alone", "--json")
    assert done.code == 1
    assert "not in a worker" in done.error["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["agents.py:nobody"], "unknown_agent", "hold: adder, division, family, slow"),
        (["agents.py"], "invalid_input", "expected MODULE:AGENT"),
        (["agents.py:"], "invalid_input", "the part after the colon is missing"),
        (["agent:adder"], "module_not_loadable", "did you mean 'agents'?"),
        (["nowhere/agents.py:adder"], "module_not_loadable", "there is no file"),
        (["broken.py:adder"], "module_not_loadable", "broken.py:1"),
        (["agents:adder", "--input", "{count: 1}"], "invalid_input", "found text of 10 bytes"),
        (["agents:adder", "--input", "[1]"], "invalid_input", "expected a JSON object"),
        (["agents:adder", "--input", "@missing.json"], "invalid_input", "No such file"),
        (["agents:adder", "--input", '{"count": NaN}'], "invalid_input", "NaN"),
        (["agents:adder", "--input", '{"count": "many"}'], "invalid_input", "count"),
        (["agents:adder"], "invalid_input", "count"),
        (["agents:adder", "--input", '{"count": 1, "more": 2}'], "invalid_input", "more"),
        (["agents:adder", "--input", '{"count": 1}', "--tag", "user"], "invalid_input", "expected NAME=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_error_and_starts_nothing(
    project: Project, arguments: list[str], code: str, said: str
) -> None:
    (project.folder / "broken.py").write_text("1 / 0\n")
    done = project.paidonce("run", *arguments, "--json")
    assert done.code == 2
    assert done.error["code"] == code
    assert said in done.error["message"]
    assert not (project.home / "logs").exists()


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("BROKER_URL", f"redis://:secret@{NOBODY_LISTENS}", "broker_unreachable"),
        ("BROKER_URL", f"amqp://guest:secret@{NOBODY_LISTENS}", "broker_unreachable"),
        ("DATABASE_URL", f"postgresql://user:secret@{NOBODY_LISTENS}/x", "store_unreachable"),
        ("DATABASE_URL", "sqlite:////dev/null/no/store.db", "store_unreachable"),
    ],
    ids=["redis", "rabbitmq", "postgresql", "sqlite"],
)
def test_a_server_that_does_not_answer_is_one_error_that_shows_no_password(
    project: Project, setting: str, value: str, code: str
) -> None:
    done = project.paidonce("run", "agents:adder", "--input", '{"count": 1}', "--json", **{setting: value})
    assert done.code == 3
    assert done.error["code"] == code
    assert f"PAIDONCE_{setting}" in done.error["message"]
    assert "secret" not in done.out + done.err


def test_a_home_that_cannot_be_made_is_named(project: Project) -> None:
    (project.folder / "file").write_text("")
    done = project.paidonce("run", "agents:adder", "--input", '{"count": 1}', "--json", HOME=str(Path("file") / "home"))
    assert (done.code, done.error["code"]) == (2, "configuration")
    assert "PAIDONCE_HOME" in done.error["message"]


def _workers_of(pid: int) -> list[psutil.Process]:
    assert pid != os.getpid()
    return psutil.Process(pid).children()
