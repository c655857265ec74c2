"""YAML as version 1.2 means it, with lines, and refused with file and line where it is ambiguous or broken."""

from __future__ import annotations

import math

import pytest

from paidonce.policies.file.yaml_text import read_yaml
from paidonce_models.errors import ConfigurationError


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("=", "="),
        ("<<", "<<"),
        ("10s", "10s"),
        ("http:429", "http:429"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("-.inf", -math.inf),
        ("'true'", "true"),
        ('"4"', "4"),
        ("!!str 4", "4"),
        ("!!int 4", 4),
        ("é😀", "é😀"),
    ],
)
def test_plain_words_mean_what_yaml_1_2_says(word: str, value: object) -> None:
    assert read_yaml(f"key: {word}\n", "f.yaml").value == {"key": value}


def test_words_that_yaml_1_1_takes_for_booleans_are_keys() -> None:
    assert read_yaml("on: 1\nyes: 2\n1:30: 3\n", "f.yaml").value == {"on": 1, "yes": 2, "1:30": 3}


def test_flow_style_is_read_with_colons_in_words() -> None:
    text = 'a: [timeout, http:5xx, "x"]\n"provider:openai": {breaker: {probes: 1}}\nprovider:groq: {"x":1}\n'
    assert read_yaml(text, "f.yaml").value == {
        "a": ["timeout", "http:5xx", "x"],
        "provider:openai": {"breaker": {"probes": 1}},
        "provider:groq": {"x": 1},
    }


def test_every_key_and_entry_has_its_line() -> None:
    document = read_yaml("# first\na:\n  b: 1\n\n  c: [x,\n    y]\n", "f.yaml")
    assert dict(document.lines) == {("a",): 2, ("a", "b"): 3, ("a", "c"): 5, ("a", "c", 0): 5, ("a", "c", 1): 6}
    assert document.line_of(("a", "b", "not there")) == 3
    assert document.line_of(("z",)) == 1


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_an_empty_file_is_nothing(text: str) -> None:
    assert read_yaml(text, "f.yaml").value is None


def test_an_alias_repeats_what_it_names() -> None:
    assert read_yaml("a: &x {b: 1}\nc: *x\n", "f.yaml").value == {"a": {"b": 1}, "c": {"b": 1}}


QUOTES = "text that begins with * must be in quotes"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a:\n  b: 1\n  c: 2\n  'b': 3\n", "f.yaml:4 a: ", "the key 'b' is here and in line 2; keep one of them"),
        ("404: x\n", "f.yaml:1: ", "the key '404' is not text; put it in quotes"),
        ("a:\n  true: x\n", "f.yaml:2 a: ", "the key 'true' is not text; put it in quotes"),
        ("[a]: x\n", "f.yaml:1: ", "a key is a list or a mapping; expected text"),
        ("a: !!python/object:os.system x\n", "f.yaml:1 a: ", "the tag !!python/object:os.system does not fit 'x'"),
        ("a: !mine {b: 1}\n", "f.yaml:1 a: ", "the tag !mine is not understood; remove it"),
        ("a: !!int x\n", "f.yaml:1 a: ", "the tag !!int does not fit 'x'"),
        ("a: &x [*x]\n", "f.yaml:1 a.0: ", "an alias refers to a value that contains it"),
        (f"a: {'9' * 5000}\n", "f.yaml:1 a: ", "a number of 5000 characters"),
        ("a: 1\n*: x\n", "f.yaml:2 is not valid YAML: ", QUOTES),
        ("a:\n  *crm: x\n", "f.yaml:2 is not valid YAML: ", QUOTES),
        ("a: [b, *]\n", "f.yaml:1 is not valid YAML: ", QUOTES),
        ("a:\n\tb: 1\n", "f.yaml:2 is not valid YAML: ", "indent with spaces"),
        ("a: [1\nb: 2\n", "f.yaml:2 is not valid YAML: ", "correct it there"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2 is not valid YAML: ", "but found another document"),
        ("a: \x00\n", "f.yaml is not valid YAML: ", "special characters are not allowed"),
    ],
)
def test_errors_name_file_line_and_what_to_do(text: str, place: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_yaml(text, "f.yaml")
    assert caught.value.message.startswith(place)
    assert message in caught.value.message
