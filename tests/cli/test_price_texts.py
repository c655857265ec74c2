"""Prices as people write them: exact amounts, dates with their zone, files whose every mistake has a place."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce.cli.texts.price_texts import parse_amount, parse_moment, parse_name, parse_price_file
from paidonce_models.errors import InvalidInput
from paidonce_models.money import decimal_usd_string

HEADER = "provider,model,valid_from,valid_until,input_usd_per_mtok,output_usd_per_mtok,note\n"


def test_a_name_is_parted_at_its_first_slash() -> None:
    assert parse_name("openai/gpt-4o") == ("openai", "gpt-4o")
    assert parse_name("vllm/meta-llama/Llama-3") == ("vllm", "meta-llama/Llama-3")
    assert parse_name("*/llama-*") == (None, "llama-*")
    for wrong in ("gpt-4o", "/gpt-4o", "openai/", " / "):
        with pytest.raises(InvalidInput, match="expected PROVIDER/MODEL"):
            parse_name(wrong)


@given(st.integers(0, 10**15))
def test_an_amount_is_read_as_exactly_as_it_is_printed(nanousd: int) -> None:
    printed = decimal_usd_string(nanousd)
    assert printed is not None
    assert parse_amount(printed, "--input") == nanousd


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-1", r"--input \(-1\) cannot be below 0; leave it out"),
        ("0.0000000001", "finer than a nano-dollar"),
        ("cheap", "--input: 'cheap' is not a decimal number"),
        ("nan", "not a finite number"),
        ("1e999999999", "check the exponent"),
        ("1e-999999999", "check the exponent"),
    ],
)
def test_an_amount_that_makes_no_sense_is_refused_by_its_name(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_amount(text, "--input")


def test_a_date_begins_at_midnight_utc_and_a_time_needs_its_zone() -> None:
    assert parse_moment("2026-12-01", "--from") == datetime(2026, 12, 1, tzinfo=UTC)
    assert parse_moment("2026-12-01T09:30Z", "--from") == datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
    one_hour_east = datetime(2026, 12, 1, 9, 30, tzinfo=timezone(timedelta(hours=1)))
    assert parse_moment("2026-12-01T09:30+01:00", "--from") == one_hour_east
    with pytest.raises(InvalidInput, match="--from: '2026-12-01T09:30' has no time zone; add one"):
        parse_moment("2026-12-01T09:30", "--from")
    with pytest.raises(InvalidInput, match="--from: 'tomorrow' is no date; write 2026-12-01"):
        parse_moment("tomorrow", "--from")


def test_csv_and_json_say_the_same() -> None:
    text = HEADER + "openai,gpt-4o,2026-11-01,,2.50,10,contract\r\n*,llama-*,2026-11-01,2026-12-01,0.05,0,\r\n"
    records: list[dict[str, object]] = [
        {
            "provider": "openai",
            "model": "gpt-4o",
            "valid_from": "2026-11-01",
            "input_usd_per_mtok": 2.5,
            "output_usd_per_mtok": "10.000000000",
            "note": "contract",
            "id": "as printed by list",
            "in_force": True,
        },
        {
            "provider": None,
            "model": "llama-*",
            "valid_from": "2026-11-01T00:00:00Z",
            "valid_until": "2026-12-01",
            "input_usd_per_mtok": 0.05,
            "output_usd_per_mtok": 0,
        },
    ]
    from_csv = parse_price_file(b"\xef\xbb\xbf" + text.encode(), "prices.csv")
    assert from_csv == parse_price_file(json.dumps(records).encode(), "prices.json")
    assert from_csv == parse_price_file(json.dumps({"prices": records}).encode(), "prices.json")
    assert [(row.name, row.input_nanousd_per_mtok, row.output_nanousd_per_mtok) for row in from_csv] == [
        ("openai/gpt-4o", 2_500_000_000, 10_000_000_000),
        ("*/llama-*", 50_000_000, 0),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "f: holds no prices; the columns are provider, model"),
        (b"[]", "f: holds no prices"),
        (b"{}", r"f: expected a list of objects, or \{\"prices\""),
        (b"[1]", "f: expected a list of objects"),
        (b"[", "f: is not JSON"),
        (b"[" * 5_000 + b"]" * 5_000, "f: is nested without an end"),
        (b"[" + b"{}," * 10_000 + b"{}]", "f: holds 10,001 prices, at most 10,000 are added at a time"),
        (b"\xff\xfe", "f: byte 0 is not UTF-8"),
        (HEADER.encode() + b"p,m,2026-01-01,,1,1,n\np,m,2026-02-01,,-1,1,n\n", r"f, row 2: input_usd_per_mtok \(-1\)"),
        (HEADER.encode() + b"p,m,,,1,1,n\n", "f, row 1: valid_from is missing"),
        (HEADER.encode() + b"p,m,soon,,1,1,n\n", "f, row 1: valid_from: 'soon' is no date"),
        (HEADER.encode() + b"p,m,2026-01-02,2026-01-01,1,1,n\n", "f, row 1: .* must be after"),
        (HEADER.encode() + b"p,a*b,2026-01-02,,1,1,n\n", "f, row 1: price row for model"),
        (HEADER.encode() + b"p,m,2026-01-02,,1,1,n,more\n", "f, row 1: has more fields than the header"),
        (HEADER.encode() + b'p,"m,2026\n', "is not CSV"),
        (b"model,price\nm,1\n", "f, row 1: unknown column price"),
        (b'[{"model": 4, "valid_from": "2026-01-01", "input_usd_per_mtok": 1}]', "model must be a text, found 4"),
        (b'[{"model": "m", "valid_from": "2026-01-01", "input_usd_per_mtok": true}]', "must be a number"),
        (b'[{"model": "m", "valid_from": "2026-01-01", "input_usd_per_mtok": NaN}]', "must be a number"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_the_place(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_price_file(data, "f")
