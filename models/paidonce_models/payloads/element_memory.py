"""A cache of the list elements that a process has encoded.

Speeds up the agent's side: a list of messages that grew by one is encoded again for
each step, and all its elements but one are the same objects as last time. An element is
recognised by its identity and by its parts being the same objects as then, so that no
change goes unnoticed: a replaced text or number is another object, and texts are
immutable. A list is recognised by the encoded elements that it starts with, and
continues their chunk tree.
"""

from __future__ import annotations

import threading
from typing import cast

from paidonce_models.payloads.documents import LongList, is_long
from paidonce_models.payloads.encoding import encode_json
from paidonce_models.payloads.json_values import JsonValue, copy_json

_FEW = 4
_SAMPLE = 8
_WORTH_BYTES = 256
_LOOK_BACK = 16
_LEAVES = frozenset({str, int, float, bool, type(None)})


class SeenElement:
    """An element as it was when it was encoded."""

    __slots__ = ("_names", "_snapshot", "text")

    def __init__(self, snapshot: JsonValue, text: bytes) -> None:
        self._snapshot = snapshot
        self.text = text
        only_texts = type(snapshot) is dict and all(type(member) is str for member in snapshot.values())
        self._names = list(cast("dict[str, JsonValue]", snapshot)) if only_texts else None

    def still_is(self, element: object) -> bool:
        """Whether ``element`` would still be encoded to the same text."""
        if self._names is not None and type(element) is dict:
            # Equal texts have the same encoding, which is not true of 1, 1.0 and True.
            return element == self._snapshot and list(element) == self._names
        try:
            return is_unchanged(self._snapshot, element)
        except RecursionError:  # called from deeper in the call stack than when it was encoded
            return False


class ElementMemory:
    """Encoded elements by the object's identity, and the lists made of them; the oldest are evicted first."""

    def __init__(self, limit_bytes: int, limit_lists: int = 1024) -> None:
        self._limit_bytes = limit_bytes
        self._limit_lists = limit_lists
        self._size = 0
        self._seen: dict[int, SeenElement] = {}
        self._lists: dict[int, LongList] = {}
        """By the identity of the last element's text, which the list keeps alive."""
        self._lock = threading.Lock()

    def encode_list(self, elements: list[object], where: str) -> bytes | LongList:
        """Equal to ``encode_json`` of the list; kept as elements if the list is long."""
        if len(elements) < _FEW:
            return encode_json(elements, where)
        texts: list[bytes] = []
        size = 0
        for index, element in enumerate(elements):
            seen = self._seen.get(id(element))
            if seen is not None and seen.still_is(element):
                text = seen.text
            else:
                text = self._encode(element, f"{where}[{index}]")
            texts.append(text)
            size += len(text) + 1
            if index + 1 == _SAMPLE and size < _SAMPLE * _WORTH_BYTES:
                return encode_json(elements, where)
        if not is_long(texts, size - 1):
            return b"[" + b",".join(texts) + b"]"
        return self._list_of(texts, size - 1)

    def _list_of(self, texts: list[bytes], size: int) -> LongList:
        for index in range(len(texts) - 1, max(-1, len(texts) - 1 - _LOOK_BACK), -1):
            before = self._lists.get(id(texts[index]))
            if before is not None and before.texts == texts[: index + 1]:
                if index == len(texts) - 1:
                    return before
                made = before.grown_to(texts, size)
                break
        else:
            before, made = None, LongList(texts, size)
        # Built here, so that the next, longer list can continue it.
        made.tree()
        with self._lock:
            if before is not None and self._lists.get(id(before.texts[-1])) is before:
                del self._lists[id(before.texts[-1])]
            self._lists[id(texts[-1])] = made
            while len(self._lists) > self._limit_lists:
                del self._lists[next(iter(self._lists))]
        return made

    def _encode(self, element: object, where: str) -> bytes:
        text = encode_json(element, where)
        if _WORTH_BYTES <= len(text) <= self._limit_bytes // 8 and _is_rememberable(element):
            try:
                snapshot = copy_json(cast(JsonValue, element))
            except RecursionError:  # the call stack has no room for its levels
                return text
            with self._lock:
                before = self._seen.pop(id(element), None)
                self._size += len(text) - (0 if before is None else len(before.text))
                self._seen[id(element)] = SeenElement(snapshot, text)
                while self._size > self._limit_bytes:
                    self._size -= len(self._seen.pop(next(iter(self._seen))).text)
        return text


def is_unchanged(snapshot: object, element: object) -> bool:
    """Whether ``element`` has the shape of ``snapshot`` and contains the same objects."""
    if snapshot is element:
        # A text or number; a snapshot's containers are never shared.
        return type(element) in _LEAVES
    if type(snapshot) is dict and type(element) is dict:
        if len(snapshot) != len(element):
            return False
        for (key, member), (own_key, own_member) in zip(snapshot.items(), element.items(), strict=True):
            if key is not own_key:
                return False
            if member is not own_member and not is_unchanged(member, own_member):
                return False
        return True
    if type(snapshot) is list and type(element) is list:
        if len(snapshot) != len(element):
            return False
        return all(a is b or is_unchanged(a, b) for a, b in zip(snapshot, element, strict=True))
    return False


def _is_rememberable(element: object) -> bool:
    """Exact JSON types all the way down: a tuple could hide a container that changes."""
    pending = [element]
    while pending:
        member = pending.pop()
        if type(member) is dict:
            pending.extend(cast("dict[str, object]", member).values())
        elif type(member) is list:
            pending.extend(cast("list[object]", member))
        elif type(member) not in _LEAVES:
            return False
    return True
