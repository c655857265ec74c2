"""What kind of failure an error is: of the clients that are installed, and of look-alikes of those that are not."""

from __future__ import annotations

import asyncio
import email.message
import errno
import http.client
import socket
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import openai
import pytest

from paidonce import StepTimedOut
from paidonce.policies import BreakerPolicy, RetryPolicy
from paidonce.policies.asked_waits import LONGEST_SECONDS
from paidonce.policies.failures import describe_failure, leaves_of
from paidonce_models.errors import InvalidInput, StepInterrupt

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def told(error: BaseException) -> set[str]:
    """The kinds of an error without the names of its classes."""
    kinds = describe_failure(error, clock=lambda: NOW).kinds
    return {kind for kind in kinds if kind in ("timeout", "connection") or kind.startswith("http:")}


def asked(error: BaseException) -> float | None:
    """How long the other side asked to wait."""
    return describe_failure(error, clock=lambda: NOW).retry_after_seconds


def failure_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever a client raises is what is tested
        return error
    raise AssertionError("the call did not fail")


def ask_openai(reply: Callable[[Any], Any]) -> Exception:
    """The error of openai's own client for a reply, or for an error of its transport."""
    transport = httpx2.MockTransport(reply)
    with openai.OpenAI(api_key="k", max_retries=0, http_client=httpx2.Client(transport=transport)) as client:
        return failure_of(lambda: client.models.list())


def raising(error: Exception) -> Callable[[Any], Any]:
    def reply(request: Any) -> Any:
        raise error

    return reply


@pytest.mark.parametrize("status", [400, 404, 408, 409, 429, 500, 503])
def test_openais_answers_have_their_status(status: int) -> None:
    error = ask_openai(lambda request: httpx2.Response(status, json={}))
    assert told(error) == {f"http:{status}", f"http:{status // 100}xx"}
    assert {"OpenAIError", "openai.APIStatusError"} <= describe_failure(error).kinds


def test_openais_transport_errors_are_connections_and_time_outs() -> None:
    assert told(ask_openai(raising(httpx2.ConnectError("refused")))) == {"connection"}
    assert told(ask_openai(raising(httpx2.ReadTimeout("slow")))) == {"timeout", "connection"}


def test_openais_header_in_milliseconds_goes_before_the_standards() -> None:
    error = ask_openai(
        lambda request: httpx2.Response(429, headers={"retry-after-ms": "1500", "Retry-After": "2"}, json={})
    )
    assert asked(error) == 1.5


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_httpx_errors(library: Any) -> None:
    def get(reply: Callable[[Any], Any]) -> Exception:
        with library.Client(transport=library.MockTransport(reply)) as client:
            return failure_of(lambda: client.get("http://tool.test/").raise_for_status())

    answered = get(lambda request: library.Response(503, headers={"retry-after": "7"}))
    assert (told(answered), asked(answered)) == ({"http:503", "http:5xx"}, 7.0)
    for name in ("ConnectError", "ReadError", "WriteError", "CloseError", "RemoteProtocolError", "ProxyError"):
        assert told(get(raising(getattr(library, name)("x")))) == {"connection"}, name
    for name in ("ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"):
        assert told(get(raising(getattr(library, name)("x")))) == {"timeout"}, name
    for name in ("UnsupportedProtocol", "LocalProtocolError", "DecodingError", "TooManyRedirects"):
        assert told(get(raising(getattr(library, name)("x")))) == set(), name


def test_errors_of_the_standard_library() -> None:
    headers = email.message.Message()
    headers["Retry-After"] = "3"
    answered = urllib.error.HTTPError("http://tool.test/", 503, "away", headers, None)
    assert (told(answered), asked(answered)) == ({"http:503", "http:5xx"}, 3.0)
    answered.close()
    assert told(urllib.error.URLError(ConnectionRefusedError())) == {"connection"}
    assert told(urllib.error.URLError(TimeoutError())) == {"connection", "timeout"}
    assert told(http.client.IncompleteRead(b"")) == {"connection"}
    assert told(http.client.RemoteDisconnected()) == {"connection"}
    assert told(socket.gaierror(socket.EAI_NONAME, "unknown")) == {"connection"}
    assert told(TimeoutError()) == {"timeout"}
    assert told(StepTimedOut("late")) == {"timeout"}
    assert told(OSError(errno.ENOSPC, "full")) == told(ValueError("x")) == set()


def foreign(qualified_name: str, *bases: type, **attributes: object) -> Any:
    """An instance of a class that looks like one of a client that is not installed."""
    module, _, name = qualified_name.rpartition(".")
    made = type(name, bases or (Exception,), {"__module__": module})
    error = made("x")
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


class Falsy(SimpleNamespace):
    """A ``requests.Response``, which is false where its status is an error."""

    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("error", "kinds", "retry_after_seconds"),
    [
        (
            foreign("requests.exceptions.HTTPError", OSError, response=Falsy(status_code=502, headers={})),
            {"http:502", "http:5xx"},
            None,
        ),
        (foreign("requests.exceptions.ConnectionError", OSError, response=None), {"connection"}, None),
        (foreign("requests.exceptions.ReadTimeout", OSError, response=None), {"timeout"}, None),
        (foreign("requests.exceptions.ChunkedEncodingError", OSError), {"connection"}, None),
        (
            foreign("aiohttp.client_exceptions.ClientResponseError", status=429, headers={"RETRY-AFTER": "12"}),
            {"http:429", "http:4xx"},
            12.0,
        ),
        (foreign("aiohttp.client_exceptions.ClientConnectionError"), {"connection"}, None),
        (foreign("aiohttp.client_exceptions.ServerTimeoutError", TimeoutError), {"timeout"}, None),
        (
            foreign("google.genai.errors.ServerError", code=503, status="UNAVAILABLE", response=None),
            {"http:503", "http:5xx"},
            None,
        ),
        (
            foreign("anthropic.OverloadedError", status_code=529, response=SimpleNamespace(headers={})),
            {"http:529", "http:5xx"},
            None,
        ),
        (
            foreign(
                "botocore.exceptions.ClientError",
                response={"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "9"}}},
            ),
            {"http:503", "http:5xx"},
            9.0,
        ),
        (foreign("botocore.exceptions.EndpointConnectionError"), {"connection"}, None),
        (foreign("botocore.exceptions.ConnectionClosedError"), {"connection"}, None),
        (foreign("redis.exceptions.ConnectionError"), {"connection"}, None),
        (foreign("grpc.RpcError", code=lambda: 503), set(), None),
        (foreign("mine.Odd", code=True, status="503", status_code=1006), set(), None),
    ],
    ids=lambda value: type(value).__qualname__ if isinstance(value, Exception) else "",
)
def test_errors_of_clients_that_are_not_installed(
    error: Exception, kinds: set[str], retry_after_seconds: float | None
) -> None:
    assert (told(error), asked(error)) == (kinds, retry_after_seconds)


@contextmanager
def caught() -> Iterator[list[BaseException]]:
    found: list[BaseException] = []
    try:
        yield found
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        found.append(error)


def test_what_an_error_was_raised_from_counts() -> None:
    with caught() as found:
        raise RuntimeError("search failed") from foreign("tools.Refused", ConnectionRefusedError)
    assert told(found[0]) == {"connection"}
    assert {"RuntimeError", "ConnectionRefusedError", "tools.Refused"} <= describe_failure(found[0]).kinds


def test_the_outermost_answer_explains_the_failure() -> None:
    inner = foreign("inner.Missing", status_code=404, headers={"retry-after": "5"})
    with caught() as found:
        raise foreign("outer.Away", status_code=503) from inner
    assert told(found[0]) == {"http:503", "http:5xx"}
    assert asked(found[0]) is None
    assert "Missing" not in describe_failure(found[0]).kinds


def test_behind_a_broken_connection_there_is_no_answer() -> None:
    """aiohttp's parser gives its errors the code 400, which the other side never sent."""
    with caught() as found:
        raise foreign("aiohttp.ClientPayloadError") from foreign("aiohttp.TransferEncodingError", code=400)
    assert told(found[0]) == {"connection"}


def test_what_was_only_going_on_at_the_time_does_not_count() -> None:
    with caught() as found:
        try:
            raise ConnectionResetError
        except ConnectionResetError:
            raise ValueError("another matter")  # noqa: B904 - the point of the test
    assert told(found[0]) == set()


def test_a_group_of_one_is_that_one() -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [TimeoutError()])])
    assert told(group) == {"timeout"}
    assert told(ExceptionGroup("tasks", [TimeoutError(), ValueError()])) == set()


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError(), TypeError()
    first.__cause__, second.__cause__ = second, first
    assert {"ValueError", "TypeError"} <= describe_failure(first).kinds


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), SystemExit(404), StepInterrupt()])
def test_cancellations_and_interrupts_are_no_exceptions(error: BaseException) -> None:
    assert told(error) == set()
    assert "Exception" not in describe_failure(error).kinds
    assert type(error).__name__ in describe_failure(error).kinds


def test_class_names_are_bare_and_with_their_module() -> None:
    class Away(LookupError): ...

    kinds = describe_failure(Away()).kinds
    assert {"Away", "LookupError", "Exception", "BaseException"} <= kinds
    assert f"{__name__}.{Away.__qualname__}" in kinds
    assert "object" not in kinds and "builtins.LookupError" not in kinds


def answered_with(**headers: str) -> Exception:
    return failure_of(
        lambda: httpx.Response(
            429,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            request=httpx.Request("GET", "http://tool.test/"),
        ).raise_for_status()
    )


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (" 3 ", 3.0),
        ("-5", 0.0),
        ("99999999999", LONGEST_SECONDS),
        ("Wed, 25 Nov 2026 12:00:30 GMT", 30.0),
        ("Wed, 25 Nov 2026 13:00:30 +0100", 30.0),
        ("Wed, 25 Nov 2026 12:00:30 -0000", 30.0),
        ("Wed, 25 Nov 2026 11:00:00 GMT", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert asked(answered_with(retry_after=header)) == seconds


def test_an_error_may_say_itself_when_to_come_back() -> None:
    assert asked(foreign("mine.Busy", retry_after=4)) == 4.0
    assert asked(foreign("mine.Busy", retry_after=timedelta(minutes=1))) == 60.0
    assert asked(foreign("mine.Busy", retry_after=True)) is None
    assert asked(foreign("mine.Busy", retry_after=float("nan"))) is None


def test_properties_that_raise_and_headers_that_are_none_do_no_harm() -> None:
    class Sulking(Exception):
        headers = SimpleNamespace(items=lambda: 3)

        @property
        def response(self) -> object:
            raise RuntimeError("no response yet")

    assert told(Sulking()) == set()
    assert asked(Sulking()) is None


class Answered(Exception):
    """An answer with a status, as SDKs raise it."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(status)
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def test_a_group_has_the_kinds_that_all_its_errors_share_and_the_longest_wait() -> None:
    group = ExceptionGroup(
        "tasks", [Answered(429, retry_after="3"), ExceptionGroup("", [Answered(429), Answered(429)])]
    )
    found = describe_failure(group)
    assert {"http:429", "http:4xx", "Answered", "ExceptionGroup", "Exception"} <= found.kinds
    assert (found.retry_after_seconds, found.summary) == (3.0, "http:429 ExceptionGroup")
    waits = describe_failure(ExceptionGroup("", [Answered(429, retry_after="3"), Answered(503, retry_after="40")]))
    assert waits.retry_after_seconds == 40.0
    assert told(ExceptionGroup("", [Answered(429), Answered(503)])) == set()
    assert told(ExceptionGroup("", [Answered(429), Answered(404)])) == {"http:4xx"}


def test_a_kind_of_one_error_excepts_its_whole_group() -> None:
    mixed = describe_failure(ExceptionGroup("", [Answered(404), Answered(429)]))
    assert not BreakerPolicy().ignores(mixed), "429 speaks of the dependency's own trouble"
    assert BreakerPolicy().ignores(describe_failure(ExceptionGroup("", [Answered(404), Answered(400)])))
    assert not RetryPolicy().covers(describe_failure(ExceptionGroup("", [Answered(429), InvalidInput("no")])))
    assert RetryPolicy(retry_on=("http:429",)).covers(
        describe_failure(ExceptionGroup("", [Answered(429), Answered(429)]))
    )
    assert not RetryPolicy(retry_on=("http:429",)).covers(
        describe_failure(ExceptionGroup("", [Answered(429), ValueError()]))
    )


def test_cancellations_in_a_group_are_what_its_errors_led_to() -> None:
    group = BaseExceptionGroup("tasks", [asyncio.CancelledError(), Answered(429), Answered(429)])
    assert {"http:429", "Exception"} <= describe_failure(group).kinds
    assert [type(leaf) for leaf in leaves_of(group)] == [Answered, Answered]
    assert "Exception" not in describe_failure(BaseExceptionGroup("", [asyncio.CancelledError()] * 2)).kinds
    assert "Exception" not in describe_failure(BaseExceptionGroup("", [Answered(429), KeyboardInterrupt()])).kinds


def test_a_group_behind_a_wrapper_and_wrappers_in_a_group_are_looked_behind() -> None:
    wrapped = RuntimeError("all failed")
    wrapped.__cause__ = ExceptionGroup("", [TimeoutError(), TimeoutError()])
    assert told(wrapped) == {"timeout"}
    other = RuntimeError("this one failed")
    other.__cause__ = TimeoutError()
    assert told(ExceptionGroup("", [wrapped, other])) == {"timeout"}


def test_a_chain_that_bites_its_tail_through_groups_ends() -> None:
    errors = [ValueError(), TypeError()]
    group = ExceptionGroup("", errors)
    for error in errors:
        error.__cause__ = group
    assert "ExceptionGroup" in describe_failure(group).kinds
    assert len(leaves_of(group)) == 2
