"""A run's slices stay on one thread, and one that blocks its thread holds up nobody else for long."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from paidonce.replay.slice_threads import SliceThreads, ThreadBusy


def test_whoever_asks_each_slice_of_a_run_is_in_the_runs_thread() -> None:
    slices = SliceThreads(3, patience_seconds=60)
    homes = [slices.choose() for _ in range(6)]
    with ThreadPoolExecutor(8) as askers:
        seen = [
            set(askers.map(lambda _, home=home: slices.call(home, threading.get_ident), range(50)))  # type: ignore[misc]
            for home in homes
        ]
    assert all(len(threads) == 1 for threads in seen)
    assert len(set.union(*seen)) == 3, "runs are spread"
    assert threading.get_ident() not in set.union(*seen)


def test_an_error_reaches_who_asked() -> None:
    slices = SliceThreads(1, patience_seconds=60)

    def fails() -> None:
        raise SystemExit("out")

    with pytest.raises(SystemExit, match="out"):
        slices.call(slices.choose(), fails)
    assert slices.call(slices.choose(), lambda: 1) == 1


def test_who_waits_behind_a_blocked_slice_gives_up_and_goes_elsewhere() -> None:
    slices = SliceThreads(1, patience_seconds=0.05)
    home = slices.choose()
    begun, released = threading.Event(), threading.Event()
    ran: list[str] = []

    def blocks() -> None:
        begun.set()
        released.wait(30)

    with ThreadPoolExecutor(1) as other:
        blocked = other.submit(slices.call, home, blocks)
        assert begun.wait(30)
        with pytest.raises(ThreadBusy):
            slices.call(home, lambda: ran.append("given up"))
        fresh = slices.choose()
        assert fresh is not home, "what is stuck gets no runs"
        fresh.call(lambda: ran.append("elsewhere"), 60)
        released.set()
        blocked.result(30)
    home.call(lambda: ran.append("home again"), 60)
    assert ran == ["elsewhere", "home again"], "what was given up is not done later"


def test_a_slice_that_asks_its_own_thread_does_not_wait_for_itself() -> None:
    slices = SliceThreads(1, patience_seconds=60)
    home = slices.choose()
    assert slices.call(home, lambda: slices.call(home, lambda: 7)) == 7
