"""Tags name something and hold no data: each limit with its error, which names the setting and shows no megabytes."""

from __future__ import annotations

from typing import Any

import pytest

from paidonce.runs.new_run import new_run
from paidonce.runs.tags import checked_tags
from paidonce.settings import Settings
from paidonce_models.errors import InvalidInput

DEFAULTS = Settings.model_construct()


def check(tags: Any, **limits: int) -> dict[str, str]:
    return checked_tags(Settings.model_construct(**limits), "shop", tags)


def test_ordinary_tags_are_taken_as_they_are() -> None:
    assert check({"user": "u1", "größe": "ü" * 500}) == {"user": "u1", "größe": "ü" * 500}
    assert check(None) == {}


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({str(number): "x" for number in range(51)}, ["51 tags", "at most 50", "PAIDONCE_MAX_TAGS"]),
        ({"user": "x" * 20_000_000}, ["value of tag 'user'", "20,000,000 bytes", "PAIDONCE_MAX_TAG_BYTES"]),
        ({"n" * 1_001: "x"}, ["name of tag 'nnn", "1,001 bytes", "PAIDONCE_MAX_TAG_BYTES"]),
        ({"user": "ü" * 501}, ["1,002 bytes"]),
        ({str(number): "x" * 999 for number in range(11)}, ["bytes, at most 10,000", "PAIDONCE_MAX_TAGS_BYTES"]),
        ({"user": [1] * 1_000_000}, ["'user'=[1, 1", "must be strings"]),
        ({"x" * 1_000_000: 1}, ["must be strings"]),
        ({"a" * 1_000_000: "\x00"}, ["NUL"]),
    ],
    ids=["count", "value", "name", "bytes", "all", "list", "long name", "nul"],
)
def test_a_limit_is_told_with_what_was_found_and_the_way_out(tags: Any, said: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        new_run(DEFAULTS, "shop", {}, tags=tags)
    assert all(each in refused.value.message for each in ["shop", *said]), refused.value.message
    assert len(refused.value.message) < 500


def test_the_settings_move_the_limits() -> None:
    assert len(check({"a": "x" * 1_200}, max_tag_bytes=1_200)) == 1
    with pytest.raises(InvalidInput, match="at most 1 are allowed"):
        check({"a": "", "b": ""}, max_tags=1)
