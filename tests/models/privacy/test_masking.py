"""Credentials in texts: found in every form they come in, and nothing else is touched."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce_models.privacy.masking import MASK, Masker, mask, mask_names, mask_values

MASKER = Masker(["X-Tenant-Pin"])
SECRET = "hunter2-Sesame"


def masked(text: str) -> str:
    return MASKER.mask(text, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"GET https://api.x.com/v1?key={SECRET}&q=why#top", "GET https://api.x.com/v1?key=***&q=why#top"),
        (f"https://x.com/?q=1&api_key={SECRET}", "https://x.com/?q=1&api_key=***"),
        (f"https://u:{SECRET}@host/p?mail=a@b.c", "https://u:***@host/p?mail=a@b.c"),
        ("https://u:p@ss@host/x", "https://u:***@host/x"),
        ("redis://:pa/ss#w@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://u@h/db?password=p&sslmode=require", "postgresql://u@h/db?password=***&sslmode=require"),
        ("amqp://guest:guest@localhost:5672//", "amqp://guest:***@localhost:5672//"),
        ("https://ghp_abcdefghij0123456789@github.com/x", "https://***@github.com/x"),
        ("bob:hunter2@db.internal:5432", "bob:***@db.internal:5432"),
        ("Authorization: Bearer abcdef for gpt", "Authorization: Bearer *** for gpt"),
        ("authorization=Basic dXNlcjpwYXNz", "authorization=Basic ***"),
        ('Authorization: Digest username="M", response="66"\nx', "Authorization: Digest ***\nx"),
        ('Authorization: Token token="abc", email="x"', "Authorization: Token ***"),
        ("Authorization: Bearer abc==, q=1", "Authorization: Bearer ***, q=1"),
        ("Cookie: a=b; c=d\nnext", "Cookie: ***\nnext"),
        ("{'Authorization': 'Bearer abc', 'q': 'v'}", "{'Authorization': 'Bearer ***', 'q': 'v'}"),
        ("{'headers': {'X-Api-Key': ['abc']}}", "{'headers': {'X-Api-Key': ['***']}}"),
        (
            "[(b'authorization', b'Bearer zz'), (b'accept', b'x')]",
            "[(b'authorization', b'Bearer ***'), (b'accept', b'x')]",
        ),
        ('{"api_key":"s\\"x","n":1}', '{"api_key":"***","n":1}'),
        (r"{\"api_key\":\"s\",\"n\":1}", r"{\"api_key\":\"***\",\"n\":1}"),
        ('{"credentials": {"token": "x", "user": "bob"}}', '{"credentials": {"token": "***", "user": "bob"}}'),
        ("connect(host='db', password='a b')", "connect(host='db', password='***')"),
        ("host=db password=hunter2 dbname=x", "host=db password=*** dbname=x"),
        (r"host=db password='it\'s x' dbname=x", "host=db password='***' dbname=x"),
        ("PGPASSWORD=hunter2 psql", "PGPASSWORD=*** psql"),
        ("<password>abc</password>", "<password>***</password>"),
        ("x-tenant-pin: 1234", "x-tenant-pin: ***"),
        ("Incorrect key sk-proj-abc123456789 given", "Incorrect key sk-*** given"),
        ("AKIAIOSFODNN7EXAMPLE is unknown", "AKIA*** is unknown"),
        ("aws_secret_access_key=wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key=***"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.dozjgNryP4J3", "eyJ***"),
        (
            "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----",
        ),
    ],
)
def test_a_credential_is_masked_and_the_rest_stays(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8000/x?mail=a@b.c",
        "git@github.com:org/repo",
        "mailto:bob@x.com",
        "celery@worker-1",
        "image repo:tag@sha256:abcdef",
        "Unexpected token: colon",
        "unexpected token , in JSON at position 3",
        "max_tokens=4096, total_tokens: 12",
        "api_key=None",
        "the password is missing",
        "scikit: sk-learn-contrib-package",
        "KeyError: 'question'",
        'duplicate key value violates unique constraint "runs_key"',
        "step 3 of run 0193-abc: attempt 2 is lost",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert masked(text) == text


def test_the_value_of_a_secret_variable_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_API_KEY", "plainvaluewithoutform")
    monkeypatch.setenv("REPORTS_DATABASE_URL", "postgresql://u:longenoughpassword@db/x")
    monkeypatch.setenv("SHORT_TOKEN", "word")
    assert mask("no account for 'plainvaluewithoutform'") == "no account for '***'"
    assert mask("login failed with longenoughpassword") == "login failed with ***"
    assert mask("a word stays") == "a word stays"


def test_names_of_ones_own_hold_for_the_process_until_they_are_replaced() -> None:
    mask_names(["badge-number"])
    try:
        assert mask("badge_number=77 q=1") == "badge_number=*** q=1"
        assert mask_values({"badgeNumber": "77", "list": ["badge-number: 78"]}) == {
            "badgeNumber": MASK,
            "list": ["badge-number: ***"],
        }
    finally:
        mask_names([])
    assert mask("badge_number=77") == "badge_number=77"


PIECES = st.sampled_from(
    [
        "password",
        "api_key",
        "Authorization",
        "Cookie",
        "token",
        "Bearer ",
        "://",
        "u:p@",
        "@",
        ":",
        "=",
        "'",
        '"',
        "\\",
        "&",
        "?key=",
        "sk-abc123456789",
        "eyJ",
        ".",
        ",",
        " ",
        "\n",
        "***",
        "{",
        "[",
        "http",
        "-----BEGIN PRIVATE KEY-----",
        "x",
        "7",
    ]
)


@given(st.lists(PIECES, max_size=25).map("".join))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    once = masked(text)
    assert masked(once) == once


@pytest.mark.parametrize(
    "piece",
    [
        "://a:",
        "://a:b@",
        "sk-",
        "eyJa-",
        "password=",
        "password='",
        'password="\\',
        "cookie:",
        "a:b@",
        "token: ",
        "Bearer ",
        "\\",
        "-----BEGIN PRIVATE KEY-----",
        "api_key, ",
        "password=({[",
        "!a:",
        "%3D",
        "?key=",
        "password>",
        "<password>",
    ],
)
def test_a_text_that_is_made_to_hurt_takes_no_longer_than_in_proportion(piece: str) -> None:
    def seconds(characters: int) -> float:
        text = piece * (characters // len(piece))
        began = time.process_time()
        masked(text)
        return time.process_time() - began

    small = min(seconds(8_000) for _ in range(2))
    assert seconds(80_000) < 40 * max(small, 0.002), "ten times the text must not take a hundred times as long"
