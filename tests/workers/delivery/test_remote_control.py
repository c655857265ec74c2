"""What is a command of remote control, and what is none."""

from __future__ import annotations

import pytest

from paidonce_workers.delivery.remote_control import wrong_with

HANDLERS = {"ping": object(), "revoke": object()}


@pytest.mark.parametrize(
    "body",
    [
        {"method": "ping"},
        {"method": "ping", "arguments": None, "destination": None, "pattern": None, "matcher": None},
        {
            "method": "revoke",
            "arguments": {"task_id": "x"},
            "destination": ["a@b"],
            "pattern": "a*",
            "matcher": "glob",
            "ticket": "t",
            "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "r"},
        },
    ],
)
def test_what_celery_sends_is_a_command(body: object) -> None:
    assert wrong_with(body, HANDLERS) is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "no object"),
        ([], "no object"),
        ("ping", "no object"),
        ({}, "no such command"),
        ({"method": "format\ndisk"}, "no such command"),
        ({"method": ["ping"]}, "no such command"),
        ({"method": "ping", "arguments": 7}, "its arguments is a value of type int"),
        ({"method": "ping", "destination": "a@b"}, "its destination"),
        ({"method": "ping", "pattern": 7}, "its pattern"),
        ({"method": "ping", "reply_to": "x"}, "its reply_to"),
        ({"method": "ping", "reply_to": {"exchange": 7}}, "names no exchange"),
        ({"method": "ping", "more": 1}, "1 unknown field"),
    ],
)
def test_what_is_none_is_named(body: object, said: str) -> None:
    found = wrong_with(body, HANDLERS)
    assert found is not None and said in found
