"""The one check in front of every task, and what is left of a message behind it."""

from __future__ import annotations

import json
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.message import Message

from paidonce.broker.publisher import ADVANCE_TASK, SUBMIT_TASK
from paidonce_models.ids import new_run_id
from paidonce_workers.delivery.message_check import LARGEST_HINT_BYTES, UnusableMessage, read_message, submission_id
from tests.fuzz.shapes import ANYWHERE

STEP = "shop.agents.search"
LARGEST = 1_000_000
ADDRESS = {"run": new_run_id(), "step": 3, "agent": "shop"}


def message(
    body: object, headers: object = None, *, content_type: str | None = "application/json", encoding: str = "utf-8"
) -> Message:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"task": STEP, "id": str(uuid4())} if headers is None else headers
    made = Message(body=data, headers=given, content_type=content_type, content_encoding=encoding)
    made.accept = {"application/json"}
    return made


def read(made: Message) -> Any:
    return read_message(made, largest_submission_bytes=LARGEST)


def why(made: Message) -> str:
    with pytest.raises(UnusableMessage) as refused:
        read(made)
    return refused.value.message


def test_only_run_step_and_agent_of_a_step_are_left() -> None:
    found = read(message([[], {**ADDRESS, "more": 1}, {"chain": ["x"]}]))
    assert (found.task, found.args, found.kwargs) == (STEP, (), ADDRESS)


def test_nothing_of_a_message_steers_the_worker() -> None:
    foreign = {"task": "celery.map", "args": [], "kwargs": {}, "options": {}}
    headers = {
        "task": STEP, "id": "one", "eta": "2099-01-01T00:00:00", "expires": "2001-01-01T00:00:00", "retries": 9,
        "timelimit": [0.1, 0.1], "group": "g", "shadow": "forged", "stamps": {"a": "b"}, "stamped_headers": ["a"],
        "replaced_task_nesting": 3, "ignore_result": False, "argsrepr": "secret", "kwargsrepr": "secret",
    }  # fmt: skip
    embed = {"callbacks": [foreign], "errbacks": [foreign], "chain": [foreign], "chord": foreign}
    found = read(message([[], ADDRESS, embed], headers))
    rebuilt = found.headers()
    assert {name for name, value in rebuilt.items() if value in (None, 0, [None, None])} == {
        "parent_id", "group", "shadow", "eta", "expires", "retries", "timelimit",
    }  # fmt: skip
    assert (rebuilt["task"], rebuilt["id"], rebuilt["ignore_result"]) == (STEP, "one", True)
    assert not {"stamps", "stamped_headers", "replaced_task_nesting"} & rebuilt.keys()
    assert "secret" not in str(rebuilt)
    assert found.body() == ((), ADDRESS, {"callbacks": None, "errbacks": None, "chain": None, "chord": None})


def test_protocol_1_is_read_and_steers_no_more() -> None:
    body = {"task": ADVANCE_TASK, "id": "one", "args": [], "kwargs": ADDRESS, "callbacks": ["x"], "eta": "never"}
    found = read(message(body, {}))
    assert (found.task, found.task_id) == (ADVANCE_TASK, "one")
    assert found.kwargs == {"run": ADDRESS["run"], "agent": "shop"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": None}, {"run": 7}, {"run": "no such run"}, {"run": "a\x00b"}, {"run": str(ADDRESS["run"]).upper()},
        {"run": str(ADDRESS["run"]) + "\n"}, {"run": ["x"]}, {"run": "{" + str(ADDRESS["run"]) + "}"},
        {"step": None}, {"step": 0}, {"step": -1}, {"step": 2**31}, {"step": 10**30}, {"step": True}, {"step": 1.0},
        {"step": "3"}, {"agent": 7}, {"agent": "a\x00b"}, {"agent": "\ud800"}, {"agent": "x" * 151},
        {"agent": "😀" * 100}, {"agent": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", [STEP, "unknown.step", ADVANCE_TASK])
def test_an_address_is_checked_for_steps_advances_and_unknown_steps(wrong: dict[str, object], task: str) -> None:
    headers = {"task": task, "id": "one"}
    kwargs = {**ADDRESS, **wrong}
    if task == ADVANCE_TASK and "step" in wrong:
        assert "step" not in read(message([[], kwargs, {}], headers)).kwargs
        return
    assert next(iter(wrong)) in why(message([[], kwargs, {}], headers))


@pytest.mark.parametrize("step", [1, 2**31 - 1])
def test_the_first_and_the_last_step_are_let_through(step: int) -> None:
    assert read(message([[], {**ADDRESS, "step": step}, {}])).kwargs["step"] == step


@pytest.mark.parametrize("task_id", [None, 7, "", "a\nb", "x" * 256, ["x"], "\u202e"])
def test_a_hint_needs_an_id_that_a_log_can_show(task_id: object) -> None:
    assert "its id must be" in why(message([[], ADDRESS, {}], {"task": STEP, "id": task_id}))


@pytest.mark.parametrize("task_id", [None, 7, "", "a\nb", "x" * 256])
def test_a_submission_of_any_id_is_let_through_to_be_refused_where_its_producer_looks(task_id: object) -> None:
    found = read(message([["agent"], {}, {}], {"task": SUBMIT_TASK, "id": task_id}))
    assert found.submitted_as == (task_id if isinstance(task_id, str) else "")
    assert found.task_id.isprintable() and 0 < len(found.task_id) < 256
    assert found.args == ("agent",)


@pytest.mark.parametrize(
    "name", ["celery.map", "celery.chain", "celery.chord", "celery.group", "celery.backend_cleanup"]
)
def test_celerys_own_tasks_which_run_others_are_refused(name: str) -> None:
    assert "Celery's own" in why(message([[], ADDRESS, {}], {"task": name, "id": "one"}))


@pytest.mark.parametrize("name", [7, "", "a\nb", "x" * 256, ["x"], True, b"bytes"])
def test_the_name_of_a_task_is_a_printable_text(name: object) -> None:
    assert "name of its task" in why(message([[], ADDRESS, {}], {"task": name, "id": "one"}))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (message(b"{secret"), "cannot be decoded"),
        (message(b"[" * 50_000), "RecursionError"),
        (message(b"\xffsecret"), "UnicodeDecodeError"),
        (message({"__type__": "datetime", "__value__": "secret"}), "cannot be decoded"),
        (message({"__type__": "decimal", "__value__": "secret"}), "cannot be decoded"),
        (message(b"secret", content_type="application/x-python-serialize"), "content type"),
        (message(b"secret", content_type=None), "content type"),
        (message(b"secret", encoding="zlib_codec"), "content encoding"),
        (message(b"secret", encoding="punycode"), "content encoding"),
        (message([[], {}]), "expected 3, got 2"),
        (message({"secret": 1}), "object without args"),
        (message("secret"), "no list"),
        (message(["secret", {}, {}]), "no list and mapping"),
        (message([[], "secret", {}]), "no list and mapping"),
        (message(b" " * (LARGEST_HINT_BYTES + 1)), "too large"),
        (message(b" " * (LARGEST + 1), {"task": SUBMIT_TASK, "id": "one"}), "too large"),
        (message([[], {**ADDRESS, "run": "secret"}, {}]), "found a text of 6 characters"),
        (message([[], ADDRESS, {}], {}), "names no task"),
    ],
)
def test_what_cannot_be_read_is_refused_without_a_word_of_it(made: Message, said: str) -> None:
    found = why(made)
    assert said in found
    assert "secret" not in found


def test_a_submission_is_known_by_its_headers_or_by_its_body_of_protocol_1() -> None:
    assert submission_id(message(b"{", {"task": SUBMIT_TASK, "id": "one"})) == "one"
    assert submission_id(message(b"{", {"task": SUBMIT_TASK})) == ""
    assert submission_id(message(b"{", {"task": STEP, "id": "one"})) is None
    old = message({"task": SUBMIT_TASK, "id": "two", "args": 7, "kwargs": {}}, {})
    why(old)
    assert submission_id(old) == "two"


@given(st.integers(0, 2**32), st.sampled_from([shape for shape in ANYWHERE if shape.__name__ != "packed"]))
def test_any_message_is_a_task_of_ours_or_one_short_error(seed: int, shape: Any) -> None:
    junk = shape(Random(seed))
    made = message(
        junk.body,
        junk.headers,
        content_type=junk.properties.get("content_type", "application/json"),
        encoding=junk.properties.get("content_encoding", "utf-8"),
    )
    try:
        found = read(made)
    except UnusableMessage as error:
        assert len(error.message) < 400 and error.message.isprintable()
    else:
        assert found.task == SUBMIT_TASK or "run" in found.kwargs
        assert found.headers()["eta"] is None
