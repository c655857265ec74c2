"""`paidonce submit`, `runs`, `show` and `cancel`, with no worker near."""

from __future__ import annotations

import json
import sqlite3

import pytest

from paidonce.cli import bulk_submit
from tests.cli.conftest import NOBODY_LISTENS, Project

AWAY = {"BROKER_URL": f"redis://{NOBODY_LISTENS}"}


def test_submit_prints_the_run_id_and_the_run_is_stored_with_the_broker_down(project: Project) -> None:
    done = project.paidonce("submit", "adder", "--input", '{"count": 1}', "--priority", "9", "--key", "k", **AWAY)
    assert done.code == 0
    assert list(done.document) == ["run_id"]
    assert "stay in the store" in done.err
    shown = project.paidonce("show", done.document["run_id"], "--json", **AWAY).document
    assert (shown["state"], shown["input"], shown["key"], shown["priority"]) == ("pending", {"count": 1}, "k", 9)
    again = project.paidonce("submit", "adder", "--input", '{ "count":1 }', "--key", "k", **AWAY)
    assert again.document == done.document


def test_the_same_key_with_another_input_is_refused_naming_both(project: Project) -> None:
    project.paidonce("submit", "adder", "--input", '{"count": 1}', "--key", "k", **AWAY)
    done = project.paidonce("submit", "adder", "--input", '{"count": 2}', "--key", "k", "--json", **AWAY)
    assert (done.code, done.error["code"]) == (2, "key_conflict")
    assert '{"count":1}' in done.error["message"] and '{"count":2}' in done.error["message"]


def test_the_input_is_checked_where_the_agents_modules_are_at_hand(project: Project) -> None:
    done = project.paidonce("submit", "adder", "--input", '{"count": []}', "--json", AGENTS="agents", **AWAY)
    assert (done.code, done.error["code"]) == (2, "invalid_input")
    assert project.paidonce("runs", "--json", **AWAY).document == []
    warned = project.paidonce("submit", "adder", "--input", '{"count": []}', AGENTS="elsewhere", **AWAY)
    assert warned.code == 0
    assert "the input is not checked here: module 'elsewhere' was not found" in warned.err


def test_an_agent_that_no_module_at_hand_holds_is_worth_a_word(project: Project) -> None:
    warned = project.paidonce("submit", "ader", AGENTS="agents", **AWAY)
    assert warned.code == 0 and list(warned.document) == ["run_id"]
    assert "no module of PAIDONCE_AGENTS holds agent 'ader', did you mean 'adder'?" in warned.err
    assert "Warning" not in project.paidonce("submit", "ader", **AWAY).err


def test_waiting_ends_after_the_timeout_and_the_run_goes_on(project: Project) -> None:
    arguments = ("submit", "adder", "--input", '{"count": 1}', "--wait", "--timeout", "0.2", "--json")
    done = project.paidonce(*arguments, **AWAY)
    assert (done.code, done.error["code"], done.document["state"]) == (6, "result_timeout", "pending")
    assert project.paidonce("show", done.document["run_id"], **AWAY).code == 0


def test_a_run_is_submitted_for_each_line_of_a_file_and_again_only_for_lines_without_a_key(project: Project) -> None:
    lines = [
        {"input": {"count": 1}, "key": "a", "tags": {"user": "u1"}, "priority": 9},
        {"input": {"count": 2}, "key": "b", "queue": "side"},
        {"input": {"count": 1}, "key": "a", "tags": {"user": "u1"}, "priority": 9},
        {"input": {"count": 3}},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)  # blank lines are left out, and counted
    (project.folder / "runs.jsonl").write_text(text, encoding="utf-8-sig")
    arguments = ("submit", "adder", "--from", "runs.jsonl", "--tag", "batch=7", "--priority", "3")
    done = project.paidonce(*arguments, "--json", **AWAY)
    assert done.code == 0, done.err
    told = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["line"], line["created"]) for line in told] == [(1, True), (3, True), (5, False), (7, True)]
    assert told[0]["run_id"] == told[2]["run_id"]
    assert "4 runs submitted, 1 of them known by their keys." in done.err and done.err.count("stay in the store") == 1
    runs = {run["key"]: run for run in project.paidonce("runs", "--json", **AWAY).document}
    assert len(runs) == 3
    assert {key: (run["tags"], run["priority"], run["queue"]) for key, run in runs.items()} == {
        "a": ({"batch": "7", "user": "u1"}, 9, "paidonce.default"),
        "b": ({"batch": "7"}, 3, "paidonce.side"),
        None: ({"batch": "7"}, 3, "paidonce.default"),
    }
    again = project.paidonce("submit", "adder", "--from", "-", stdin=text, **AWAY)
    assert (again.code, again.out) == (0, "4 runs submitted, 3 of them known by their keys.\n")
    assert len(project.paidonce("runs", "--json", **AWAY).document) == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected an object, found list"),
        ('{"input": {}, "kye": "x"}', "found 'kye'; expected input, key, tags, priority, queue"),
        ('{"input": [1]}', "must be a JSON object of its arguments by name"),
        ('{"input": {}, "priority": 10}', "priority 10"),
        ('{"input": {}, "tags": 3}', "tags of agent 'adder' must be an object"),
        ('{"input": {"count": 2}, "key": "k1"}', "already belongs to run"),
    ],
)
def test_a_line_that_is_refused_is_named_and_those_before_it_are_submitted(
    project: Project, line: str, said: str
) -> None:
    good = [json.dumps({"input": {"count": 1}, "key": f"k{number}"}) for number in range(1, 4)]
    (project.folder / "runs.jsonl").write_text("\n".join([*good, line, '{"input": {"count": 9}}', ""]))
    done = project.paidonce("submit", "adder", "--from", "runs.jsonl", "--json", **AWAY)
    *told, last = [json.loads(each) for each in done.out.splitlines()]
    assert done.code == 2
    message = last["error"]["message"]
    assert message.startswith("runs.jsonl line 4: ") and said in message, message
    assert "run(s) " in message and "lines with a key are not submitted twice" in message
    assert last["error"]["details"]["line"] == 4
    conflict = "already" in said
    assert [each["line"] for each in told] == ([1, 2, 3, 5] if conflict else [1, 2, 3])
    assert len(project.paidonce("runs", "--json", **AWAY).document) == len(told)


@pytest.mark.parametrize("second", ['{"input": {"count": []}}', "{"])
def test_a_chunk_of_which_nothing_was_submitted_is_not_counted(
    project: Project, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    monkeypatch.setattr(bulk_submit, "CHUNK_SUBMISSIONS", 2)
    good = [json.dumps({"input": {"count": 1}, "key": f"k{number}"}) for number in range(1, 5)]
    (project.folder / "runs.jsonl").write_text("\n".join([*good[:2], second, *good[2:]]))
    done = project.paidonce("submit", "adder", "--from", "runs.jsonl", "--json", AGENTS="agents", **AWAY)
    *told, last = [json.loads(each) for each in done.out.splitlines()]
    assert [each["line"] for each in told] == [1, 2]
    message = last["error"]["message"]
    assert message.startswith("runs.jsonl line 3: ") and "2 run(s) before it are submitted" in message, message


def test_options_of_a_single_run_are_refused_with_a_file(project: Project) -> None:
    for option in (["--input", "{}"], ["--key", "k"], ["--wait"]):
        done = project.paidonce("submit", "adder", "--from", "runs.jsonl", *option, "--json", **AWAY)
        assert (done.code, done.error["code"]) == (2, "usage")
        assert "with --from each line has its own" in done.error["message"]
    missing = project.paidonce("submit", "adder", "--from", "nosuch.jsonl", "--json", **AWAY)
    assert (missing.code, missing.error["code"]) == (2, "invalid_input") and "nosuch.jsonl" in missing.error["message"]


def test_a_line_is_read_no_further_than_it_may_be_long(project: Project) -> None:
    (project.folder / "runs.jsonl").write_bytes(b'{"input": {"count": 1}}\n' + b" " * 200_000)
    done = project.paidonce("submit", "adder", "--from", "runs.jsonl", "--json", MAX_PAYLOAD_BYTES="2000", **AWAY)
    told, last = [json.loads(each) for each in done.out.splitlines()]
    assert (done.code, last["error"]["code"], told["line"]) == (2, "payload_too_large", 1)
    assert "runs.jsonl line 2: more than 67,536 bytes" in last["error"]["message"]


def test_input_is_read_no_further_than_it_may_be_large_and_before_it_is_parsed(project: Project) -> None:
    with (project.folder / "huge.json").open("wb") as file:
        file.truncate(3 * 2**30)  # not valid JSON either: its size is told first
    (project.folder / "deep.json").write_bytes(b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}")
    for command, code, said in (
        (("submit", "adder", "--input", "@huge.json"), "payload_too_large", "more than 52,428,800 bytes"),
        (("prices", "import", "huge.json"), "payload_too_large", "huge.json: more than 52,428,800 bytes"),
        (("submit", "adder", "--input", "@deep.json"), "invalid_input", "nested deeper than 254 levels"),
        (("prices", "import", "deep.json"), "invalid_input", "nested without an end"),
    ):
        done = project.paidonce(*command, "--json", **AWAY)
        assert (done.code, done.error["code"]) == (2, code)
        assert said in done.error["message"] and len(done.error["message"]) < 1_000
    piped = project.paidonce(
        "submit", "a", "--input", "-", "--json", stdin="1" * 5_000, MAX_PAYLOAD_BYTES="2000", **AWAY
    )
    assert (piped.code, piped.error["code"]) == (2, "payload_too_large")


def test_counts_beyond_what_a_store_can_hold_are_refused(project: Project) -> None:
    for command in (("runs", "--limit", "1" + "0" * 30), ("show", "r", "--step", "1" + "0" * 30)):
        done = project.paidonce(*command, "--json", **AWAY)
        assert done.code == 2 and "Traceback" not in done.err and "not in the range" in done.out + done.err


def test_a_tag_of_megabytes_that_an_older_version_took_is_listed_by_its_beginning(project: Project) -> None:
    refused = project.paidonce("submit", "adder", "--tag", f"user={'x' * 100_000}", "--json", **AWAY)
    assert (refused.code, refused.error["code"]) == (2, "invalid_input")
    assert "PAIDONCE_MAX_TAG_BYTES" in refused.error["message"] and len(refused.err) + len(refused.out) < 2_000

    run_id = project.paidonce("submit", "adder", "--tag", "user=u1", **AWAY).document["run_id"]
    with sqlite3.connect(project.home / "paidonce.db") as database:
        database.execute("UPDATE runs SET tags = ?", (json.dumps({"user": "x" * 5_000_000}),))
    for command in (("runs",), ("show", run_id)):
        done = project.paidonce(*command, **AWAY)
        assert done.code == 0 and "user=xxx" in done.out and "--json shows all" in "".join(done.out.split("\n"))
        assert len(done.out) < 20_000
    assert len(project.paidonce("runs", "--json", **AWAY).document[0]["tags"]["user"]) == 5_000_000


def test_runs_are_listed_newest_first_by_state_and_agent(project: Project) -> None:
    ids = [project.paidonce("submit", name, **AWAY).document["run_id"] for name in ("a", "b", "a")]

    def listed(*options: str) -> list[str]:
        return [run["run_id"] for run in project.paidonce("runs", *options, "--json", **AWAY).document]

    assert listed() == ids[::-1]
    assert listed("--agent", "a", "--limit", "1") == [ids[2]]
    assert listed("--state", "succeeded") == []
    table = project.paidonce("runs", **AWAY).out
    assert all(run_id in table for run_id in ids)


def test_a_run_that_never_began_is_cancelled_at_once_and_cancelling_again_does_nothing(project: Project) -> None:
    run_id = project.paidonce("submit", "adder", **AWAY).document["run_id"]
    done = project.paidonce("cancel", run_id, "--json", **AWAY)
    assert done.document == {"run_id": run_id, "state": "cancelled", "cancel_requested": True}
    assert project.paidonce("cancel", run_id, "--json", **AWAY).document["cancel_requested"] is False
    waited = project.paidonce("submit", "adder", "--key", "k", **AWAY)
    project.paidonce("cancel", waited.document["run_id"], **AWAY)
    ended = project.paidonce("submit", "adder", "--key", "k", "--wait", "--json", **AWAY)
    assert (ended.code, ended.error["code"]) == (5, "run_cancelled")


@pytest.mark.parametrize("arguments", [["show", "nosuch"], ["cancel", "nosuch"], ["show", "nosuch", "--step", "1"]])
def test_a_run_that_is_not_there_has_an_exit_code_of_its_own(project: Project, arguments: list[str]) -> None:
    done = project.paidonce(*arguments, "--json", **AWAY)
    assert (done.code, done.error["code"]) == (4, "not_found")
    plain = project.paidonce(*arguments, **AWAY)
    assert plain.code == 4
    assert plain.out == ""
    assert plain.err.startswith("Error: there is no run 'nosuch'")


def test_a_step_that_is_not_there_is_not_found(project: Project) -> None:
    run_id = project.paidonce("submit", "adder", **AWAY).document["run_id"]
    done = project.paidonce("show", run_id, "--step", "7", "--json", **AWAY)
    assert done.code == 4
    assert f"run {run_id} has no step 7" in done.error["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "--json"],
        ["submit", "adder", "--priority", "10", "--json"],
        ["submit", "adder", "--timeout", "3", "--json"],
        ["runs", "--state", "asleep", "--json"],
        ["show", "x", "--step", "0", "--json"],
        ["nosuch", "--json"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_document_too(project: Project, arguments: list[str]) -> None:
    done = project.paidonce(*arguments)
    assert (done.code, done.error["code"]) == (2, "usage")
    assert "Usage: paidonce" in done.err
