"""Options of `celery worker` with Paidonce: each works, or is refused at start by its name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from paidonce.broker.celery_app import build_celery_app
from paidonce.client import Client
from paidonce.settings import Settings
from tests.cli.conftest import NOBODY_LISTENS, Project
from tests.services import fork_server
from tests.services.fork_server import ForkedProcess
from tests.services.waiting import wait_until

pytestmark = pytest.mark.slow

RUN_SECONDS = 60


def command(*arguments: str, before: tuple[str, ...] = ()) -> list[str]:
    """Celery's own command for a worker of ours."""
    return [sys.executable, "-m", "celery", *before, "-A", "paidonce_workers", "worker", *arguments]


@contextmanager
def celery_worker(
    project: Project, *arguments: str, anew: bool = False, **settings: str
) -> Iterator[ForkedProcess | subprocess.Popen[str]]:
    """A worker that runs beside the test, its output in ``started.log``. ``anew``: with an interpreter of its own."""
    environment = {**project.with_settings({"AGENTS": "agents"}), **settings}
    options = ["-l", "INFO", *arguments]
    process: ForkedProcess | subprocess.Popen[str]
    with (project.folder / "started.log").open("w") as log:
        if anew:
            process = subprocess.Popen(
                command(*options),
                cwd=project.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        else:
            process = fork_server.start(
                "celery",
                ["-A", "paidonce_workers", "worker", *options],
                folder=project.folder,
                environment=environment,
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
    try:
        wait_until(lambda: " ready." in project.log() or process.poll() is not None, "the worker is ready", 60)
        assert process.poll() is None, project.log()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def submit_and_wait(project: Project, runs: int, count: int, **settings: str) -> None:
    """All of them end with what they compute, and nothing was executed twice."""
    client = Client(Settings(home=project.home, **settings))
    handles = [client.submit("adder", {"count": count}) for _ in range(runs)]
    for handle in handles:
        assert handle.result(timeout=RUN_SECONDS) == sum(range(count)), project.log()
    with client.database.read() as connection:
        attempts = connection.execute(text("SELECT outcome, count(*) FROM attempts GROUP BY outcome")).all()
        assert [tuple(row) for row in attempts] == [("accepted", runs * count)]
    client.database.close()


def control(project: Project, command: str, **arguments: object) -> str:
    """What the worker answers to a command of remote control."""
    app = build_celery_app(Settings(home=project.home))
    try:
        return str(app.control.broadcast(command, arguments=arguments, reply=True, limit=1, timeout=20))
    finally:
        app.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pool", "solo"), "--pool solo"),
        (("--purge",), "--purge"),
        (("-B",), "-B"),
        (("--include", "json"), "--include"),
        (("--max-tasks-per-child", "5"), "--max-tasks-per-child"),
        (("--max-memory-per-child", "5000"), "--max-memory-per-child"),
        (("--pool", "prefork", "--pool-start-method", "spawn"), "--pool-start-method spawn"),
        (("task.acks_late=0",), "task_acks_late"),
        (("task.always_eager=1",), "task_always_eager"),
        ((".consumer=celery.worker.consumer:Consumer",), "worker_consumer"),
        ((".pool_restarts=1",), "worker_pool_restarts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_that_does_not_go_with_paidonce_is_refused_by_name(
    project: Project, arguments: tuple[str, ...], said: str
) -> None:
    refused(project, command(*arguments), said)


def test_another_pool_of_ones_own_or_another_broker_is_refused_by_name(project: Project) -> None:
    refused(project, command("--pool", "custom"), "solo", CELERY_CUSTOM_WORKER_POOL="celery.concurrency.solo:TaskPool")
    refused(project, command(before=("--broker", f"redis://{NOBODY_LISTENS}")), "--broker")


def refused(project: Project, arguments: list[str], said: str, **environment: str) -> None:
    done = subprocess.run(
        arguments,
        cwd=project.folder,
        env={**project.with_settings({"AGENTS": "agents"}), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("paidonce: ") and said in lines[0], done.stderr


def test_autoscale_grows_with_the_load_and_remote_control_changes_it(project: Project) -> None:
    with celery_worker(project, "--autoscale", "4") as worker:
        submit_and_wait(project, 12, 4)
        assert "Scaling up" in project.log()
        assert "autoscale now max=6 min=2" in control(project, "autoscale", max=6, min=2)
        assert "expected max and min" in control(project, "autoscale", max=1, min=2)
        assert "not supported with autoscale" in control(project, "pool_grow", n=1)
        submit_and_wait_more(project)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert "cannot be used" not in project.log()


def submit_and_wait_more(project: Project) -> None:
    client = project.client()
    assert client.submit("adder", {"count": 3}).result(timeout=RUN_SECONDS) == 3
    client.database.close()


def test_remote_control_of_the_pool_works_or_is_answered_with_a_reason(project: Project) -> None:
    with celery_worker(project, "-c", "2", "--max-tasks-per-child", "0") as worker:
        assert "pool will grow" in control(project, "pool_grow", n=3)
        assert "pool will shrink" in control(project, "pool_shrink", n=4)
        assert "at least one must stay" in control(project, "pool_shrink", n=1)
        assert "Pool restarts not enabled" in control(project, "pool_restart")
        assert "Autoscale not enabled" in control(project, "autoscale", max=3, min=1)
        assert "new rate limit set" in control(project, "rate_limit", task_name="agents.add", rate_limit="20/s")
        assert "time limits set" in control(project, "time_limit", task_name="agents.add", soft=30, hard=60)
        assert "add consumer side" in control(project, "add_consumer", queue="side")
        client = project.client()
        assert client.submit("division", {"a": 1, "b": 2}).result(timeout=RUN_SECONDS) == 0.5
        client.database.close()
        submit_and_wait_more(project)
        assert "no longer consuming from side" in control(project, "cancel_consumer", queue="side")
        submit_and_wait_more(project)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0


@pytest.mark.parametrize("arguments", [(), ("--pool", "prefork", "-c", "2")], ids=["threads", "prefork"])
def test_sighup_drains_and_begins_anew_in_the_same_process(project: Project, arguments: tuple[str, ...]) -> None:
    with celery_worker(project, *arguments, anew=True) as worker:
        client = project.client()
        under_way = client.submit("slow", {"seconds": 2.0})
        wait_until(lambda: client.run(under_way.id).state == "running", "the run is under way", 20)
        worker.send_signal(signal.SIGUSR1)  # prints what each thread does
        worker.send_signal(signal.SIGHUP)
        wait_until(lambda: project.log().count(" ready.") == 2, "it has begun anew", 60)
        assert under_way.result(timeout=RUN_SECONDS) == "done"
        assert client.submit("adder", {"count": 3}).result(timeout=RUN_SECONDS) == 3
        client.database.close()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert os.path.basename(sys.executable) and "MainThread" in project.log()


@pytest.mark.service
def test_children_that_are_replaced_all_the_time_lose_and_repeat_nothing(
    project: Project, postgres_database: str
) -> None:
    assert project.paidonce("db", "upgrade", DATABASE_URL=postgres_database).code == 0
    arguments = ("--pool", "prefork", "-c", "2", "--max-tasks-per-child", "3")
    with celery_worker(project, *arguments, PAIDONCE_DATABASE_URL=postgres_database) as worker:
        submit_and_wait(project, 4, 4, database_url=postgres_database)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0


def test_files_and_switches_of_celery_do_no_harm(project: Project) -> None:
    files = {name: project.folder / name for name in ("state", "worker.pid", "worker.log")}
    arguments = ["-n", "named@%h", "-O", "fair", "-E", "--prefetch-multiplier", "4", "--disable-prefetch"]
    arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat", "-X", "side", "--time-limit", "60"]
    arguments += ["--soft-time-limit", "50", "-S", str(files["state"]), "--pidfile", str(files["worker.pid"])]
    with celery_worker(project, *arguments, "worker.prefetch_multiplier=2") as worker:
        submit_and_wait(project, 4, 3)
        assert int(files["worker.pid"].read_text()) == worker.pid
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert not files["worker.pid"].exists()
    assert not list(project.folder.glob("celerybeat*"))


def test_a_detached_worker_works(project: Project) -> None:
    pidfile, logfile = project.folder / "worker.pid", project.folder / "worker.log"
    done = subprocess.run(
        command("-D", "-l", "INFO", "--pidfile", str(pidfile), "--logfile", str(logfile)),
        cwd=project.folder,
        env=project.with_settings({"AGENTS": "agents"}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    wait_until(lambda: logfile.exists() and " ready." in logfile.read_text(), "it is ready", 60)
    pid = int(pidfile.read_text())
    try:
        submit_and_wait(project, 2, 3)
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists(), "it has ended", 60)


def test_celerys_variables_of_another_app_have_no_say(project: Project) -> None:
    others = {
        "CELERY_BROKER_URL": f"amqp://team:secret@{NOBODY_LISTENS}//",
        "CELERY_BROKER_READ_URL": f"amqp://team:secret@{NOBODY_LISTENS}//",
        "CELERY_RESULT_BACKEND": f"redis://{NOBODY_LISTENS}/0",
        "CELERY_CONFIG_MODULE": "teams_celery_config",
    }
    (project.folder / "teams_celery_config.py").write_text("task_always_eager = True\nworker_pool = 'solo'\n")
    with celery_worker(project, **others) as worker:
        submit_and_wait(project, 2, 3)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0


FAULT = """
from paidonce_workers.pools import thread_pool as pool

apply, begun = pool.TaskPool.on_apply, set()


def faulty(self, target, args, *rest, **options):
    task_id = args[1]
    if task_id not in begun:
        begun.add(task_id)
        raise AttributeError("a neighbour's patch")
    return apply(self, target, args, *rest, **options)


pool.TaskPool.on_apply = faulty
"""


def test_a_good_message_whose_task_cannot_begin_is_tried_again_and_not_dropped(project: Project) -> None:
    (project.folder / "neighbour.py").write_text(FAULT)
    with celery_worker(project, PAIDONCE_AGENTS="agents,neighbour") as worker:
        app = build_celery_app(Settings(home=project.home))
        sent = app.send_task(
            "paidonce.submit", kwargs={"agent": "adder", "input": {"count": 2}}, queue="paidonce.submit"
        )
        client = project.client()

        def ended() -> bool:
            runs = client.runs()
            return bool(runs) and all(run.state.is_terminal for run in runs)

        wait_until(ended, f"submission {sent.id} is stored and has ended", 55)
        assert [run.state for run in client.runs()] == ["succeeded"], project.log()
        client.database.close()
        app.close()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert "could not be started, through no fault of its message" in project.log()
    assert "cannot be used and was dropped" not in project.log()
