"""What an agent must not do between two awaits is caught with its line."""

from __future__ import annotations

import asyncio
import datetime
import gc
import importlib
import logging
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from paidonce.testing.determinism import forbid_nondeterminism
from paidonce_models.errors import NotReplayable


@dataclass
class Stamped:
    at: datetime.datetime = field(default_factory=datetime.datetime.now)


FORBIDDEN: list[tuple[str, Callable[[], object], str]] = [
    (r"time\.time\(\)", lambda: time.time(), r"paidonce\.now"),
    (r"time\.time_ns\(\)", lambda: time.time_ns(), r"paidonce\.now"),
    (r"time\.monotonic\(\)", lambda: time.monotonic(), r"paidonce\.now"),
    (r"time\.perf_counter\(\)", lambda: time.perf_counter(), r"paidonce\.now"),
    (r"time\.sleep\(\)", lambda: time.sleep(0), r"await asyncio\.sleep"),
    (r"datetime\.now\(\)", lambda: datetime.datetime.now(), r"paidonce\.now"),
    (r"datetime\.now\(\)", lambda: datetime.datetime.now(datetime.UTC), r"paidonce\.now"),
    (r"datetime\.utcnow\(\)", lambda: datetime.datetime.utcnow(), r"paidonce\.now"),
    (r"date\.today\(\)", lambda: datetime.date.today(), r"paidonce\.now"),
    (r"datetime\.now\(\)", Stamped, r"paidonce\.now"),
    (r"time\.localtime\(\) without a time", lambda: time.localtime(), r"paidonce\.now"),
    (r"time\.gmtime\(\) without a time", lambda: time.gmtime(), r"paidonce\.now"),
    (r"time\.ctime\(\) without a time", lambda: time.ctime(), r"paidonce\.now"),
    (r"time\.strftime\(\) without a time", lambda: time.strftime("%Y-%m-%d"), r"paidonce\.now"),
    (r"random\.random\(\)", lambda: random.random(), r"paidonce\.random"),
    (r"random\.randint\(\)", lambda: random.randint(1, 6), r"paidonce\.random"),
    (r"random\.shuffle\(\)", lambda: random.shuffle([1, 2, 3]), r"paidonce\.random"),
    (r"random\.choice\(\)", lambda: random.choice([1, 2, 3]), r"paidonce\.random"),
    (r"without a seed", lambda: random.Random(), r"paidonce\.random"),
    (r"random\.random\(\), which uses os\.urandom\(\)", lambda: random.SystemRandom().random(), r"paidonce\.random"),
    (r"secrets\.token_hex\(\)", lambda: secrets.token_hex(4), r"paidonce\.random"),
    (r"os\.urandom\(\)", lambda: os.urandom(4), r"paidonce\.random"),
    (r"uuid\.uuid4\(\)", lambda: uuid.uuid4(), r"paidonce\.uuid"),
    (r"uuid\.uuid1\(\)", lambda: uuid.uuid1(), r"paidonce\.uuid"),
    (r"open\('/dev/null'\)", lambda: open("/dev/null").close(), r"@step"),
    (r"pathlib.*open\(", lambda: Path("/dev/null").read_text(), r"@step"),
    (r"os\.stat\(\)", lambda: Path("/dev/null").exists(), r"@step"),
    (r"os\.listdir", lambda: os.listdir("/"), r"@step"),
    (r"socket\.", lambda: socket.socket().close(), r"@step"),
    (r"socket\.getaddrinfo", lambda: socket.getaddrinfo("localhost", 1), r"@step"),
    (r"subprocess\.Popen", lambda: subprocess.run(["true"], check=True), r"@step"),
    (r"os\.system", lambda: os.system("true"), r"@step"),
    (r"threading\.start\(\), which uses _thread\.start_", lambda: threading.Thread(target=int).start(), r"@step"),
]


@pytest.mark.parametrize(("used", "call", "remedy"), FORBIDDEN, ids=[str(i) for i in range(len(FORBIDDEN))])
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_clock_randomness_io_and_threads_are_named_with_the_way_out(
    used: str, call: Callable[[], object], remedy: str
) -> None:
    with pytest.raises(NotReplayable, match=used) as caught, forbid_nondeterminism():
        call()
    assert "test_determinism.py:" in str(caught.value)
    caught.match(remedy)


def test_the_line_is_that_of_the_users_code() -> None:
    def plan() -> float:
        return time.time()

    line = plan.__code__.co_firstlineno + 1
    where = rf"test_determinism\.py:{line} in .*plan: time\.time\(\) is not the same"
    with pytest.raises(NotReplayable, match=where), forbid_nondeterminism():
        plan()


def test_a_swallowed_error_is_raised_at_the_end() -> None:
    with pytest.raises(NotReplayable, match=r"time\.time"), forbid_nondeterminism():
        try:
            time.time()
        except Exception:  # noqa: BLE001 # an agent that swallows everything
            pass


def test_logging_environment_seeds_imports_given_times_and_arithmetic_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "fresh_module.py").write_text("import random\nVALUE = random.random()\n")
    sys.path.insert(0, str(tmp_path))
    logger = logging.getLogger("test_determinism")
    logger.addHandler(logging.FileHandler(tmp_path / "log", delay=True))
    try:
        with forbid_nondeterminism():
            logger.warning("a line")
            os.environ.get("HOME")
            random.Random(42).shuffle([1, 2, 3])
            importlib.import_module("fresh_module")
            datetime.datetime(2026, 1, 1) + datetime.timedelta(days=1)
            uuid.uuid5(uuid.NAMESPACE_URL, "x")
            time.strftime("%Y", time.gmtime(0))
            time.ctime(*[0])
            time.localtime(0)
            print("to the terminal")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("fresh_module", None)
        for handler in logger.handlers[:]:
            handler.close()
            logger.removeHandler(handler)


def test_what_listens_to_the_garbage_collector_is_not_the_agents_code() -> None:
    heard: list[float] = []

    def listen(phase: str, info: dict[str, int]) -> None:
        heard.append(time.perf_counter())

    gc.callbacks.append(listen)
    try:
        with forbid_nondeterminism():
            gc.collect()
    finally:
        gc.callbacks.remove(listen)
    assert heard


def test_the_clock_of_an_event_loop_is_its_own_business() -> None:
    async def slice_of_an_agent() -> int:
        with forbid_nondeterminism():
            asyncio.get_running_loop().time()
            asyncio.get_running_loop().call_later(0, int)
        return 1

    assert asyncio.run(slice_of_an_agent()) == 1


def test_outside_the_block_and_on_other_threads_nothing_is_forbidden() -> None:
    started = threading.Event()
    release = threading.Event()
    seen: list[float] = []

    def other() -> None:
        started.set()
        release.wait(5)
        seen.append(time.time())
        with open("/dev/null"):
            pass

    thread = threading.Thread(target=other)
    thread.start()
    started.wait(5)
    with forbid_nondeterminism():
        release.set()
        for _ in range(1000):
            pass
    thread.join()
    assert seen
    assert time.time() > 0
    assert sys.getprofile() is None


def test_blocks_nest_and_the_profile_function_of_before_comes_back() -> None:
    events: list[str] = []

    def profiler(frame: object, event: str, argument: object) -> None:
        events.append(event)

    sys.setprofile(profiler)
    try:
        with forbid_nondeterminism(), forbid_nondeterminism():
            pass
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


ENDING = """
from paidonce.testing import determinism

class Late:
    open = open

    def __del__(self):
        self.open("/dev/null").close()

with determinism.forbid_nondeterminism():
    pass
determinism.late = Late()  # ends after the names that the module had before it
"""


@pytest.mark.slow
def test_an_interpreter_that_has_used_it_ends_in_silence() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stderr) == (0, "")
