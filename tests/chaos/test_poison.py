"""Steps that kill whoever runs them, many and of all kinds, beside paid ones that have done nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from paidonce_models.errors import RunFailed
from tests.chaos import poison_agents
from tests.chaos.engines import Engines
from tests.chaos.stage import QUICK_LEASES, WITH_POISON, Stage
from tests.services.waiting import wait_until

POISON_RUNS = 20
GOOD_RUNS = 4
GOOD_STEPS = 5
MOST_REPEATS = 2
LIMIT_SECONDS = 130


def test_a_good_step_beside_many_that_kill_their_process_is_repeated_twice_at_most(
    some_engines: Engines, make_stage: Callable[..., Stage]
) -> None:
    stage = make_stage(some_engines, **QUICK_LEASES)
    stage.start(workers=1, concurrency=POISON_RUNS + GOOD_RUNS, modules=WITH_POISON, new_interpreters=True)
    kinds = list(poison_agents.KINDS)
    doomed = {}
    for number in range(POISON_RUNS):
        kind = kinds[number % len(kinds)]
        doomed[kind, number] = stage.client.submit(poison_agents.doomed, {"kind": kind, "number": number})
        if number % (POISON_RUNS // GOOD_RUNS) == 0:
            given = {"server": stage.server.url, "steps": GOOD_STEPS, "latency_ms": 400}
            stage.handles.append(stage.client.submit(poison_agents.innocent, given))
    stage.wait_until_finished(LIMIT_SECONDS, restarting=True)

    stage.assert_all_succeeded(GOOD_STEPS)
    without_its_signal = 0
    for (kind, _), handle in doomed.items():
        with pytest.raises(RunFailed) as told:
            handle.result(timeout=1)
        assert "lost 2 workers that ran nothing else" in str(told.value)
        without_its_signal += poison_agents.KINDS[kind] not in str(told.value)
    assert without_its_signal <= POISON_RUNS // 4, (
        "only who dies in a process of its own is seen to die, not the worker"
    )
    evidence = stage.assert_nothing_repeated()
    good = {handle.id for handle in stage.handles}
    attempts = Counter((attempt.run_id, attempt.position) for attempt in stage.attempts())
    of_good = {step: count for step, count in attempts.items() if step[0] in good}
    assert len(of_good) == GOOD_RUNS * GOOD_STEPS
    assert max(of_good.values()) <= 1 + MOST_REPEATS, of_good
    assert evidence.requests <= GOOD_RUNS * GOOD_STEPS * (1 + MOST_REPEATS)
    assert stage.deaths <= 2 * POISON_RUNS, "from the third attempt on, or the second, every worker survives"
    print(f"{stage.deaths} deaths, attempts of good steps {dict(Counter(of_good.values()))}")


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_an_agent_that_ends_its_process_between_awaits_is_blocked_and_pays_nothing_twice(
    some_engines: Engines, make_stage: Callable[..., Stage], pool: str
) -> None:
    stage = make_stage(some_engines, **QUICK_LEASES)
    stage.start(workers=2, concurrency=4, pool=pool, modules=WITH_POISON, new_interpreters=True)
    doomed = {
        kind: stage.client.submit(poison_agents.ends_between_awaits, {"kind": kind, "server": stage.server.url})
        for kind in ("at once", "after a step", "after two at once")
    }
    given = {"server": stage.server.url, "steps": GOOD_STEPS, "latency_ms": 400}
    stage.handles += [stage.client.submit(poison_agents.innocent, given) for _ in range(GOOD_RUNS)]

    def all_settled() -> bool:
        stage.restart_the_dead()
        return all(handle.state == "blocked" for handle in doomed.values()) and all(
            handle.state == "succeeded" for handle in stage.handles
        )

    wait_until(all_settled, "the doomed are blocked, the good have succeeded", LIMIT_SECONDS)

    for handle in doomed.values():
        assert handle.view().state_reason == "slice_ends_process"
    stage.assert_nothing_repeated()
    attempts = Counter((attempt.run_id, attempt.position) for attempt in stage.attempts())
    assert max(attempts.values()) <= 1 + MOST_REPEATS, attempts
    of_doomed = [attempts[step] for step in attempts if step[0] in {handle.id for handle in doomed.values()}]
    # Its own first death takes a step along, the next find it committed; a death of another may take one in flight.
    assert sum(of_doomed) <= 4 + 2 * len(doomed), of_doomed
    print(f"{stage.deaths} deaths, attempts {dict(attempts)}")
