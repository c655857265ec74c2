"""Makes text from a store, a message or an exception safe to show: on a terminal, in a log, in a spreadsheet.

Owns which characters are shown as escapes. Text written by others may contain sequences that move the cursor or set a
terminal's title, line breaks that forge a log line, and marks that reverse the reading direction. All such text passes
through here before people see it. Stored text is never changed.
"""

from __future__ import annotations

import re

_CONTROLS = "\\x00-\\x1f\\x7f-\\x9f"
_SEPARATORS = "\\u2028\\u2029"
_FORMATS = (
    "\\xad\\u0600-\\u0605\\u061c\\u06dd\\u070f\\u0890\\u0891\\u08e2\\u180e\\u200b-\\u200f\\u202a-\\u202e"
    "\\u2060-\\u206f\\ufeff\\ufff0-\\ufffb\\U000110bd\\U000110cd\\U00013430-\\U0001343f\\U0001bca0-\\U0001bca3"
    "\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff"
)
"""Category Cf, as of Unicode 16, and code points reserved for it: bidirectional marks and isolates, zero-width
joiners and spaces, tags."""
_SURROGATES = "\\ud800-\\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}{_SEPARATORS}{_FORMATS}{_SURROGATES}]")
UNSAFE_WITHIN_LINES = re.compile(f"[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f{_SEPARATORS}{_FORMATS}{_SURROGATES}]")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", *"\uff1d\uff0b\uff0d\uff20")
"""What makes a spreadsheet treat a cell as a formula, including the full-width forms that some accept."""


def visible(text: str) -> str:
    r"""The text on one line, with what cannot be seen written as an escape: ``\x1b``, ``\n``, ``\u202e``.

    Idempotent. A backslash is unchanged, so an escape may also have been typed.
    """
    return _UNSAFE.sub(_escape, text)


def visible_lines(text: str) -> str:
    """The same for a text of several lines, such as a traceback: line feeds stay, nothing else does."""
    return UNSAFE_WITHIN_LINES.sub(_escape, text.replace("\r\n", "\n"))


def csv_cell(value: object) -> object:
    """A cell that no spreadsheet treats as a formula; numbers stay numbers.

    A text that could be one is prefixed with an apostrophe, which spreadsheets show as text.
    """
    if not isinstance(value, str):
        return value
    return f"'{value}" if value.lstrip(" ").startswith(_FORMULA_STARTS) else value


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
