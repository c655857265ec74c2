"""What checkers infer of submitted runs. As ``declared``: never executed."""

from __future__ import annotations

from typing import Any, assert_type

from paidonce import Client, RunHandle, StepFailed, Submission, agent


@agent
async def research(question: str, depth: int = 1) -> dict[str, float]:
    return {question: depth}


def submits(client: Client) -> None:
    handle = client.submit(research, {"question": "why?"}, key="k", priority=9)
    assert_type(handle, RunHandle[dict[str, float]])
    assert_type(handle.result(timeout=3), dict[str, float])
    assert_type(research.submit("why?", depth=2), RunHandle[dict[str, float]])
    assert_type(client.submit("research", {"question": "why?"}), RunHandle[Any])
    assert_type(client.submit("research").result(), Any)
    assert_type(client.run("id"), RunHandle[Any])
    kept: list[RunHandle] = [handle, client.run("id")]  # a handle of whatever run needs no argument
    for each in kept:
        each.cancel()
    wider: RunHandle[object] = handle
    wider.cancel()

    many = client.submit_many(research, [Submission(input={"question": "why?"}, key="k"), {"question": "how?"}])
    assert_type(many, list[RunHandle[dict[str, float]]])
    assert_type(client.submit_many("research", ({"question": text} for text in "ab")), list[RunHandle[Any]])
    client.submit_many(research, [3])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]

    client.submit(3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    research.submit(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def submits_from_a_web_handler(client: Client) -> None:
    handle = await client.submit_async(research, {"question": "why?"})
    assert_type(await handle.result_async(), dict[str, float])
    assert_type(await (await research.submit_async("why?")).result_async(3), dict[str, float])
    assert_type(await client.submit_async("research", {}), RunHandle[Any])
    assert_type(await client.submit_many_async(research, [{"question": "why?"}]), list[RunHandle[dict[str, float]]])


def handles(failure: StepFailed) -> str:
    return failure.message
