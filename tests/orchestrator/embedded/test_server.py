"""The embedded Valkey with real processes: one per home, durable, started on demand, stopped on request."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from kombu import Connection

from paidonce.broker.broker_urls import redis_client_url
from paidonce.embedded import embedded_status, ensure_embedded_valkey, server, stop_embedded
from paidonce.embedded.files import EmbeddedFiles
from paidonce.embedded.locks import poll
from paidonce_models.errors import BrokerUnreachable


@pytest.fixture
def home() -> Iterator[Path]:
    """A short home, stopped and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="po-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "home"
        yield path
        stop_embedded(path)


def pid_of(home: Path) -> int:
    pid = embedded_status(home).pid
    assert pid is not None
    return pid


def kill(home: Path) -> None:
    os.kill(pid_of(home), signal.SIGKILL)
    assert poll(lambda: not embedded_status(home).running, 5)


def is_running(pid: int) -> bool:
    """A process that ended and was not waited for yet has no command line any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def client_of(url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_client_url(url))


def test_the_first_call_starts_it_and_the_second_finds_it(home: Path) -> None:
    assert embedded_status(home).running is False
    assert not home.exists(), "looking must not create anything"
    url = ensure_embedded_valkey(home)
    status = embedded_status(home)
    assert (status.running, status.url) == (True, url)
    assert status.version is not None and int(status.version.split(".")[0]) >= 8
    assert ensure_embedded_valkey(home) == url
    assert embedded_status(home).pid == status.pid


def test_it_persists_refuses_to_forget_and_listens_on_no_port(home: Path) -> None:
    with client_of(ensure_embedded_valkey(home)) as client:
        found = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory-policy")}
        assert found == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        assert client.config_get("port")["port"] == "0"
    assert stat.S_IMODE((home / "valkey").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "valkey" / "valkey.sock").stat().st_mode) == 0o700


def test_queued_messages_survive_kill_9_and_a_stale_socket(home: Path) -> None:
    url = ensure_embedded_valkey(home)
    with Connection(url) as connection:
        queue = connection.SimpleQueue("work")
        for number in range(50):
            queue.put({"number": number})
        queue.close()
    kill(home)
    assert (home / "valkey" / "valkey.sock").exists()
    with Connection(ensure_embedded_valkey(home)) as connection:
        queue = connection.SimpleQueue("work")
        assert sorted(queue.get(timeout=5).payload["number"] for _ in range(50)) == list(range(50))
        queue.close()


RACE = """
import os, sys
from pathlib import Path
from paidonce.embedded import embedded_status, ensure_embedded_valkey

home, racers = Path(sys.argv[1]), int(sys.argv[2])
gate, open_gate = os.pipe()
for _ in range(racers):
    if os.fork() == 0:
        os.close(open_gate)
        os.read(gate, 1)
        url = ensure_embedded_valkey(home)
        os.write(1, f"{url} {embedded_status(home).pid}\\n".encode())
        os._exit(0)
os.close(open_gate)
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(racers)])
"""


def test_sixteen_processes_at_once_start_exactly_one(home: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    race = subprocess.run(
        [sys.executable, "-c", RACE, str(home), "16"], capture_output=True, text=True, env=environment, timeout=50
    )
    *answers, exit_codes = race.stdout.splitlines()
    assert (race.stderr, exit_codes) == ("", str([0] * 16))
    assert len(answers) == 16 and len(set(answers)) == 1
    assert len((home / "valkey" / "valkey.log").read_text().split("Ready to accept connections unix")) == 2


def test_it_is_in_a_session_of_its_own_and_nobodys_child(home: Path) -> None:
    ensure_embedded_valkey(home)
    pid = pid_of(home)
    assert os.getsid(pid) != os.getsid(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@pytest.mark.parametrize("name", ["d" * 90, "with space", "per%41cent", "question?mark"])
def test_a_deep_or_unusual_home_gets_a_short_socket_that_is_recorded(home: Path, name: str) -> None:
    deep = home / name
    try:
        url = ensure_embedded_valkey(deep)
        socket = Path(url.removeprefix("redis+socket://"))
        assert f"paidonce-{os.getuid()}" in str(socket)
        assert (deep / "valkey" / "socket").read_text().strip() == str(socket)
        with Connection(url) as connection:
            connection.ensure_connection(max_retries=1)
        assert pid_of(deep)
    finally:
        stop_embedded(deep)


def test_a_server_whose_socket_was_removed_is_replaced_without_losing_data(home: Path) -> None:
    url = ensure_embedded_valkey(home)
    with client_of(url) as client:
        client.set("kept", "yes")
    before = pid_of(home)
    (home / "valkey" / "valkey.sock").unlink()
    with client_of(ensure_embedded_valkey(home)) as client:
        assert client.get("kept") == b"yes"
    assert pid_of(home) != before


def test_stopping_keeps_the_data_and_a_second_stop_finds_nothing(home: Path) -> None:
    with client_of(ensure_embedded_valkey(home)) as client:
        client.set("kept", "yes")
    assert stop_embedded(home) is True
    assert embedded_status(home).running is False
    assert stop_embedded(home) is False
    with client_of(ensure_embedded_valkey(home)) as client:
        assert client.get("kept") == b"yes"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a removed working folder is only known on Linux")
def test_a_home_that_was_removed_leaves_no_server_behind_when_it_is_used_again(home: Path) -> None:
    ensure_embedded_valkey(home)
    orphan = pid_of(home)
    shutil.rmtree(home)
    ensure_embedded_valkey(home)
    assert pid_of(home) != orphan
    assert poll(lambda: not is_running(orphan), 5)


def test_a_reused_process_id_deceives_nobody(home: Path) -> None:
    ensure_embedded_valkey(home)
    kill(home)
    (home / "valkey" / "valkey.pid").write_text(str(os.getpid()))
    assert embedded_status(home).running is False
    assert stop_embedded(home) is False


def test_a_frozen_server_is_reported_and_can_be_stopped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = server._signal

    def with_patience(number: signal.Signals) -> Callable[[EmbeddedFiles], bool]:
        def send(files: EmbeddedFiles) -> bool:
            """Of the two only SIGKILL ends a frozen server; that may take long on a busy machine."""
            monkeypatch.setattr(server, "STOP_SECONDS", 1.0 if number == signal.SIGTERM else 60.0)
            return sender(number)(files)

        return send

    ensure_embedded_valkey(home)
    pid = pid_of(home)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(server, "_signal", with_patience)
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(server, "START_SECONDS", 1.0)
    with pytest.raises(BrokerUnreachable, match=rf"process {pid}\) is alive but does not respond"):
        ensure_embedded_valkey(home)
    assert stop_embedded(home) is True


def test_a_server_that_cannot_start_says_what_its_log_says(home: Path) -> None:
    (home / "valkey" / "appendonlydir").mkdir(parents=True)
    (home / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(BrokerUnreachable, match=r"did not start; .*valkey\.log ends with: .*manifest"):
        ensure_embedded_valkey(home)


def test_a_home_that_cannot_be_written_names_the_setting(home: Path) -> None:
    home.parent.joinpath("file").write_text("")
    with pytest.raises(BrokerUnreachable, match="PAIDONCE_HOME"):
        ensure_embedded_valkey(home.parent / "file" / "home")
