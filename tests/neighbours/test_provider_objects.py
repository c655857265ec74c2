"""What providers' clients return is stored and comes back as it was, with values that their classes do not know."""

from __future__ import annotations

import asyncio
import dataclasses
import warnings
from collections.abc import Callable
from datetime import datetime
from types import ModuleType
from typing import Any

import anthropic.types
import anthropic.types.beta
import openai.types
import openai.types.audio
import openai.types.chat
import openai.types.responses
import pytest
from anthropic._models import construct_type as build_anthropic
from google.genai import types as google_types
from openai._models import construct_type as build_openai
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.test import TestModel
from pydantic_ai.run import AgentRunResult
from pydantic_ai.usage import RunUsage

from paidonce.values.codecs import codec_for
from tests.neighbours.unvalidated import AnswerMaker, models_in


def build_google(*, value: dict[str, Any], type_: type[BaseModel]) -> object:
    make: Any = type_
    return make._from_response(response=value, kwargs={})


def plainly(value: object) -> object:
    """The value down to its leaves with all classes, for comparison."""
    if isinstance(value, BaseModel):
        fields = {name: plainly(each) for name, each in vars(value).items() if name in type(value).model_fields}
        return type(value), fields, plainly(value.model_extra or {})
    if isinstance(value, dict):
        return {name: plainly(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [type(value), *map(plainly, value)]
    return type(value), value


@pytest.mark.parametrize(
    ("build", "module"),
    [
        (build_openai, openai.types),
        (build_openai, openai.types.chat),
        (build_openai, openai.types.responses),
        (build_openai, openai.types.audio),
        (build_anthropic, anthropic.types),
        (build_anthropic, anthropic.types.beta),
        (build_google, google_types),
    ],
)
def test_every_answer_of_an_sdk_comes_back_as_its_client_has_built_it(
    build: Callable[..., object], module: ModuleType
) -> None:
    warnings.simplefilter("ignore")  # google-genai warns of each value that it does not know
    tried = 0
    for cls in models_in(module):
        for seed, oddities in enumerate((0, 1, 4)):
            try:
                answer = build(value=AnswerMaker(seed, oddities).answer(cls), type_=cls)
            except Exception:  # noqa: BLE001 - refused by the client itself: no step gets it
                continue
            for annotation in (cls, object):
                codec = codec_for(annotation)
                data = codec.encode_result(answer, "result")
                back = codec.decode(data)
                assert plainly(back) == plainly(answer), (cls, seed, annotation)
                assert codec.encode_result(back, "result") == data
                tried += 1
    assert tried > 20


def test_an_answer_with_a_new_tier_keeps_which_fields_were_set() -> None:
    body = {
        "id": "1", "object": "chat.completion", "created": 1, "model": "gpt-5", "service_tier": "warp",
        "choices": [{"index": 0, "finish_reason": "bored", "message": {"role": "assistant", "content": "hi"}}],
    }  # fmt: skip
    answer: Any = build_openai(value=body, type_=openai.types.chat.ChatCompletion)
    codec = codec_for(openai.types.chat.ChatCompletion)
    back: Any = codec.decode(codec.encode(answer, "result"))
    assert back.model_dump(exclude_unset=True) == answer.model_dump(exclude_unset=True) == body


@dataclasses.dataclass
class Booking:
    when: datetime
    seats: set[int]


class City(BaseModel):
    name: str


def test_results_and_messages_of_pydantic_ai_keep_what_tools_have_returned() -> None:
    talker = Agent(TestModel())
    talker.tool_plain(lambda: datetime(2026, 1, 1), name="when")
    talker.tool_plain(lambda: Booking(datetime(2026, 1, 1), {3, 1}), name="booking")
    talker.tool_plain(lambda: City(name="Rome"), name="city")
    result = asyncio.run(talker.run("hi"))  # run_sync leaves its event loop open
    odd: Any = "brand_new"
    values: list[tuple[object, object]] = [
        (list[ModelMessage], result.all_messages()),
        (object, result.all_messages()),
        (list[ModelMessage], [ModelResponse(parts=[TextPart("x")], finish_reason=odd)]),
        (AgentRunResult[str], result),
        (object, result),
        (AgentRunResult[City], asyncio.run(Agent(TestModel(), output_type=City).run("hi"))),
        (RunUsage, result.usage),
    ]
    for annotation, value in values:
        codec = codec_for(annotation)
        back = codec.decode(codec.encode_result(value, "result"))
        assert type(back) is type(value)
        assert repr(back).replace("TzInfo(0)", "datetime.timezone.utc") == repr(value)
