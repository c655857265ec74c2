"""Content addressing: what goes in comes out, one address for one content, and only what is new is stored."""

from __future__ import annotations

import random
import string
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paidonce_models.errors import PayloadTooLarge, StoreError
from paidonce_models.payloads.addressing import COMPRESS_BYTES, PayloadRow
from paidonce_models.payloads.argument_objects import encoded_object
from paidonce_models.payloads.document_scan import document_of
from paidonce_models.payloads.documents import DOCUMENT_BYTES, Document, Encoded, LongList, decode_encoded
from paidonce_models.payloads.element_memory import ElementMemory
from paidonce_models.payloads.encoding import decode_json, encode_json
from paidonce_models.payloads.payload_memory import ContentMemory, KnownPayloads, PayloadMemory, RowContent
from paidonce_models.payloads.payload_parts import assemble, split
from paidonce_models.payloads.payload_reading import read_encoded


class Shelf:
    """A store of rows that counts what it is asked for."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, bytes]] = {}
        self.fetches: list[list[str]] = []

    def keep(self, rows: tuple[PayloadRow, ...]) -> None:
        for row in rows:
            self.rows.setdefault(row.id, (row.codec, row.inline))

    def fetch(self, ids: list[str]) -> dict[str, tuple[str, bytes]]:
        self.fetches.append(ids)
        return {id_: self.rows[id_] for id_ in ids if id_ in self.rows}

    @property
    def stored_bytes(self) -> int:
        return sum(len(inline) for _, inline in self.rows.values())


def noise(seed: int, length: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits + ' "\\é\n', k=length))


def message(seed: int, length: int = 8_000) -> dict[str, Any]:
    return {"role": "user", "content": noise(seed, length), "n": seed}


small = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
elements = st.one_of(
    small,
    st.builds(message, st.integers(0, 50), st.sampled_from([10, 500, 5_000, 9_000])),
    st.lists(small, max_size=3),
    st.builds(noise, st.integers(0, 50), st.sampled_from([300, 6_000])),
)
members = st.one_of(
    small,
    st.lists(elements, max_size=30),
    st.builds(noise, st.integers(0, 9), st.just(20_000)),
    st.fixed_dictionaries({"messages": st.lists(elements, max_size=12), "doc": st.just(noise(3, 5_000))}),
    st.builds(lambda n: list(range(n)), st.sampled_from([10, 300, 9_000])),
)
documents = st.one_of(members, st.dictionaries(st.text(max_size=3), members, max_size=4))


@settings(max_examples=60, deadline=None)
@given(documents)
def test_any_value_comes_back_with_and_without_a_memory(value: object) -> None:
    data = encode_json(value)
    shelf, memory = Shelf(), PayloadMemory()
    cut = split(data)
    shelf.keep(cut.rows)
    assert assemble(cut.root_id, shelf.fetch) == data
    assert cut.size == len(data)
    for _ in range(2):
        again = split(data, memory=memory)
        assert again.root_id == cut.root_id
        assert assemble(again.root_id, shelf.fetch, memory=memory) == data
        encoded = read_encoded(again.root_id, shelf.fetch, memory)
        assert len(encoded) == len(data)
        assert repr(decode_encoded(encoded)) == repr(decode_json(data))
        memory.stored(again.rows)
    assert split(data, memory=memory).rows == ()


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=3), members, max_size=4))
def test_arguments_put_together_from_parts_have_the_address_of_their_bytes(value: dict[str, Any]) -> None:
    memory = ElementMemory(2**20)
    for _ in range(2):
        encoded: Encoded = encoded_object(
            [
                (name, memory.encode_list(member, name) if isinstance(member, list) else encode_json(member))
                for name, member in value.items()
            ]
        )
        assert bytes(encoded) == encode_json(value)
        assert len(encoded) == len(bytes(encoded))
        assert split(encoded).root_id == split(bytes(encoded)).root_id
        assert repr(decode_encoded(encoded)) == repr(value)


@settings(max_examples=40, deadline=None)
@given(st.lists(elements, min_size=1, max_size=20), st.data())
def test_a_list_has_one_address_however_it_grew(first: list[Any], data: st.DataObject) -> None:
    memory, grown = PayloadMemory(), list(first)
    for more in data.draw(st.lists(st.lists(elements, max_size=6), max_size=5)):
        grown.extend(more)
        encoded = encoded_object([("messages", memory.elements.encode_list(grown, "messages"))])
        fresh = split(encode_json({"messages": grown}))
        assert split(encoded, memory=memory).root_id == fresh.root_id


def test_a_small_value_is_one_row_of_plain_json() -> None:
    cut = split(b'{"a":1}')
    (row,) = cut.rows
    assert (row.id, row.codec, row.size, row.inline) == (cut.root_id, "json", 7, b'{"a":1}')
    assert len(row.id) == len(row.sha256) == 64
    assert row.id != row.sha256


def test_the_codec_is_part_of_the_address() -> None:
    assert split(b"[]", "json").root_id != split(b"[]", "text").root_id


def test_large_text_is_compressed_where_it_helps() -> None:
    (helped,) = split(encode_json("abc" * COMPRESS_BYTES)).rows
    assert helped.codec == "json+zlib"
    assert len(helped.inline) < helped.size / 10
    random_text = random.Random(1).randbytes(COMPRESS_BYTES)
    (not_helped,) = split(random_text, "binary").rows
    assert not_helped.codec == "binary"


def test_a_list_of_numbers_is_one_row() -> None:
    assert len(split(encode_json(list(range(100_000)))).rows) == 1


def test_the_same_list_at_another_place_shares_its_rows() -> None:
    messages = [message(seed) for seed in range(10)]
    one = {row.id for row in split(encode_json({"messages": messages, "model": "a"})).rows}
    two = {row.id for row in split(encode_json({"state": {"all": messages}, "n": 1})).rows}
    assert len(one & two) == 10


def test_a_large_value_beside_a_growing_list_is_stored_once() -> None:
    shelf = Shelf()
    document, messages = noise(1, 100_000), [message(0)]
    for turn in range(1, 20):
        messages.append(message(turn))
        shelf.keep(split(encode_json({"document": document, "messages": messages})).rows)
    assert shelf.stored_bytes < 2 * len(encode_json([document, messages]))


@pytest.mark.parametrize("length", [8_000, 4_050])
def test_two_hundred_turns_store_at_most_twice_what_is_new(length: int) -> None:
    shelf, memory = Shelf(), PayloadMemory()
    messages: list[Any] = []
    for turn in range(200):
        messages.append(message(turn, length))
        encoded = encoded_object([("messages", memory.elements.encode_list(messages, "messages")), ("model", b'"gpt"')])
        cut = split(encoded, memory=memory)
        shelf.keep(cut.rows)
        memory.stored(cut.rows)
        assert turn < 8 or len(cut.rows) <= 4
    unique = len(encode_json(messages))
    assert shelf.stored_bytes + 200 * len(shelf.rows) <= 2 * unique
    assert decode_json(assemble(cut.root_id, shelf.fetch)) == {"messages": messages, "model": "gpt"}


def test_reading_the_next_turn_fetches_only_what_is_new() -> None:
    shelf, reader = Shelf(), PayloadMemory()
    messages = [message(seed) for seed in range(100)]
    for turn in range(3):
        cut = split(encode_json({"messages": messages}))
        shelf.keep(cut.rows)
        shelf.fetches.clear()
        value = decode_encoded(read_encoded(cut.root_id, shelf.fetch, reader))
        assert value == {"messages": messages}
        if turn:
            assert sum(map(len, shelf.fetches)) == 2
        messages.append(message(1_000 + turn))


def test_what_was_cut_in_this_process_is_read_without_a_fetch() -> None:
    shelf, memory = Shelf(), PayloadMemory()
    messages = [message(seed) for seed in range(40)]
    cut = split(encode_json({"messages": messages}), memory=memory)
    assert decode_encoded(read_encoded(cut.root_id, shelf.fetch, memory)) == {"messages": messages}
    assert shelf.fetches == []


def test_decoded_values_never_share_a_container() -> None:
    shelf, memory = Shelf(), PayloadMemory()
    messages = [{**message(seed), "parts": [{"a": seed}]} if seed % 2 else message(seed) for seed in range(10)]
    cut = split(encode_json({"messages": messages}))
    shelf.keep(cut.rows)
    first: Any = decode_encoded(read_encoded(cut.root_id, shelf.fetch, memory))
    for element in first["messages"]:
        element["role"] = "changed"
        if "parts" in element:
            element["parts"][0]["a"] = "changed"
    first["messages"].clear()
    assert decode_encoded(read_encoded(cut.root_id, shelf.fetch, memory)) == {"messages": messages}


def test_rows_are_sent_again_until_they_are_said_to_be_stored() -> None:
    memory = PayloadMemory()
    data = encode_json({"messages": [message(seed) for seed in range(40)]})
    first = split(data, memory=memory)
    assert {row.id for row in split(data, memory=memory).rows} == {row.id for row in first.rows}
    memory.stored(first.rows)
    assert split(data, memory=memory).rows == ()
    memory.forget([row.id for row in first.rows])
    assert {row.id for row in split(data, memory=memory).rows} == {row.id for row in first.rows}


CHANGES: list[Any] = [
    lambda m: m[3].__setitem__("content", "other"),
    lambda m: m[3].__setitem__("n", True),
    lambda m: m[3].__setitem__("n", 1.0),
    lambda m: m[3]["parts"].append(1),
    lambda m: m[3]["parts"][0].__setitem__("deep", 2),
    lambda m: m[3].__setitem__("role", m[3].pop("role")),
    lambda m: m[5].__setitem__("role", m[5].pop("role")),
    lambda m: m[5].__setitem__("content", None),
    lambda m: m.pop(3),
    lambda m: m.insert(0, m.pop()),
    lambda m: m.__setitem__(4, m[2]),
    lambda m: m.reverse(),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_an_element_seen_before_is_noticed(change: Any) -> None:
    memory = ElementMemory(2**22)
    messages: list[Any] = [{**message(seed), "n": 1, "parts": [{"deep": 1}]} for seed in range(5)]
    messages += [{"role": "user", "content": noise(seed, 5_000)} for seed in range(5)]
    assert isinstance(memory.encode_list(messages, "m"), LongList)
    change(messages)
    encoded = encoded_object([("m", memory.encode_list(messages, "m"))])
    assert bytes(encoded) == encode_json({"m": messages})


def test_a_container_hidden_in_a_tuple_is_not_remembered() -> None:
    memory = ElementMemory(2**22)
    hidden = {"a": 1}
    messages = [{"content": noise(seed, 5_000), "pair": (hidden, 1)} for seed in range(8)]
    memory.encode_list(list(messages), "m")
    hidden["a"] = 2
    assert bytes(encoded_object([("m", memory.encode_list(list(messages), "m"))])) == encode_json({"m": messages})


def test_a_list_that_forks_keeps_both_branches() -> None:
    memory = ElementMemory(2**22)
    trunk = [message(seed) for seed in range(40)]
    memory.encode_list(trunk, "m")
    for branch in (100, 200, 300):
        grown = [*trunk, message(branch), message(branch + 1)]
        cut = split(encoded_object([("m", memory.encode_list(grown, "m"))]))
        assert cut.root_id == split(encode_json({"m": grown})).root_id


def test_a_value_above_the_limit_is_refused_naming_the_setting() -> None:
    with pytest.raises(PayloadTooLarge, match=r"1,002 bytes, the limit is 1,000; raise PAIDONCE_MAX_PAYLOAD_BYTES"):
        split(encode_json("a" * 1_000), limit_bytes=1_000)
    split(encode_json("a" * 998), limit_bytes=1_000)


def test_a_missing_row_is_named() -> None:
    cut = split(encode_json([message(seed) for seed in range(5)]))
    shelf = Shelf()
    shelf.keep(cut.rows[1:])
    with pytest.raises(StoreError, match=f"{cut.rows[0].id} is not in the store"):
        assemble(cut.root_id, shelf.fetch)


@pytest.mark.parametrize("damage", [b"{}", b""])
def test_a_damaged_row_is_named_and_never_decoded(damage: bytes) -> None:
    cut = split(encode_json("abc" * COMPRESS_BYTES))
    codec = cut.rows[0].codec
    with pytest.raises(StoreError, match=f"{cut.root_id} is damaged"):
        assemble(cut.root_id, lambda ids: {cut.root_id: (codec, damage)})


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": [' + b",".join([b'"x"'] * DOCUMENT_BYTES) + b"]}",
        b'{"a":[' + b",".join([b'"x" '] * DOCUMENT_BYTES) + b"]}",
        b'{"a":1,"a":[' + b",".join([b'"' + b"x" * 500 + b'"'] * 100) + b"]}",
        b'{"a":[' + b",".join([b'"' + b"x" * 500 + b'"'] * 100),
        b"[" * DOCUMENT_BYTES + b"]" * DOCUMENT_BYTES,
        b"1" * DOCUMENT_BYTES,
    ],
)
def test_bytes_that_are_not_our_own_form_are_kept_as_they_are(data: bytes) -> None:
    assert document_of(data) is None
    cut, shelf = split(data), Shelf()
    shelf.keep(cut.rows)
    assert assemble(cut.root_id, shelf.fetch) == data


def test_elements_larger_than_the_scan_window_and_numbers_at_its_edge_are_found() -> None:
    value = {"a": [{"n": 10**30, "t": [noise(1, 200_000)]}, *[int("7" * 300)] * 1_000, {"e": 1.5e300}]}
    document = document_of(encode_json(value))
    assert isinstance(document, Document)
    assert document.fresh() == value
    assert bytes(document) == encode_json(value)


def test_memories_keep_to_their_limits() -> None:
    known = KnownPayloads(3)
    known.add("abcde")
    assert [id_ in known for id_ in "abcde"] == [False, False, True, True, True]
    contents = ContentMemory(1_600)
    for id_ in "abcdefghij":
        contents.put(id_, RowContent("json", b"x" * 100))
    assert [id_ for id_ in "abcdefghij" if contents.get(id_)] == list("cdefghij")
    contents.put("large", RowContent("json", b"x" * 200))
    assert contents.get("large") is None
    memory = ElementMemory(40_000, limit_lists=2)
    for start in range(0, 100, 10):
        memory.encode_list([message(seed, 4_000) for seed in range(start, start + 10)], "m")
    assert memory._size <= 40_000
    assert len(memory._lists) <= 2


def test_many_threads_may_share_a_memory() -> None:
    memory = PayloadMemory(contents_limit_bytes=400_000, elements_limit_bytes=100_000)
    trunk = [message(seed) for seed in range(20)]
    wrong: list[object] = []

    def grow(worker: int) -> None:
        messages = list(trunk)
        for turn in range(15):
            messages.append(message(worker * 1_000 + turn))
            encoded = encoded_object([("m", memory.elements.encode_list(messages, "m"))])
            cut = split(encoded, memory=memory)
            shelf = Shelf()
            shelf.keep(split(encode_json({"m": messages})).rows)
            if decode_encoded(read_encoded(cut.root_id, shelf.fetch, memory)) != {"m": messages}:
                wrong.append((worker, turn))

    threads = [threading.Thread(target=grow, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_object_of_very_many_members_is_one_piece_and_is_not_taken_apart_member_by_member() -> None:
    messages = [{"role": "user", "content": "x" * 200} for _ in range(200)]
    assert document_of(encode_json({"messages": messages})) is not None
    for many in (
        {"messages": messages, "state": {str(number): number for number in range(100_000)}},
        {"messages": messages, **{str(number): number for number in range(100_000)}},
        {"messages": messages, "a": {str(n): {str(m): 1 for m in range(300)} for n in range(300)}},
    ):
        data = encode_json(many)
        assert document_of(data) is None
        assert encoded_object([(name, encode_json(value)) for name, value in many.items()]) == data
        shelf = Shelf()
        shelf.keep(split(data).rows)
        assert assemble(split(data).root_id, shelf.fetch) == data


def test_a_document_put_together_from_members_is_taken_apart_where_a_scan_takes_it_apart() -> None:
    messages: list[object] = [{"role": "user", "content": "x" * 300, "n": number} for number in range(200)]
    memory = ElementMemory(2**24)
    for members in (1_999, 2_001):
        state = encode_json({str(number): number for number in range(members)} | {"pad": "y" * 5_000})
        made = encoded_object([("messages", memory.encode_list(messages, "messages")), ("state", state)])
        assert split(made).root_id == split(bytes(made)).root_id
