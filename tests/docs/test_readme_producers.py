"""The producers of docs/how-to/submit-runs.md against a real worker, on Redis and on RabbitMQ."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from paidonce import Client
from paidonce_models.errors import NotFound
from tests.docs.readme_file import example
from tests.services.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

# The README's agent without its model: producers name it, and do not care what it does.
AGENTS = """
from paidonce import agent, step

@step
def ask(prompt: str) -> str:
    return f"decided: {prompt}"

@agent
async def debate(topic: str) -> str:
    return await ask(topic)
"""
TEAMS_APP = """
import os
from celery import Celery

app = Celery("team", broker=os.environ["BROKER_URL"])

@app.task(name="team.note")
def note(text):
    with open("notes.txt", "a") as notes:
        notes.write(text + "\\n")
"""


@dataclass(frozen=True)
class Site:
    """A project folder with agents, a broker and a worker."""

    folder: Path
    broker_url: str

    @property
    def environment(self) -> dict[str, str]:
        """For every process of the site."""
        return {
            **os.environ,
            "PAIDONCE_HOME": str(self.folder / "home"),
            "PAIDONCE_BROKER_URL": self.broker_url,
            "BROKER_URL": self.broker_url,
            "PYTHONPATH": str(self.folder),
            "PYTHONWARNINGS": "ignore",
        }

    def client(self) -> Client:
        """A client on the site's store."""
        return Client(home=self.folder / "home", broker_url=self.broker_url)

    def python(self, code: str) -> str:
        """Run a program of the README's in a process of its own; what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def started(self, *command: str) -> Iterator[None]:
        """A program of this environment, until the end of the block."""
        log = self.folder / f"{command[0]}.log"
        program = str(Path(sys.executable).with_name(command[0]))
        with log.open("ab") as output:
            process = subprocess.Popen(
                [program, *command[1:]], cwd=self.folder, env=self.environment, stdout=output, stderr=output
            )
        try:
            wait_until(lambda: b"ready." in log.read_bytes(), f"{command[0]} is ready", 60)
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(params=["redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A worker with the agent, beside nothing else."""
    (tmp_path / "agents.py").write_text(AGENTS)
    made = Site(tmp_path, request.getfixturevalue(f"{request.param}_url"))
    with made.started("paidonce", "worker", "agents.py"):
        yield made


def test_the_readmes_producers_get_their_results(site: Site) -> None:
    first = site.python(example("producer.py"))
    assert first.splitlines()[-1] == "decided: tabs"
    # The same key gives the same run.
    assert site.python(example("producer.py")).split()[0] == first.split()[0]
    handled = site.python(example("handler.py") + "\nimport asyncio\nprint(asyncio.run(handle('spaces')))")
    assert handled == "decided: spaces\n"

    assert site.python(example("many.py")).split() == ["3", "3"]
    assert site.python(example("many.py")).split() == ["3", "0"], "each key was known"
    (site.folder / "runs.jsonl").write_text(example("runs.jsonl"))
    submit = (
        "from paidonce.cli import main; import sys; sys.argv = 'paidonce submit debate --from runs.jsonl'.split(); "
    )
    assert site.python(submit + "main()") == "1 run submitted, 1 of them known by their keys.\n"

    task_id = site.python(example("broker_only.py")).strip()
    run = wait_until(lambda: find_run(site, task_id), "the run of the Celery task", 30)
    assert run.result(timeout=30) == "decided: tabs"
    assert run.view().tags == {"user": "u1"}

    message = json.loads(example("message.json"))
    publish(site.broker_url, message)
    run = wait_until(lambda: find_run(site, message["headers"]["id"]), "the run of the plain message", 30)
    assert run.result(timeout=30) == "decided: tabs"


def test_an_existing_celery_app_beside_it_keeps_its_tasks(site: Site) -> None:
    (site.folder / "team.py").write_text(TEAMS_APP)
    with site.started("celery", "-A", "team", "worker", "--pool", "solo", "--loglevel", "INFO"):
        site.python("import team; [team.note.delay(str(number)) for number in range(5)]")
        task = site.python(
            "import team; print(team.app.send_task('paidonce.submit', queue='paidonce.submit', "
            "kwargs={'agent': 'debate', 'input': {'topic': 'both'}}).id)"
        ).strip()
        notes = site.folder / "notes.txt"
        wait_until(lambda: notes.exists() and len(notes.read_text().split()) == 5, "the team's tasks have run", 30)
        run = wait_until(lambda: find_run(site, task), "the run", 30)
        assert run.result(timeout=30) == "decided: both"
    assert "team.note" not in (site.folder / "paidonce.log").read_text()
    assert "agents.ask" not in (site.folder / "celery.log").read_text()


def find_run(site: Site, alias: str) -> Any:
    """The handle of a run, or None before the worker has taken its message."""
    client = site.client()
    try:
        return client.run(alias)
    except NotFound:
        return None


def publish(broker_url: str, message: dict[str, Any]) -> None:
    """Put a message on the queue as a program without Celery would."""
    with Connection(broker_url) as connection, connection.channel() as channel:
        connection.Producer(channel).publish(
            json.dumps(message["body"]),
            exchange="",
            routing_key="paidonce.submit",
            headers=message["headers"],
            **message["properties"],
        )
