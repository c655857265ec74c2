"""YAML 1.2 with the line of every key, so that errors can name it.

Owns the parsing of one document into plain dictionaries, lists and scalars, the line of each key and entry, and the
messages of the errors. PyYAML scans and parses, with a grammar close to 1.2's: where the two differ, it refuses; it
never reads something else. What a plain word *means* follows YAML 1.2's core schema (below): ``on`` and ``yes`` are
words, ``1:30`` is a word, ``010`` is ten. Keys must be text, and equal keys are refused.

Whatever can make a file large is limited while it is read, not afterwards: how deep it nests, and how much text it has
with its aliases expanded. Otherwise a file of a few lines can represent gigabytes.

Knows nothing of policies. Tags beyond the core schema, and so everything that could create objects, are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import yaml

from paidonce_models.errors import ConfigurationError

MAX_NESTING: Final = 50
"""Levels; policies need six. PyYAML composes recursively, with several stack frames per level."""
DEFAULT_LIMIT_BYTES: Final = 256 * 1024
"""Bytes of a text with its aliases expanded. PyYAML parses some 200 KB per second."""
_SHOWN_KEY_CHARACTERS: Final = 100
_NUMBER_CHARACTERS: Final = 400
"""No float has more digits before its point, and no whole number in a file of ours needs as many."""

KeyPath = tuple[str | int, ...]
"""The keys and list indexes that lead to a value."""

_TAG: Final = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _TEXT = (f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str"))

# YAML 1.2.2, section 10.3.2: tag, pattern, and the characters with which such a word may begin.
_CORE_SCHEMA: Final = (
    (_NULL, r"^(?:null|Null|NULL|~|)$", ["n", "N", "~", ""]),
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    (_INT, r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        _FLOAT,
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)$",
        list("-+.0123456789"),
    ),
)


class _CoreLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML publishes no types
    """PyYAML's parser with the core schema's rules instead of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name
    _levels = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """PyYAML's, which recurses once per level; the parser reads no further than was composed."""
        self._levels += 1
        if self._levels > MAX_NESTING:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_NESTING} levels", mark)
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node


for _tag, _pattern, _first in _CORE_SCHEMA:
    _CoreLoader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


@dataclass(frozen=True, kw_only=True)
class YamlDocument:
    """One document. ``lines`` holds the line (from 1) of every key of a mapping and every entry of a list."""

    value: object
    lines: Mapping[KeyPath, int]

    def line_of(self, path: KeyPath) -> int:
        """The line of a key, or of the nearest enclosing key in the text."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_yaml(text: str, file: str, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> YamlDocument:
    """Parse one document; an empty one has the value ``None``. ``file`` is its name in errors.

    ``limit_bytes`` applies to the text, and again to all its words with aliases expanded. Raises
    ``ConfigurationError`` with file, line and what to do.
    """
    refuse_long_text(len(text), file, limit_bytes)
    try:
        root = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(_broken(error, text, file)) from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file} is not valid YAML: {' '.join(str(error).split())}; correct it") from None
    reading = _Reading(file, limit_bytes)
    value = None if root is None else reading.value_of(root, ())
    return YamlDocument(value=value, lines=reading.lines)


class _Reading:
    """Converts PyYAML's nodes to values, and records their lines."""

    def __init__(self, file: str, limit_bytes: int) -> None:
        self._file = file
        self._limit_bytes = limit_bytes
        self._read_bytes = 0
        self._around: list[int] = []
        self.lines: dict[KeyPath, int] = {}

    def value_of(self, node: yaml.Node, path: KeyPath) -> object:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._count(node, path, 1)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            raise self._refuse(node, path, f"the tag {_short(node.tag)} is not understood; remove it")
        if id(node) in self._around:
            raise self._refuse(node, path, "an alias refers to a value that contains it; write the value out")
        self._around.append(id(node))
        value = self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._list(node, path)
        self._around.pop()
        return value

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            line = key_node.start_mark.line + 1
            inner = (*path, key)
            if key in values:
                raise self._refuse(
                    key_node, path, f"the key {key!r:.80} is here and in line {self.lines[inner]}; keep one of them"
                )
            self.lines[inner] = line
            values[key] = self.value_of(value_node, inner)
        return values

    def _list(self, node: yaml.SequenceNode, path: KeyPath) -> list[object]:
        values = []
        for index, entry in enumerate(node.value):
            self.lines[*path, index] = entry.start_mark.line + 1
            values.append(self.value_of(entry, (*path, index)))
        return values

    def _key(self, node: yaml.Node, path: KeyPath) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._refuse(node, path, "a key is a list or a mapping; expected text")
        key = self._scalar(node, path)
        if not isinstance(key, str):
            raise self._refuse(node, path, f"the key {node.value!r:.80} is not text; put it in quotes")
        return key

    def _count(self, node: yaml.Node, path: KeyPath, size: int) -> None:
        """An alias counts with all that it represents, each time it is used."""
        self._read_bytes += size
        if self._read_bytes > self._limit_bytes:
            raise self._refuse(
                node,
                path,
                f"with its aliases written out the file has more than {self._limit_bytes:,} bytes by here; use fewer "
                "aliases, or raise PAIDONCE_MAX_POLICIES_BYTES",
            )

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> object:
        text: str = node.value
        self._count(node, path, len(text) + 1)
        if node.tag == _TEXT:
            return text
        construct = _CONSTRUCTORS.get(node.tag)
        if construct is None or not any(re.match(pattern, text) for tag, pattern, _ in _CORE_SCHEMA if tag == node.tag):
            raise self._refuse(node, path, f"the tag {_short(node.tag)} does not fit {text!r:.80}; remove it")
        if len(text) > _NUMBER_CHARACTERS:
            raise self._refuse(node, path, f"a number of {len(text)} characters; correct it")
        return construct(text)

    def _refuse(self, node: yaml.Node, path: KeyPath, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{place(self._file, node.start_mark.line + 1, path)}: {problem}")


def place(file: str, line: int, path: KeyPath) -> str:
    """``file:line key.path``, the notation of a place in errors and sources."""
    return f"{file}:{line} {'.'.join(_short_key(key) for key in path)}".rstrip()


def refuse_long_text(size: int, file: str, limit_bytes: int) -> None:
    """Raise ``ConfigurationError`` for a file that is too large to read."""
    if size > limit_bytes:
        raise ConfigurationError(
            f"{file} has {size:,} bytes or more, at most {limit_bytes:,} are read; shorten it with policies that "
            "several targets share and with patterns of names, or raise PAIDONCE_MAX_POLICIES_BYTES"
        )


def _short_key(key: str | int) -> str:
    text = str(key)
    return text if len(text) <= _SHOWN_KEY_CHARACTERS else f"{text[:_SHOWN_KEY_CHARACTERS]}…"


def _whole_number(text: str) -> int:
    if text.startswith("0o"):
        return int(text[2:], 8)
    return int(text, 16) if text.startswith("0x") else int(text)


def _number(text: str) -> float:
    word = text.lower().lstrip("+-")
    if word in (".inf", ".nan"):
        return math.nan if word == ".nan" else math.copysign(math.inf, -1 if text.startswith("-") else 1)
    return float(text)


_CONSTRUCTORS: Final[Mapping[str, Callable[[str], object]]] = {
    _NULL: lambda text: None,
    _BOOL: lambda text: text.lower() == "true",
    _INT: _whole_number,
    _FLOAT: _number,
}


def _short(tag: str) -> str:
    return f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag


def _broken(error: yaml.MarkedYAMLError, text: str, file: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context
    if mark is None:
        return f"{file} is not valid YAML: {problem}; correct it"
    line = text.split("\n")[mark.line] if mark.line < text.count("\n") + 1 else ""
    remedy = "correct it there"
    if re.search(r"(^|[\s\[{,])\*", line):
        remedy = "text that begins with * must be in quotes"
    elif "\t" in line:
        remedy = "indent with spaces, not with tabs"
    return f"{file}:{mark.line + 1} is not valid YAML: {problem}; {remedy}"
