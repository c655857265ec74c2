"""`paidonce prices`, and a run whose calls are priced by a row that was set before it."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from tests.cli.conftest import Project

SELF_HOSTED = """
from paidonce import agent, record_usage, step


@step
async def ask() -> int:
    for model in ("gpt-4o-mini", "my-llama", "nobody-knows"):
        record_usage(
            provider="openai", model=model, input_tokens=1_000, cache_read_tokens=400, output_tokens=50
        )
    return 1


@agent
async def asker() -> int:
    return await ask()
"""


def read_calls(project: Project) -> list[dict[str, Any]]:
    with sqlite3.connect(project.home / "paidonce.db") as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM calls").fetchall()
    connection.close()
    return [dict(row) for row in rows]


@pytest.mark.slow
def test_a_run_is_priced_by_the_rows_that_were_set_before_it(project: Project) -> None:
    (project.folder / "asking.py").write_text(SELF_HOSTED)
    mini = project.paidonce(
        "prices", "set", "openai/gpt-4o-mini", "--input", "0.12", "--cached-input", "0.06", "--output", "0.48", "--json"
    ).document["price"]
    hosted = project.paidonce("prices", "set", "*/my-*", "--input=0.01", "--output=0", "--json").document["price"]
    ran = project.paidonce("run", "asking.py:asker", "--json")
    assert ran.code == 0, ran.err
    by_model = {call["model_requested"]: call for call in read_calls(project)}
    call = by_model["gpt-4o-mini"]
    assert call["price_source"] == f"own:{mini['id']} openai/gpt-4o-mini"
    assert (call["input_cost_nanousd"], call["cache_read_cost_nanousd"]) == (600 * 120, 400 * 60)
    assert (call["output_cost_nanousd"], call["cost_nanousd"]) == (50 * 480, 600 * 120 + 400 * 60 + 50 * 480)
    assert (call["input_nanousd_per_mtok"], call["cache_read_nanousd_per_mtok"]) == (120_000_000, 60_000_000)
    call = by_model["my-llama"]
    assert (call["price_source"], call["cost_nanousd"]) == (f"own:{hosted['id']} */my-*", 1_000 * 10)
    call = by_model["nobody-knows"]
    assert (call["price_source"], call["cost_nanousd"], call["input_tokens"]) == (None, None, 1_000)


def test_setting_a_price_ends_the_row_before_it_and_keeps_it(project: Project) -> None:
    first = project.paidonce(
        "prices", "set", "openai/gpt-4o", "--input", "2.50", "--output", "10", "--from", "2026-01-01", "--json"
    ).document
    second = project.paidonce(
        "prices", "set", "openai/GPT-4o", "--input", "2", "--from", "2026-06-01", "--note", "contract 7", "--json"
    ).document
    assert (first["change"], first["ended"]) == ("added", None)
    assert second["ended"] == {"id": first["price"]["id"], "valid_until": "2026-06-01T00:00:00.000000Z"}
    listed = project.paidonce("prices", "list", "--json").document["prices"]
    assert [(row["id"], row["valid_until"], row["input_usd_per_mtok"]) for row in listed] == [
        (first["price"]["id"], "2026-06-01T00:00:00.000000Z", "2.500000000"),
        (second["price"]["id"], None, "2.000000000"),
    ]
    assert (listed[1]["cache_read_usd_per_mtok"], listed[1]["note"]) == (None, "contract 7")
    in_may = project.paidonce("prices", "list", "--at", "2026-05-01", "--json").document["prices"]
    assert [row["id"] for row in in_may] == [first["price"]["id"]]
    again = project.paidonce("prices", "set", "openai/gpt-4o", "--input", "2", "--from", "2026-06-01", "--json")
    assert again.document["change"] == "unchanged"


def test_overlapping_dates_are_refused_with_one_error_that_names_both(project: Project) -> None:
    project.paidonce("prices", "set", "openai/gpt-4o", "--input", "2.50", "--from", "2026-06-01")
    done = project.paidonce("prices", "set", "openai/gpt-4o", "--input", "2", "--from", "2026-05-01", "--json")
    assert (done.code, done.error["code"]) == (2, "invalid_input")
    assert "own:" in done.error["message"] and "the new row openai/gpt-4o" in done.error["message"]
    assert "nothing was changed" in done.error["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-4o", "--input", "1"], "expected PROVIDER/MODEL"),
        (["openai/gpt-4o", "--input", "-1"], "--input (-1) cannot be below 0"),
        (["openai/gpt-4o", "--input", "1", "--output", "cheap"], "--output: 'cheap' is not a decimal number"),
        (["openai/gpt-4o", "--input", "1", "--from", "2026-12-01T09:00"], "has no time zone"),
        (["openai/gpt-4o", "--input", "1", "--from", "2026-12-02", "--until", "2026-12-01"], "must be after"),
        (["openai/gpt-4o", "--input", "9999999"], "US dollars per million tokens"),
    ],
)
def test_a_price_that_makes_no_sense_is_refused(project: Project, arguments: list[str], message: str) -> None:
    done = project.paidonce("prices", "set", *arguments, "--json")
    assert (done.code, done.error["code"]) == (2, "invalid_input")
    assert message in done.error["message"]


def test_the_list_says_which_price_applies(project: Project) -> None:
    before = project.paidonce("prices", "list", "--model", "gpt-4o", "--at", "2026-11-20", "--json").document
    assert before["applies"].startswith("genai-prices ") and before["applies"].endswith(" openai/gpt-4o")
    assert [row["output_usd_per_mtok"] for row in before["prices"]] == ["10.000000000"]
    project.paidonce("prices", "set", "openai/gpt-4o", "--input", "2", "--output", "8", "--from", "2026-11-01")
    after = project.paidonce("prices", "list", "--model", "openai/gpt-4o", "--at", "2026-11-20", "--json").document
    assert after["applies"].startswith("own:")
    assert [row["output_usd_per_mtok"] for row in after["prices"]] == ["8.000000000", "10.000000000"]
    text = project.paidonce("prices", "list", "--model", "openai/gpt-4o", "--at", "2026-11-20").out
    assert "8.00" in text and "Calls of openai/gpt-4o at 2026-11-20" in text
    unknown = project.paidonce("prices", "list", "--model", "vllm/mine", "--json").document
    assert (unknown["applies"], unknown["prices"]) == (None, [])


def test_a_file_is_imported_whole_or_not_at_all_and_may_come_again(project: Project) -> None:
    file = project.folder / "prices.csv"
    good = (
        "provider,model,valid_from,input_usd_per_mtok,output_usd_per_mtok,note\n"
        "openai,gpt-4o,2026-01-01,2.50,10,first\n"
        "openai,gpt-4o,2026-06-01,2.25,9,second\n"
    )
    file.write_text(good + "openai,gpt-4o,2026-05-01,-1,9,third\n")
    refused = project.paidonce("prices", "import", str(file), "--json")
    assert (refused.code, "row 3: input_usd_per_mtok (-1)" in refused.error["message"]) == (2, True)
    file.write_text(good + "openai,gpt-4o,2026-06-01,1,9,third\n")
    refused = project.paidonce("prices", "import", str(file), "--json")
    assert (refused.code, "overlap" in refused.error["message"]) == (2, True)
    assert project.paidonce("prices", "list", "--json").document["prices"] == []
    file.write_text(good)
    assert project.paidonce("prices", "import", str(file), "--json").document["added"] == 2
    assert project.paidonce("prices", "import", str(file)).out == "0 added, 2 there already.\n"


def test_what_the_list_prints_can_be_imported_into_another_store(project: Project) -> None:
    for begins in ("2026-01-01", "2026-06-01"):
        project.paidonce("prices", "set", "openai/gpt-4o", "--input", "2.50", "--output", "10", "--from", begins)
    printed = project.paidonce("prices", "list", "--json").out
    done = project.paidonce("prices", "import", "-", "--json", stdin=printed, NAMESPACE="another")
    assert done.document["added"] == 2
    names = ("provider", "model", "valid_from", "valid_until", "input_usd_per_mtok", "output_usd_per_mtok")
    copied = project.paidonce("prices", "list", "--json", NAMESPACE="another").document["prices"]
    assert [[row[name] for name in names] for row in copied] == [
        [row[name] for name in names] for row in json.loads(printed)["prices"]
    ]
    assert project.paidonce("prices", "import", "nowhere.csv").code == 2
