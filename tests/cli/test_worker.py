"""`paidonce worker`: what is checked before a worker starts, and one that works."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cli.conftest import NOBODY_LISTENS, Project
from tests.services.waiting import wait_until


@pytest.fixture(params=["threads", pytest.param("prefork", marks=pytest.mark.slow)])
def pool(request: pytest.FixtureRequest) -> str:
    """Both pools."""
    return str(request.param)


def test_a_worker_takes_what_was_submitted_and_ends_at_sigterm(project: Project, pool: str) -> None:
    (project.folder / "paidonce.yaml").write_text("targets: {absent: {timeout: 5s}}\n")
    run_id = project.paidonce("submit", "adder", "--input", '{"count": 3}').document["run_id"]
    with project.started("worker", "agents.py", "--concurrency", "2", "--pool", pool) as worker:
        waited = project.paidonce("submit", "adder", "--input", '{"count": 2}', "--wait", "--timeout", "40", "--json")
        assert waited.code == 0, waited.err + project.log()
        assert waited.document["state"] == "succeeded" and waited.document["result"] == 1
        wait_until(lambda: project.client().run(run_id).state == "succeeded", "the first run has ended", 20)
        warned = project.paidonce("submit", "ader", "--input", "{}")
        assert warned.code == 0
        assert "no live worker holds agent 'ader', did you mean 'adder'?" in warned.err
        assert "hold: adder, division, family, slow" in warned.err
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert (
        project.log().count("policies for targets that this worker does not hold: paidonce.yaml:1 targets.absent") == 1
    )


def test_policies_that_do_not_fit_the_code_are_refused(project: Project) -> None:
    (project.folder / "misfit.py").write_text("from paidonce import tool\n@tool(policy='absent')\ndef f(): ...\n")
    for command in (("worker",), ("policies", "check")):
        done = project.paidonce(*command, "misfit.py", "--json")
        assert (done.code, done.error["code"]) == (2, "configuration")
        assert "decorator at misfit.py:2 names 'absent', which does not exist" in done.error["message"]


@pytest.mark.slow
@pytest.mark.service
def test_a_worker_of_a_named_queue_shares_it_with_the_publishers_on_rabbitmq(
    project: Project, rabbitmq_url: str
) -> None:
    with project.started("worker", "agents.py", "--queues", "default,side", BROKER_URL=rabbitmq_url) as worker:
        arguments = ("submit", "division", "--input", '{"a": 1, "b": 2}', "--wait", "--timeout", "40", "--json")
        waited = project.paidonce(*arguments, BROKER_URL=rabbitmq_url)
        assert waited.code == 0, waited.err + project.log()
        assert waited.document["result"] == 0.5
        assert "PRECONDITION_FAILED" not in project.log()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0


@pytest.fixture
def empty_module(project: Project) -> Iterator[str]:
    """A module that declares nothing."""
    (project.folder / "empty.py").write_text("")
    yield "empty"


@pytest.mark.parametrize(
    ("modules", "code", "said"),
    [
        ([], "configuration", "set PAIDONCE_AGENTS"),
        (["agent"], "module_not_loadable", "did you mean 'agents'?"),
        (["broken"], "module_not_loadable", "No module named 'a_package_that_is_not_there'"),
        (["syntax.py"], "module_not_loadable", "syntax.py:1"),
        (["twice"], "module_not_loadable", "is used twice"),
        (["empty"], "configuration", "there is no @agent, @step or @tool in there"),
    ],
    ids=["none", "missing", "import", "syntax", "duplicate", "empty"],
)
def test_modules_that_cannot_be_held_are_refused(
    project: Project, empty_module: str, modules: list[str], code: str, said: str
) -> None:
    (project.folder / "broken.py").write_text("import a_package_that_is_not_there\n")
    (project.folder / "syntax.py").write_text("def f(:\n")
    double = "from paidonce import step\n@step(name='same')\ndef f() -> int: ...\n"
    (project.folder / "first.py").write_text(double)
    (project.folder / "twice.py").write_text(f"import first\n{double}")
    done = project.paidonce("worker", *modules, "--json")
    assert done.code == 2
    assert done.error["code"] == code
    assert said in done.error["message"]


@pytest.mark.parametrize("command", [("worker", "stock.py"), ("run", "stock.py:idle")])
def test_an_async_def_handed_to_celery_is_refused_before_anything_runs(
    project: Project, command: tuple[str, ...]
) -> None:
    shared = "from celery import shared_task\n\n\n@shared_task\nasync def fetch(): ...\n"
    own = "\n\nfrom paidonce import agent\n\n\n@agent\nasync def idle() -> None: ...\n"
    (project.folder / "stock.py").write_text(shared + own)
    done = project.paidonce(*command, "--json")
    assert (done.code, done.error["code"]) == (2, "declaration")
    assert "stock.fetch" in done.error["message"] and "Traceback" not in done.err
    assert project.paidonce("runs", "--json").document == []


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("BROKER_URL", f"redis://{NOBODY_LISTENS}", "broker_unreachable"),
        ("DATABASE_URL", f"postgresql://u@{NOBODY_LISTENS}/x", "store_unreachable"),
    ],
)
def test_a_worker_does_not_start_without_its_servers(project: Project, setting: str, value: str, code: str) -> None:
    done = project.paidonce("worker", "agents", "--json", **{setting: value})
    assert (done.code, done.error["code"]) == (3, code)
    assert NOBODY_LISTENS in done.error["message"] and "<class" not in done.error["message"]


def test_a_worker_does_not_start_on_another_schema(project: Project) -> None:
    project.paidonce("db", "upgrade")
    with project.client().database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE paidonce_version SET version_num = '0999'")
    done = project.paidonce("worker", "agents", "--json")
    assert (done.code, done.error["code"]) == (3, "schema_mismatch")
    assert "0999" in done.error["message"] and "paidonce db upgrade" in done.error["message"]


def test_queues_that_the_modules_name_and_the_worker_does_not_take_are_mentioned(project: Project) -> None:
    done = project.paidonce("worker", "agents", BROKER_URL=f"redis://{NOBODY_LISTENS}")
    assert "--queues side" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"redis://{NOBODY_LISTENS}/0", "Connection refused"),
        (f"amqp://guest:hidden@{NOBODY_LISTENS}//", "Connection refused"),
        pytest.param("amqp://nobody:hidden@127.0.0.1:5672//", "ACCESS_REFUSED", marks=pytest.mark.service),
    ],
)
def test_celerys_own_command_meets_an_absent_broker_as_ours_does(project: Project, url: str, said: str) -> None:
    environment = project.with_settings({"BROKER_URL": url, "AGENTS": "agents"})
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "paidonce_workers", "worker", "-c", "1"],
        cwd=project.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("paidonce: the broker at ") and said in lines[0]
    assert "hidden" not in done.stderr
