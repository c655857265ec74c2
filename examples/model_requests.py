"""Checks a chat completion request as the real API would, before any response is made.

Owns the shapes of what a client sends and the 4xx errors in OpenAI's format. A pure
function from the decoded body to a `ChatRequest` or a `Refused`. Error texts and codes
follow api.openai.com as of 2026.
"""

import json
from dataclasses import dataclass

ROLES = ("system", "developer", "user", "assistant", "tool")


class Refused(Exception):
    """The request is invalid; carries the HTTP status and OpenAI's error object."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        """Keep what the client will read."""
        super().__init__(message)
        self.status = status
        self.error = {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": code,
        }


@dataclass(frozen=True, kw_only=True)
class Message:
    """One checked message; `tool_calls` are (id, function name, JSON arguments)."""

    role: str
    text: str
    tool_calls: tuple[tuple[str, str, str], ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request that can be answered. `tools` are the names that may be called now."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[str, ...]
    tools_text: str
    must_call: str | None
    stream: bool
    include_usage: bool


def parse(body: bytes, models: tuple[str, ...]) -> ChatRequest:
    """Decode and check a request's body; raises Refused with the status to answer."""
    try:
        data = json.loads(body)
    except ValueError:
        raise Refused(
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            "aren't using your HTTP library correctly. The API expects a JSON payload.)"
        ) from None
    if not isinstance(data, dict):
        raise Refused("Invalid body: expected an object.", code="invalid_type")
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise Refused("you must provide a model parameter", param="model")
    if model not in models:
        raise Refused(
            f"The model `{model}` does not exist or you do not have access to it. "
            f"This server has: {', '.join(models)}.",
            status=404,
            code="model_not_found",
        )
    messages = _messages(data)
    tools, must_call = _tools(data)
    stream = _flag(data, "stream")
    options = data.get("stream_options")
    if options is not None and not stream:
        raise Refused(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    if data.get("n", 1) not in (None, 1):
        raise Refused("This stand-in gives one choice: 'n' must be 1.", param="n")
    return ChatRequest(
        model=model,
        messages=messages,
        tools=tools,
        tools_text=json.dumps(data["tools"]) if data.get("tools") else "",
        must_call=must_call,
        stream=stream,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _flag(data: dict[str, object], name: str) -> bool:
    value = data.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise Refused(f"Invalid type for '{name}': expected a boolean.", param=name, code="invalid_type")


def _messages(data: dict[str, object]) -> tuple[Message, ...]:
    if "messages" not in data:
        raise Refused(
            "Missing required parameter: 'messages'.",
            param="messages",
            code="missing_required_parameter",
        )
    given = data["messages"]
    if not isinstance(given, list):
        raise Refused(
            "Invalid type for 'messages': expected an array of objects.",
            param="messages",
            code="invalid_type",
        )
    if not given:
        raise Refused(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    messages = tuple(_message(item, index) for index, item in enumerate(given))
    _check_tool_answers(messages)
    return messages


def _message(item: object, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(item, dict):
        raise Refused(f"Invalid type for '{where}': expected an object.", param=where, code="invalid_type")
    role = item.get("role")
    if role not in ROLES:
        supported = ", ".join(f"'{name}'" for name in ROLES)
        raise Refused(
            f"Invalid value: '{role}'. Supported values are: {supported}.",
            param=f"{where}.role",
            code="invalid_value",
        )
    calls = _tool_calls(item.get("tool_calls"), f"{where}.tool_calls")
    if item.get("content") is None and not (role == "assistant" and calls):
        raise Refused(
            f"Invalid value for 'content': expected a string, got null. ({where})",
            param=f"{where}.content",
        )
    call_id = item.get("tool_call_id")
    if role == "tool" and not isinstance(call_id, str):
        raise Refused(
            f"Missing required parameter: '{where}.tool_call_id'.",
            param=f"{where}.tool_call_id",
            code="missing_required_parameter",
        )
    return Message(
        role=str(role),
        text=_text(item.get("content"), f"{where}.content"),
        tool_calls=calls,
        tool_call_id=call_id if isinstance(call_id, str) else None,
    )


def _text(content: object, where: str) -> str:
    """Content is a string or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise Refused(
        f"Invalid type for '{where}': expected a string or an array of text parts.",
        param=where,
        code="invalid_type",
    )


def _tool_calls(calls: object, where: str) -> tuple[tuple[str, str, str], ...]:
    if calls is None:
        return ()
    try:
        found = tuple(
            (call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in calls  # type: ignore[attr-defined]  # a wrong shape is refused below
        )
    except (TypeError, KeyError, IndexError):
        found = ()
    if not found or not all(isinstance(part, str) for call in found for part in call):
        raise Refused(
            f"Invalid '{where}': expected an array of calls with 'id', 'function.name' and 'function.arguments'.",
            param=where,
            code="invalid_type",
        )
    return found


def _check_tool_answers(messages: tuple[Message, ...]) -> None:
    """Every tool call is answered at once, and nothing else is an answer."""
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise Refused(
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'.",
                    param=f"messages[{index}].role",
                )
            open_calls.remove(message.tool_call_id)
            continue
        _check_none_open(open_calls, index)
        open_calls = {call_id for call_id, _, _ in message.tool_calls}
    _check_none_open(open_calls, len(messages))


def _check_none_open(open_calls: set[str], index: int) -> None:
    if open_calls:
        raise Refused(
            "An assistant message with 'tool_calls' must be followed by tool messages "
            "responding to each 'tool_call_id'. The following tool_call_ids did not have "
            f"response messages: {', '.join(sorted(open_calls))}",
            param=f"messages[{index}].role",
        )


def _tools(data: dict[str, object]) -> tuple[tuple[str, ...], str | None]:
    """The callable names under `tool_choice`, and the one that must be called, if any."""
    given = data.get("tools")
    choice = data.get("tool_choice")
    if given is None:
        if choice not in (None, "none"):
            raise Refused(
                "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
                param="tool_choice",
            )
        return (), None
    try:
        names = tuple(
            tool["function"]["name"]
            for tool in given  # type: ignore[attr-defined]  # a wrong shape is refused below
        )
    except (TypeError, KeyError):
        raise Refused(
            "Invalid 'tools': expected an array of objects with 'function.name'.",
            param="tools",
            code="invalid_type",
        ) from None
    if choice == "none":
        return (), None
    if choice == "required":
        return names, names[0] if names else None
    if isinstance(choice, dict):
        wanted = choice.get("function", {}).get("name")
        if wanted not in names:
            raise Refused(
                f"Invalid value for 'tool_choice': no function named {wanted!r} in 'tools'.",
                param="tool_choice",
            )
        return (wanted,), wanted
    return names, None
