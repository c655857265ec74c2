"""``provider_client``: what it refuses. That its clients try once is shown by real ones, in ``tests/capture``."""

from __future__ import annotations

import openai
import pytest

from paidonce import InvalidInput, provider_client


def test_the_client_is_the_sdks_own_with_its_retries_off() -> None:
    with provider_client(openai.OpenAI, api_key="key", timeout=3) as client:
        assert type(client) is openai.OpenAI
        assert (client.max_retries, client.timeout) == (0, 3)


def test_retries_of_the_client_are_refused_and_the_steps_named() -> None:
    with pytest.raises(InvalidInput, match=r"max_retries=2 for openai.OpenAI: .* @step\(retry=3\)"):
        provider_client(openai.OpenAI, api_key="key", max_retries=2)


def test_a_class_that_is_not_known_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidInput, match=r"cannot turn off the retries of .*Unknown.* create the client yourself"):
        provider_client(Unknown)


class Unknown:
    """A client whose retries nobody can name."""
