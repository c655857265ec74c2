"""The junk itself: seeded random messages, by shape. Pure, but for the random numbers it is given.

Each shape is a function of a ``Random`` that returns one ``Junk``. Those in ``ANYWHERE`` are messages of any broker,
those in ``ON_REDIS`` raw bytes of its keys and channels, those in ``ON_RABBITMQ`` properties as they are on the wire.
"""

from __future__ import annotations

import base64
import bz2
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

DEFAULT = "paidonce.default"
SUBMIT = "paidonce.submit"
ADVANCE = "paidonce.advance"
STEP = "tests.fuzz.agents.plus_one"
FOREIGN = "tests.fuzz.foreign"
BOMB_BYTES = 40_000_000
HUGE_BYTES = 400_000


@dataclass(frozen=True, kw_only=True)
class Junk:
    """One message. ``place`` says how it gets to the broker; the rest is read by that."""

    shape: str
    place: str = "publish"
    queue: str = DEFAULT
    body: bytes = b""
    headers: Any = None
    properties: dict[str, Any] = field(default_factory=dict)
    raw: bytes = b""
    key: str = ""


Shape = Callable[[Random], Junk]


def make_junk(random: Random, count: int, shapes: tuple[Shape, ...]) -> list[Junk]:
    """So many of them, each shape at least once."""
    chosen = [*shapes[:count], *(random.choice(shapes) for _ in range(max(0, count - len(shapes))))]
    random.shuffle(chosen)
    return [shape(random) for shape in chosen]


def new_id(random: Random) -> str:
    """A UUID of the seeded random numbers."""
    return str(UUID(int=random.getrandbits(128), version=4))


def any_value(random: Random, depth: int = 0) -> Any:
    """A value of any JSON type, often at the edge of what is allowed."""
    simple: tuple[Any, ...] = (
        None, True, False, 0, 1, -1, 2**31, 2**31 - 1, 10**30, -(2**63), 1.5, float("inf"), "", "x", "\x00", "a\nb",
        "\ud800", "\u202e", "é" * 300, "😀" * 1_000, "0" * 5_000, "no such run", new_id(random), new_id(random).upper(),
        {"__type__": "datetime", "__value__": "never"}, {"__type__": "decimal", "__value__": "x"},
    )  # fmt: skip
    if depth < 3 and random.random() < 0.25:
        nested = [any_value(random, depth + 1) for _ in range(random.randrange(4))]
        return nested if random.random() < 0.5 else {str(number): value for number, value in enumerate(nested)}
    return random.choice(simple)


def some_bytes(random: Random) -> bytes:
    """Nothing in particular."""
    return random.randbytes(random.choice((0, 1, 7, 100, 2_000)))


def encode(value: object) -> bytes:
    """As a Celery client does."""
    return json.dumps(value).encode()


def task(random: Random, name: str = STEP, **more: object) -> dict[str, Any]:
    """Headers of a message of protocol 2."""
    return {"task": name, "id": new_id(random), "lang": "py", **more}


def right_address(random: Random) -> dict[str, Any]:
    """Of a run that is not there."""
    return {"run": new_id(random), "step": random.randrange(1, 50), "agent": "tests.fuzz.agents.good"}


def body_of(kwargs: object, args: object = (), embed: object = None) -> bytes:
    """The body of protocol 2."""
    return encode([args, kwargs, {} if embed is None else embed])


def signature(random: Random, name: str = FOREIGN) -> dict[str, Any]:
    """A task for Celery to send."""
    return {
        "task": name, "args": [], "kwargs": {}, "options": {"queue": DEFAULT, "task_id": new_id(random)},
        "subtask_type": None, "immutable": True, "chord_size": None,
    }  # fmt: skip


# --- anywhere -----------------------------------------------------------------------------------------------------


def wrong_address(random: Random) -> Junk:
    """A step, an advance or an unknown step for a run that cannot be."""
    kwargs = right_address(random)
    for name in random.sample(sorted(kwargs), random.randrange(1, 3)):
        kwargs[name] = any_value(random)
    name = random.choice((STEP, ADVANCE, "other.module.step", "celery.ping", "\x00", "a\nb", "x" * 5_000))
    return Junk(shape="wrong address", headers=task(random, name), body=body_of(kwargs))


def stranger_to_the_store(random: Random) -> Junk:
    """Well made, for a run that is not there."""
    name = random.choice((STEP, ADVANCE, "other.module.step"))
    return Junk(shape="no such run", headers=task(random, name), body=body_of(right_address(random)))


def wrong_arguments(random: Random) -> Junk:
    """Of any type, in either protocol."""
    name = random.choice((STEP, ADVANCE, SUBMIT, FOREIGN))
    args, kwargs, queue = any_value(random), any_value(random), random.choice((DEFAULT, SUBMIT))
    if random.random() < 0.5:
        body = {"task": name, "id": new_id(random), "args": args, "kwargs": kwargs, "retries": any_value(random)}
        return Junk(shape="protocol 1", queue=queue, headers={}, body=encode(body))
    return Junk(shape="protocol 2", queue=queue, headers=task(random, name), body=body_of(kwargs, args))


def wrong_headers(random: Random) -> Junk:
    """Any header of any value."""
    names = (
        "id", "task", "lang", "retries", "eta", "expires", "timelimit", "group", "root_id", "shadow", "origin",
        "ignore_result", "stamps", "stamped_headers", "argsrepr", "kwargsrepr", "replaced_task_nesting",
    )  # fmt: skip
    headers = task(random)
    for name in random.sample(names, 5):
        headers[name] = _storable(any_value(random))
    if random.random() < 0.2:
        headers.pop("id", None)
    return Junk(shape="wrong headers", headers=headers, body=body_of(right_address(random)))


def steering(random: Random) -> Junk:
    """What Celery would obey: tasks before, with and after, times far away."""
    far = "2099-01-01T00:00:00+00:00"
    more = random.choice(
        (
            {"eta": far}, {"expires": "2001-01-01T00:00:00"}, {"timelimit": [0.001, 0.001]}, {"retries": 10**9},
            {"group": new_id(random)}, {"shadow": "forged\nline"}, {"ignore_result": False}, {"eta": "junk"},
            {"stamped_headers": ["a"], "stamps": {"a": "b"}}, {"replaced_task_nesting": 9},
        )
    )  # fmt: skip
    foreign = signature(random)
    embed = {
        "callbacks": [foreign], "errbacks": [foreign], "chain": [foreign],
        "chord": {**foreign, "options": {"chord": foreign}},
    }  # fmt: skip
    return Junk(
        shape="steering",
        headers=task(random, random.choice((STEP, ADVANCE)), **more),
        body=body_of(right_address(random), embed=embed),
        properties={"reply_to": new_id(random), "correlation_id": "x"},
    )


def foreign_task(random: Random) -> Junk:
    """Registered with Celery, but no step: the team's own, and those by which Celery runs others."""
    foreign = signature(random)
    name, kwargs = random.choice(
        (
            (FOREIGN, {}),
            (FOREIGN, right_address(random)),
            ("celery.map", {"task": foreign, "it": [[1]]}),
            ("celery.starmap", {"task": foreign, "it": [[1]]}),
            ("celery.chunks", {"task": foreign, "it": [[1]], "n": 1}),
            ("celery.chain", {"tasks": [foreign]}),
            ("celery.group", {"tasks": [foreign], "result": None, "group_id": "g", "partial_args": []}),
            ("celery.chord", {"header": [foreign], "body": foreign}),
            ("celery.backend_cleanup", {}),
            ("celery.chord_unlock", {"group_id": "g", "callback": foreign}),
        )
    )
    return Junk(shape="foreign task", headers=task(random, name), body=body_of(kwargs))


def wrong_body(random: Random) -> Junk:
    """No JSON, no list, too deep, too large, no text."""
    body = random.choice(
        (
            some_bytes(random), b"", b"null", b"[]", b"{}", b"7", b"[[], {}]", b"[[], {}, {}, {}]", b"\xff\xfe",
            b"[" * 50_000, b'{"a":' * 20_000, b"[" * 900 + b"]" * 900, encode("x" * HUGE_BYTES), b"1" * 6_000,
            encode(any_value(random)),
        )
    )  # fmt: skip
    name = random.choice((STEP, ADVANCE, "other.step", None))
    return Junk(shape="wrong body", headers={} if name is None else task(random, name), body=body)


def wrong_type(random: Random) -> Junk:
    """Content types and encodings that nobody reads, or that unpack."""
    content_type = random.choice(
        ("application/json", "application/x-python-serialize", "application/x-yaml", "text/plain", "", "no/such-type")
    )
    encoding = random.choice(("utf-8", "zlib_codec", "utf-16", "punycode", "no-such", "binary", "unicode_escape"))
    body = random.choice((b"cos\nsystem\n(S'true'\ntR.", body_of(right_address(random)), _bomb(random)[1]))
    return Junk(
        shape="wrong type",
        headers=task(random),
        body=body,
        properties={"content_type": content_type, "content_encoding": encoding},
    )


def packed(random: Random) -> Junk:
    """Small on the wire, large in memory."""
    compression, body = _bomb(random)
    return Junk(shape="packed", headers=task(random, compression=compression), body=body)


def bad_submission(random: Random) -> Junk:
    """To be refused, and the refusal stored."""
    arguments: dict[str, Any] = {"agent": "tests.fuzz.agents.good", "input": {"number": 1}, "key": new_id(random)}
    for name in random.sample(("agent", "input", "key", "tags", "priority", "queue", "other"), 2):
        arguments[name] = any_value(random)
    arguments["input"] = random.choice((arguments["input"], any_value(random), {"wrong": 1}))
    if isinstance(arguments["input"], dict) and "number" in arguments["input"]:
        arguments["tags"] = 7
    body = random.choice((body_of(arguments), encode(arguments), body_of({}, any_value(random)), b"{nonsense"))
    headers = task(random, SUBMIT)
    headers["id"] = random.choice((headers["id"], headers["id"], "a\nb", "x" * 300, 7, None))
    return Junk(shape="bad submission", queue=SUBMIT, headers=headers, body=body)


def _bomb(random: Random) -> tuple[str, bytes]:
    return random.choice(_BOMBS)


_BOMBS = (
    ("application/x-gzip", zlib.compress(b"[" + b" " * BOMB_BYTES + b"]", 9)),
    ("zlib", zlib.compress(b" " * BOMB_BYTES, 9)),
    ("application/x-bz2", bz2.compress(b" " * BOMB_BYTES)),
    ("no such compression", b"x"),
)


def _storable(value: Any) -> Any:
    """What both JSON and AMQP's tables can carry."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return 2**62
    if isinstance(value, float):
        return 1.5
    if isinstance(value, list):
        return [_storable(each) for each in value]
    return {name: _storable(each) for name, each in value.items()} if isinstance(value, dict) else value


# --- on Redis -----------------------------------------------------------------------------------------------------


def envelope(random: Random, headers: object, body: object) -> dict[str, Any]:
    """As kombu makes it."""
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": new_id(random),
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": DEFAULT},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": new_id(random),
        },
    }


def raw_item(random: Random) -> Junk:
    """Bytes on a queue's list that are no envelope."""
    raw = random.choice(
        (some_bytes(random), b"not even JSON", b"7", b"{}", b"[]", b"null", b"[" * 50_000, b'{"a":' * 20_000,
         b'"' + b"x" * HUGE_BYTES + b'"', b'{"properties": 7}', encode(any_value(random)))
    )  # fmt: skip
    key = random.choice((DEFAULT, SUBMIT, f"{DEFAULT}\x06\x163", f"{DEFAULT}\x06\x169"))
    return Junk(shape="raw item", place="item", key=key, raw=raw)


def broken_envelope(random: Random) -> Junk:
    """An envelope with parts missing, or of another type."""
    made = envelope(random, task(random), base64.b64encode(body_of(right_address(random))).decode())
    properties = made["properties"]
    for _ in range(random.randrange(1, 4)):
        where = random.choice((made, properties, properties.get("delivery_info")))
        if not isinstance(where, dict) or not where:
            continue
        name = random.choice(sorted(where))
        if random.random() < 0.4:
            del where[name]
        else:
            where[name] = random.choice((any_value(random), "not base64!", "a", "é"))
        properties = made.get("properties") if isinstance(made.get("properties"), dict) else {}
    return Junk(shape="broken envelope", place="item", key=random.choice((DEFAULT, SUBMIT)), raw=encode(made))


def another_place(random: Random) -> Junk:
    """An envelope that says it came from somewhere else, with a tag that others have too."""
    made = envelope(random, task(random, "other.step"), base64.b64encode(body_of(right_address(random))).decode())
    made["properties"]["delivery_tag"] = "the same"
    made["properties"]["delivery_info"] = {"exchange": "celery.pidbox", "routing_key": "celery"}
    return Junk(shape="another place", place="item", key=DEFAULT, raw=encode(made))


def unacked(random: Random) -> Junk:
    """Among the unacknowledged, long overdue."""
    right = envelope(random, task(random), "W10=")
    raw = random.choice(
        (some_bytes(random), b"7", b"[]", b"[1, 2, 3]", b"[" * 50_000, encode([any_value(random), "", DEFAULT]),
         encode([right, any_value(random), any_value(random)]), encode([right, "celery.pidbox", ""]))
    )  # fmt: skip
    return Junk(shape="unacked", place="unacked", key=new_id(random), raw=raw)


def broadcast(random: Random) -> Junk:
    """On the channels of remote control and events."""
    channel = random.choice(("celery.pidbox", "celery.pidbox", "celeryev/worker.heartbeat", "celeryev/task.sent"))
    command = {"method": any_value(random), "arguments": any_value(random), "destination": None}
    if random.random() < 0.5:
        command[random.choice(("reply_to", "ticket", "pattern", "matcher", "x"))] = any_value(random)
    made = envelope(random, {"clock": 10**30}, base64.b64encode(encode(command)).decode())
    return Junk(
        shape="broadcast",
        place="broadcast",
        key=channel,
        raw=random.choice((encode(made), encode(made), b"[" * 50_000, b"x", b"7", b"{}", some_bytes(random))),
    )


# --- on RabbitMQ --------------------------------------------------------------------------------------------------


def wire_properties(random: Random) -> Junk:
    """Properties that py-amqp cannot read, or reads as what no header is."""
    deep = _long(b"x")
    for _ in range(2_000):
        deep = b"A" + struct.pack(">I", len(deep)) + deep
    raw = random.choice(
        (
            _table((b"task", _long(b"\xff\xfe")), (b"id", _long(b"\xff"))),
            _table((b"\xff\xfe", _long(b"x"))),
            _table((b"when", b"T" + struct.pack(">Q", 2**63))),
            struct.pack(">HB", 0x8000, 2) + b"\xff\xfe",
            _table((b"task", b"x" + struct.pack(">I", 3) + b"abc")),
            _table((b"task", b"V"), (b"id", b"D" + struct.pack(">Bi", 255, 5))),
            _table((b"a", deep)),
        )
    )
    return Junk(shape="wire properties", place="wire", raw=raw, body=random.choice((b"", b"body")))


def amqp_broadcast(random: Random) -> Junk:
    """On the exchanges of remote control and events."""
    command = {"method": any_value(random), "arguments": any_value(random), "x": any_value(random)}
    return Junk(
        shape="broadcast",
        place="exchange",
        key=random.choice(("celery.pidbox", "celeryev")),
        headers={"clock": 2**62},
        body=random.choice((encode(command), some_bytes(random), b"[" * 50_000)),
    )


def _long(text: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(text)) + text


def _table(*items: tuple[bytes, bytes]) -> bytes:
    content = b"".join(struct.pack("B", len(name)) + name + value for name, value in items)
    return struct.pack(">HI", 0x2000, len(content)) + content


ANYWHERE: tuple[Shape, ...] = (
    wrong_address, stranger_to_the_store, wrong_arguments, wrong_headers, steering, foreign_task, wrong_body,
    wrong_type, packed, bad_submission,
)  # fmt: skip
ON_REDIS: tuple[Shape, ...] = (*ANYWHERE, raw_item, broken_envelope, another_place, unacked, broadcast)
ON_RABBITMQ: tuple[Shape, ...] = (*ANYWHERE, wire_properties, amqp_broadcast)
