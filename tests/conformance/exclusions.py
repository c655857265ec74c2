"""Which of CPython's asyncio tests are not run on the replay loop, and why.

A test sees to it that each of these really fails, so that the list cannot outlive its reasons.
"""

REFUSED = "needs what the loop refuses by name: "
NAMES_BASE_EVENT_LOOP = (
    "patches or reads BaseEventLoop's own attributes or its logger; the replay loop is built on none"
)

EXCLUDED: dict[str, str] = {
    "test_tasks.RunCoroutineThreadsafeTests.test_run_coroutine_threadsafe": REFUSED + "another thread",
    "test_tasks.RunCoroutineThreadsafeTests.test_run_coroutine_threadsafe_task_cancelled": REFUSED + "another thread",
    "test_tasks.RunCoroutineThreadsafeTests.test_run_coroutine_threadsafe_task_factory_exception": (
        REFUSED + "another thread"
    ),
    "test_tasks.RunCoroutineThreadsafeTests.test_run_coroutine_threadsafe_with_exception": REFUSED + "another thread",
    "test_tasks.RunCoroutineThreadsafeTests.test_run_coroutine_threadsafe_with_timeout": REFUSED + "another thread",
    "test_tasks.ReplayTask_Tests.test_other_loop_future": (
        "expects asyncio's text for a future of another loop; ours names the agent's line and what to do"
    ),
    "test_tasks.CoroutineGatherTests.test_issue46672": NAMES_BASE_EVENT_LOOP,
    "test_tasks.ReplayTask_Tests.test_error_in_call_soon": (
        "expects a log line from BaseEventLoop's exception handler; the replay loop collects and logs nothing"
    ),
    "test_tasks.ReplayTask_Tests.test_log_destroyed_pending_task": (
        "steps the loop with BaseEventLoop._run_once and drops a waiting task; the replay loop holds its tasks "
        "until they end, so that no collection decides when one is destroyed"
    ),
    "test_tasks.ReplayTask_Tests.test_cancel_yield": (
        "stops the loop between two sleep(0) of a task; a slice ends only when nothing is ready"
    ),
    "test_tasks.ReplayTask_Tests.test_stop_while_run_in_complete": (
        "expects the test loop's own generator to move time on after stop(); the replay loop has no stop of its own"
    ),
    "test_tasks.ReplayTask_Tests.test_task_source_traceback": (
        "counts the frames of debug mode, which the replay loop does not have"
    ),
}


def excluded(name: str) -> bool:
    """Whether a test is on the list."""
    return name in EXCLUDED
