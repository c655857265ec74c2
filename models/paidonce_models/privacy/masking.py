"""The one masker of credentials in texts: exceptions before they are stored, errors and logs before they are shown.

Owns what counts as a credential: the password of a URL, the value after a name that indicates one (a header, a query
parameter, a JSON key, an option of a connection string), a token of a well-known form, and the values of this process's
environment variables with secret names. The rest of a text is unchanged; masking is idempotent.

Every pass reads a text once, from left to right, and never reads a character again: a hostile text of a megabyte takes
as long as any other. The caller truncates longer texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Final

MASK: Final = "***"
SHORTEST_LITERAL: Final = 12
"""Characters. A shorter value of an environment variable may be a word, which would be masked wherever it occurs."""

_ALWAYS_SECRET = frozenset(
    {
        *("accesskey", "accountkey", "apikey", "apisecret", "appsecret", "authkey", "authorization", "authtoken"),
        *("clientsecret", "connectionstring", "consumersecret", "cookie", "credential", "credentials", "encryptionkey"),
        *("masterkey", "passphrase", "passwd", "password", "pgpassword", "privatekey", "proxyauthorization", "pwd"),
        *("secret", "secretaccesskey", "secretkey", "setcookie", "sharedaccesskey", "signingkey"),
        *("subscriptionkey", "token", "xamzsecuritytoken", "xapikey", "xauthtoken", "xgoogapikey", "webhooksecret"),
    }
)
_SECRET_ENDINGS = (
    *("accesskey", "accountkey", "apikey", "authkey", "authtoken", "authorization", "credentials", "masterkey"),
    *("passphrase", "passwd", "password", "privatekey", "secret", "secretkey", "signingkey", "subscriptionkey"),
    *("token", "accesstoken", "securitytoken"),
)
_SECRET_IN_A_QUERY = frozenset(
    {"auth", "code", "key", "pass", "sig", "signature", "sslpassword", "xamzsignature", "xamzcredential", "jwt", "sas"}
)
"""Names too common to indicate a credential anywhere but after the ``?`` of a URL."""
_NOT_SECRET = frozenset({"maxtoken", "nexttoken", "pagetoken", "nextpagetoken", "continuationtoken", "stoptoken"})
_WHOLE_LINE = frozenset({"cookie", "setcookie", "authorization", "proxyauthorization"})
"""Headers whose value may contain spaces and commas."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_BETWEEN = re.compile(r"""(?P<end>\\{0,3}["'])?[ \t]{0,8}(?P<sign>=>|:=|[:=,>]|%3[dD])[ \t]{0,8}""")
_OPENING = re.compile(r"""[\[(]?[bBuUrRfF]{0,2}(?P<quote>\\{0,3}["'])""")
_NO_VALUES = ("none", "null", "true", "false", "undefined", "nan")
_LONGEST_NO_VALUE = 9
_SCHEME = re.compile(
    r"(?:Bearer|Basic|Digest|Token|ApiKey|Negotiate|NTLM|AWS4-HMAC-SHA256|OAuth)\b[ \t]*", re.IGNORECASE
)
_WITH_PARAMETERS = ("digest", "aws4", "oauth")
_TO_LINE_END = re.compile(r"""[^\r\n"']*""")
_WITH_QUOTES_TO_LINE_END = re.compile(r"[^\r\n]*")
_PLAIN_VALUE = re.compile(r"""[^\s"'<>&]+""")
_QUERY_VALUE = re.compile(r"""[^\s"'<>&;#]+""")
_TRAILING = ",;:.!?)]}\\"
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----")
_KEY_BLOCK_END = "-----END"

_RUN = re.compile(r"\S+")
_QUOTES = re.compile(r"""["'<>`;,\\|()\[\]{}]""")
_AUTHORITY_END = re.compile(r"[/?#]")
_PORT = re.compile(r"\d{0,5}")
_WEB = frozenset({"http", "https", "ws", "wss", "ftp", "git", "git+https", "socks5", "socks5h"})
_LONGEST_PLAIN_USER = 15
"""Longer user information in a web address without a password is a token in place of the user."""

_BARE_PAIR = re.compile(
    r"(?<![A-Za-z0-9._%+@/:-])([A-Za-z0-9._%+-]{1,64}):([^\s@:/\"'<>,;(){}\[\]]{1,256})@(?=[A-Za-z0-9\[])"
)
_NO_USERS = frozenset(
    {"mailto", "email", "mail", "e-mail", "from", "to", "cc", "bcc", "sender", "recipient", "contact", "sip", "sips"}
)

_WORD = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){0,2}")
_TOKEN_START = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-|sk_|pk_|rk_|whsec_|gsk_|xai-|pplx-|hf_|npm_|pypi-|dop_v1_|shpat_|shpss_|glpat-|github_pat_|gh[pousr]_"
    r"|xox[abeprs]-|xapp-|AKIA|ASIA|AIza|ya29\.|GOCSPX-|SG\.|eyJ|AGE-SECRET-KEY-|lin_api_|r8_|ATATT3|sntrys_|tvly-"
    r")"
)
_SHORTEST_TOKEN = 12
_BEARER = re.compile(r"\bBearer[ \t]{1,4}([A-Za-z0-9._~+/=-]+)", re.IGNORECASE)

_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY|SECRET_?KEY|PRIVATE_?KEY|MASTER_?KEY|SIGNING_?KEY|TOKEN|SECRET|"
    r"PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PGPASSWORD)$",
    re.IGNORECASE,
)

_PASSWORD_OF_URL = re.compile(r"^[^:\s]{1,40}://[^:/@\s]*:([^@\s]+)@")


class Masker:
    """Masks credentials; immutable. ``names``: more parameters, headers, JSON keys and variables with secret values."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = tuple(dict.fromkeys(name.strip() for name in names if _normal(name)))
        self._names = frozenset(_normal(name) for name in self.names)

    def mask(self, text: str, literals: Iterable[str] | None = None) -> str:
        """The text with ``***`` in place of each credential.

        ``literals`` are masked wherever they occur; by default those of ``secret_values``.
        """
        for literal in self.secret_values(os.environ) if literals is None else literals:
            text = text.replace(literal, MASK)
        text = _mask_key_blocks(text)
        text = _mask_urls(text)
        text = self._mask_named(text)
        text = _BEARER.sub(_mask_bearer, text)
        text = _WORD.sub(_mask_token, text)
        return _BARE_PAIR.sub(_mask_pair, text)

    def secret_values(self, environment: Mapping[str, str]) -> list[str]:
        """The values of variables with secret names, and passwords of URLs in others; the longest first, because one
        may be a prefix of another. Short ones are left out: they may be words.
        """
        found: set[str] = set()
        for name, value in environment.items():
            if len(value) < SHORTEST_LITERAL:
                continue
            if _SECRET_VARIABLE.search(name) or _normal(name) in self._names:
                found.add(value)
            elif "://" in value and (password := _PASSWORD_OF_URL.search(value)) is not None:
                found.add(password[1])
        return sorted((each for each in found if len(each) >= SHORTEST_LITERAL and each[0] != "/"), key=len)[::-1]

    def is_secret_name(self, name: str, *, in_query: bool = False) -> bool:
        """Whether the value of this name must be masked."""
        normal = _normal(name)
        if normal in self._names or normal in _ALWAYS_SECRET:
            return True
        if in_query and normal in _SECRET_IN_A_QUERY:
            return True
        return normal.endswith(_SECRET_ENDINGS) and normal not in _NOT_SECRET

    def _mask_named(self, text: str) -> str:
        parts: list[str] = []
        done = position = 0
        while (found := _NAME.search(text, position)) is not None:
            position = found.end()
            before = text[found.start() - 1] if found.start() else ""
            if not self.is_secret_name(found[0], in_query=before in ("?", "&")):
                continue
            between = _BETWEEN.match(text, position)
            if between is None or (between["sign"] == "," and between["end"] is None):
                continue  # a comma separates name and value only in a pair of quoted texts
            if between["sign"] == ">" and before != "<":
                continue  # only after the name of an element
            start, end = self._value(text, between.end(), _normal(found[0]), before, between)
            if end > start:
                parts += (text[done:start], MASK)
                done = position = end
        return "".join([*parts, text[done:]])

    def _value(self, text: str, start: int, name: str, before: str, between: re.Match[str]) -> tuple[int, int]:
        """Where the value after a name begins and ends; empty if there is none to mask."""
        opening = _OPENING.match(text, start)
        if opening is not None:
            start = opening.end()
            end = _closing(text, start, opening["quote"])
            return _without_scheme(text, start, end) if name in _WHOLE_LINE else (start, end)
        if name in _WHOLE_LINE and between["sign"] in (":", "="):
            scheme, end = _without_scheme(text, start, _match_end(_TO_LINE_END, text, start))
            if scheme > start and name.endswith("authorization"):
                # `Authorization: Bearer TOKEN for model x`: a token ends at a space, parameters at the end of the line.
                word = _match_end(_PLAIN_VALUE, text, scheme)
                has_parameters = text[scheme:word].endswith("=") and text[word : word + 1] in ("'", '"')
                if has_parameters or text[start:scheme].lower().startswith(_WITH_PARAMETERS):
                    return scheme, _match_end(_WITH_QUOTES_TO_LINE_END, text, scheme)
                return scheme, _trimmed(text, scheme, word)
            return scheme, _trimmed(text, scheme, end)
        if text[start : start + 1] in ("{", "[", "("):
            return start, start  # its members have their own names
        end = _match_end(_QUERY_VALUE if before in ("?", "&") else _PLAIN_VALUE, text, start)
        end = _trimmed(text, start, end)
        if end - start <= _LONGEST_NO_VALUE and text[start:end].lower() in _NO_VALUES:
            return start, start
        is_prose = between["sign"] == ":" and text[between.end() - 1] in " \t"
        if is_prose and name.endswith(("token", "secret")) and _is_a_word(text[start:end]):
            return start, start  # "unexpected token: colon"
        return start, end


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "").replace("-", "").replace(".", "")


def _match_end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return start if found is None else found.end()


def _trimmed(text: str, start: int, end: int) -> int:
    """The end without the punctuation of the surrounding sentence."""
    while end > start and text[end - 1] in _TRAILING:
        end -= 1
    return end


def _without_scheme(text: str, start: int, end: int) -> tuple[int, int]:
    """The value without the word for the authorisation scheme."""
    scheme = _SCHEME.match(text, start, end)
    return (start if scheme is None or scheme.end() == end else scheme.end()), end


def _closing(text: str, start: int, quote: str) -> int:
    """Where a quoted value ends: at its own quote, or at the end of its line if there is none.

    A quote after backslashes belongs to the value if the opening one had none.
    """
    mark, slashes = quote[-1], len(quote) - 1
    position = start
    while position < len(text):
        character = text[position]
        if character in "\r\n":
            return position
        if character == mark:
            return position
        if character == "\\":
            run = position
            while run < len(text) and text[run] == "\\":
                run += 1
            if run < len(text) and text[run] == mark:
                if run - position <= slashes or (run - position) % 2 == 0:
                    return position
                run += 1
            position = run
            continue
        position += 1
    return position


def _is_a_word(text: str) -> bool:
    return len(text) < 8 or text.isalpha()


def _mask_key_blocks(text: str) -> str:
    if "PRIVATE KEY" not in text:
        return text
    parts: list[str] = []
    done = 0
    while (found := _KEY_BLOCK.search(text, done)) is not None:
        parts += (text[done : found.end()], MASK)
        end = text.find(_KEY_BLOCK_END, found.end())
        done = len(text) if end < 0 else end
    return "".join([*parts, text[done:]])


def _mask_urls(text: str) -> str:
    return text if "://" not in text else _RUN.sub(lambda run: _mask_run(run[0]), text)


def _mask_run(run: str) -> str:
    """Mask the URLs in a text without spaces."""
    parts: list[str] = []
    done = 0
    if "@" not in run:
        return run
    last_at = run.rfind("@")
    while (slashes := run.find("://", done)) >= 0 and slashes < last_at:
        start = slashes + 3
        scheme = _scheme_before(run, slashes)
        masked = _userinfo(run, start, scheme, last_at)
        if masked is None:
            parts.append(run[done:start])
            done = start
            continue
        replacement, at = masked
        parts += (run[done:start], replacement)
        done = at
    return "".join([*parts, run[done:]])


def _scheme_before(run: str, slashes: int) -> str:
    start = slashes
    while start > 0 and slashes - start < 30 and (run[start - 1].isalnum() or run[start - 1] in "+.-"):
        start -= 1
    return run[start:slashes].lower()


def _userinfo(run: str, start: int, scheme: str, last_at: int) -> tuple[str, int] | None:
    """The replacement of ``user:password`` and the position of its ``@``; ``None`` if there is no password.

    A password should have its ``@`` and ``/`` written as ``%40`` and ``%2F``, but often has not.
    """
    following = run.find("://", start)
    limit = last_at + 1 if following < 0 else min(following, last_at + 1)
    quoted = _QUOTES.search(run, start, limit)
    ends = [limit] if quoted is None else [quoted.start(), limit]
    authority = _AUTHORITY_END.search(run, start, limit)
    if scheme in _WEB and authority is not None:
        ends.insert(0, min(authority.start(), ends[0]))
    host_end = limit if authority is None else authority.start()
    for end in ends:
        at = run.rfind("@", start, end)
        if at < 0:
            continue
        user, colon, password = run[start:at].partition(":")
        if any(mark in user for mark in "/?#@"):
            return None
        if not colon:
            return (MASK, at) if scheme in _WEB and len(user) > _LONGEST_PLAIN_USER else None
        if at > host_end and _PORT.fullmatch(run, start + len(user) + 1, host_end):
            return None  # what looks like a password is a port and a path
        if password in ("", "x-oauth-basic"):
            return (MASK if len(user) > _LONGEST_PLAIN_USER else user) + (f":{password}"), at
        return f"{user}:{MASK}", at
    return None


def _mask_bearer(found: re.Match[str]) -> str:
    value = found[1]
    if len(value) < 8 or (value.isalpha() and len(value) < 20):
        return found[0]  # "bearer authentication"
    return found[0][: -len(value)] + MASK


def _mask_token(found: re.Match[str]) -> str:
    word = found[0]
    start = _TOKEN_START.search(word)
    if start is None:
        return word
    token = word[start.start() :]
    if len(token) < _SHORTEST_TOKEN or not any(character.isdigit() for character in token):
        return word
    return word[: start.end()] + MASK


def _mask_pair(found: re.Match[str]) -> str:
    user, password = found[1], found[2]
    if user.lower() in _NO_USERS or found.string.startswith(("sha256:", "sha512:"), found.end()):
        return found[0]
    return f"{user}:{MASK}@" if password != MASK else found[0]


class _Process:
    """The masker of this process, replaced once settings are read."""

    def __init__(self) -> None:
        self.masker = Masker()


_process = _Process()


def mask_names(names: Iterable[str]) -> None:
    """From now on also mask the values after these names in this process (``PAIDONCE_MASKED_NAMES``)."""
    _process.masker = Masker(names)


def current_masker() -> Masker:
    """The masker of this process."""
    return _process.masker


def mask(text: str) -> str:
    """The text without credentials, by this process's masker."""
    return _process.masker.mask(text)


def mask_values(value: object) -> object:
    """A JSON value with every text in it masked, and the values of members with secret names."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list | tuple):
        return [mask_values(each) for each in value]
    if isinstance(value, dict):
        is_secret = _process.masker.is_secret_name
        return {
            name: MASK if isinstance(member, str) and member and is_secret(str(name)) else mask_values(member)
            for name, member in value.items()
        }
    return value
