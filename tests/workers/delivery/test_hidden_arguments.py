"""What Celery's events and logs are told of a message's arguments: ids and names of ours, nothing of anybody's else."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu import Message

from paidonce_workers.delivery.hidden_arguments import HIDDEN, QuietRequest

RUN = "0193a0b1-7c2d-7e3f-8a9b-0c1d2e3f4a5b"
SECRET = "Sesame-4711-open"


def request(headers: dict[str, Any], given: dict[str, Any] | None = None) -> QuietRequest:
    app = Celery("toy", set_as_current=False)

    @app.task(name="toy.step")  # type: ignore[untyped-decorator]  # Celery publishes no types
    def step() -> None:
        """Nothing is run."""

    named = {"id": "1", "task": "toy.step", **headers}
    message = Message(
        body="[[], {}, {}]",
        content_type="application/json",
        content_encoding="utf-8",
        headers=named,
        delivery_info={},
        delivery_tag=1,
    )
    return QuietRequest(message, app=app, task=step, headers=given)


@pytest.mark.parametrize(
    "shown", [f"{{agent=research, step=3, run={RUN}}}", f"{{agent=research, run={RUN}}}", f"{{agent=, run={RUN}}}"]
)
def test_what_our_own_messages_say_of_themselves_is_shown(shown: str) -> None:
    made = request({"argsrepr": "()", "kwargsrepr": shown})
    assert (made.argsrepr, made.kwargsrepr) == ("()", shown)


@pytest.mark.parametrize(
    "kwargs",
    [f"{{'secret': '{SECRET}'}}", f"{{agent=a, run={SECRET}}}", f"{{agent=a, run={RUN}}} {SECRET}", None, 7, [SECRET]],
)
def test_what_anybody_else_says_is_hidden(kwargs: Any) -> None:
    made = request({"argsrepr": f"('{SECRET}',)", "kwargsrepr": kwargs})
    assert (made.argsrepr, made.kwargsrepr) == (HIDDEN, HIDDEN)
    assert SECRET not in repr(made) + str(made.info(safe=True))


def test_headers_that_celery_made_of_an_old_protocol_are_hidden_too() -> None:
    converted = {"id": "1", "task": "toy.step", "argsrepr": f"('{SECRET}',)", "kwargsrepr": "{}"}
    made = request({}, converted)
    assert (made.argsrepr, made.kwargsrepr) == (HIDDEN, HIDDEN)
    assert converted["argsrepr"] != HIDDEN, "the message itself is left as it came"
