"""A container with a read-only root: no disk, no home, no name for its user, no /dev/shm."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import AGENTS
from tests.services.waiting import wait_until

USER = "54321"
"""Whom no /etc/passwd lists."""
EVERYTHING_READ_ONLY = f"""
set -e
mount -o remount,ro,bind /
for place in $(awk '$3 == "tmpfs" || $3 == "ext4" || $3 == "overlay" {{ print $2 }}' /proc/mounts); do
    mount -o remount,ro,bind "$place" 2>/dev/null || true
done
umount /dev/shm 2>/dev/null || true
exec setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search \
    env -i PATH=/usr/bin:/bin LANG=C.UTF-8 "$@"
"""


def in_container(*command: str, **environment: str) -> list[str]:
    """The command in a mount namespace of its own, where nothing can be written, under a nameless user."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    return ["unshare", "-m", "sh", "-c", EVERYTHING_READ_ONLY, "sh", *variables, sys.executable, "-m", *command]


def _is_possible() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    probe = ["unshare", "-m", "sh", "-c", "mount -o remount,ro,bind / && setpriv --reuid 54321 true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not _is_possible(), reason="needs root and mount namespaces")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the agents, and nothing else after the test."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    return tmp_path


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        in_container(*command, **environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=55,
    )


@pytest.mark.service
def test_nothing_is_written_beside_a_database_and_a_broker_of_ones_own(
    folder: Path, postgres_database: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"PAIDONCE_DATABASE_URL": postgres_database, "PAIDONCE_BROKER_URL": redis_url}
    done = run(folder, "paidonce.cli", "db", "upgrade", **settings)
    assert done.returncode == 0, done.stderr
    alone = run(folder, "paidonce.cli", "run", "my_agents.py:adder", "--input", '{"count": 2}', **settings)
    assert alone.returncode == 0, alone.stderr
    arguments = in_container("paidonce.cli", "worker", "my_agents.py", **settings)
    output = tmp_path_factory.mktemp("output") / "worker.log"
    with (
        output.open("w") as log,  # opened here: there it could not be
        subprocess.Popen(arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as worker,
    ):
        submit = ("submit", "adder", "--input", '{"count": 3}', "--wait", "--timeout", "40", "--json")
        done = run(folder, "paidonce.cli", *submit, **settings)
        worker.terminate()
        assert worker.wait(30) == 0
    said = output.read_text()
    assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stderr}{said}"
    assert '"result": 3' in done.stdout
    assert "Read-only file system" not in said and "Traceback" not in said
    wait_until(lambda: [path.name for path in folder.iterdir()] == ["my_agents.py"], "nothing was left", 5)


@pytest.mark.parametrize("command", [("paidonce.cli", "worker"), ("celery", "-A", "paidonce_workers", "worker")])
def test_what_needs_a_disk_is_one_error_that_names_the_settings(folder: Path, command: tuple[str, ...]) -> None:
    done = run(folder, *command, PAIDONCE_AGENTS="my_agents")
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    for named in ("PAIDONCE_HOME", "PAIDONCE_DATABASE_URL", "PAIDONCE_BROKER_URL", "Read-only file system"):
        assert named in line
    assert "Traceback" not in done.stderr
    done = run(folder, *command, PAIDONCE_AGENTS="my_agents", PAIDONCE_HOME="~/paidonce")
    assert done.returncode == 2 and "a path without `~`" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.service
def test_a_pool_of_processes_says_what_it_needs(folder: Path, postgres_database: str, redis_url: str) -> None:
    settings = {"PAIDONCE_DATABASE_URL": postgres_database, "PAIDONCE_BROKER_URL": redis_url}
    assert run(folder, "paidonce.cli", "db", "upgrade", **settings).returncode == 0
    worker = ("celery", "-A", "paidonce_workers", "worker", "--pool", "prefork")
    done = run(folder, *worker, PAIDONCE_AGENTS="my_agents", **settings)
    assert done.returncode == 2 and "--pool prefork needs semaphores" in done.stderr
    assert "Traceback" not in done.stderr
