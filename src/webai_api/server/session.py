"""The session of a request, and which of the request's messages are new to it."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from webai_api.codec import encode_item
from webai_api.errors import InvalidInput
from webai_api.limits import Limits
from webai_api.messages import KNOWN_ROLES, chat_messages, stored_message
from webai_api.server.errors import ApiError, bad_request
from webai_api.server.http import Request
from webai_api.types import Message

__all__ = ["Parts", "check_messages", "divide", "header_value", "session_id_of", "upstream_message"]

HEADERS = (b"x-session-id", b"x-conversation-id")
FIELDS = ("session_id", "conversation_id")
INSTRUCTIONS = frozenset({"system", "developer"})
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def session_id_of(request: Request, payload: Mapping[str, Any], limits: Limits) -> str | None:
    """Return the session that the request names, in a header or in the body; None if it names none.

    Raises:
        ApiError: 400, the id is malformed, or two places name different ones.
    """
    found: dict[str, str] = {}  # id -> where it stands
    for name in HEADERS:
        shown = name.decode().title()
        for value in request.values(name):
            found[_checked(_decoded(value, shown), shown, limits)] = shown
    for field in FIELDS:
        if field in payload:
            found[_checked(payload[field], field, limits)] = field
    if len(found) > 1:
        raise bad_request(f"{' and '.join(found.values())} name different sessions.", param="session_id")
    return next(iter(found), None)


def header_value(session_id: str) -> bytes:
    """Return the id as X-Session-Id carries it: percent-encoded UTF-8."""
    return quote(session_id, safe="").encode()


def _decoded(value: bytes, name: str) -> str:
    try:
        text = value.decode("ascii")
        if _BAD_ESCAPE.search(text):
            raise bad_request(f"{name} has a '%' that begins no escape; percent-encode the id.", param=name)
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise bad_request(f"{name} must be percent-encoded UTF-8.", param=name) from error


def _checked(value: object, name: str, limits: Limits) -> str:
    try:
        return limits.check_id(value, name)
    except InvalidInput as error:
        raise bad_request(f"{error}.", param=name) from error


def check_messages(payload: Mapping[str, Any], limits: Limits) -> list[Message]:
    """Return the request's messages as they would be stored.

    Raises:
        ApiError: 400, names the message that cannot be accepted.
    """
    messages = payload.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a list of at least one message.", param="messages")
    if len(messages) >= limits.items_per_call:
        raise bad_request(f"messages may hold fewer than {limits.items_per_call} messages.", param="messages")
    return [_stored(message, f"messages[{i}]", limits) for i, message in enumerate(messages)]


def _stored(message: object, name: str, limits: Limits) -> Message:
    if not isinstance(message, dict):
        raise bad_request(f"{name} must be an object.", param=name)
    role = message.get("role")
    if not isinstance(role, str) or role not in KNOWN_ROLES:
        raise bad_request(f"{name}.role must be one of {', '.join(sorted(KNOWN_ROLES))}.", param=f"{name}.role")
    try:
        return stored_message(message, limits)
    except InvalidInput as error:
        raise bad_request(f"{name}: {error}.", param=name) from error


def upstream_message(message: Message) -> Message:
    """Return the message as a model's API takes it."""
    return chat_messages((message,))[0]


class Parts(NamedTuple):
    """A request's messages: instructions that hold for this request, and what is new to the session."""

    instructions: list[Message]
    new: list[Message]


def divide(messages: Sequence[Message], stored: Sequence[Message], limits: Limits, *, whole: bool = True) -> Parts:
    """Tell which of a request's *messages* are new to a session that holds *stored* (only its end, if not *whole*).

    Instructions (system, developer) are never part of the session. A request that begins with the whole stored
    history, word for word, brings the rest; otherwise all of it is new. What looks like a repetition and is none is
    refused, for nobody could tell what was meant.

    Raises:
        ApiError: 400, there is nothing new, or the request overlaps with the session.
    """
    instructions = [m for m in messages if m["role"] in INSTRUCTIONS]
    spoken = [m for m in messages if m["role"] not in INSTRUCTIONS]
    known = [m for m in stored if m.get("role") not in INSTRUCTIONS]
    new = _rest_of_resent(spoken, known) if whole else None
    if new is None:
        _refuse_overlap(spoken, known)
        new = spoken
    if not new and (not known or known[-1].get("role") == "assistant"):
        raise bad_request("The request holds no new message for this conversation.", param="messages")
    for message in new:
        try:
            encode_item(message, limits)
        except InvalidInput as error:
            raise bad_request(f"a message cannot be stored: {error}.", param="messages") from error
    return Parts(instructions, new)


def _rest_of_resent(spoken: list[Message], known: list[Message]) -> list[Message] | None:
    """Return what follows *known* in *spoken*; None if *spoken* does not begin with it."""
    if len(spoken) < len(known):
        return None
    if all(_gist(a) == _gist(b) for a, b in zip(spoken, known, strict=False)):
        return spoken[len(known) :]
    return None


def _refuse_overlap(spoken: list[Message], known: list[Message]) -> None:
    if any(m["role"] == "assistant" for m in spoken):
        raise _overlap("it holds an assistant's message, and does not begin with the stored history word for word")
    asked = [_gist(m) for m in known if m.get("role") == "user"]
    asked_again = [_gist(m) for m in spoken if m["role"] == "user"]
    if len(asked_again) > 1 and asked_again[0] in asked:  # one question may be asked twice; two are a history
        raise _overlap("it repeats the user's messages of the stored history without the answers")
    answered = {m["tool_call_id"] for m in known if m.get("role") == "tool" and m.get("tool_call_id")}
    if any(m["role"] == "tool" and m.get("tool_call_id") in answered for m in spoken):
        raise _overlap("it answers a tool call whose answer is stored already")


def _overlap(how: str) -> ApiError:
    return bad_request(
        f"The request overlaps with this conversation: {how}. "
        "Send only what is new, or the whole history word for word and what is new after it.",
        param="messages",
        code="conversation_overlap",
    )


def _gist(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same for two messages to be one: not how it is dressed in nulls, parts or blanks."""
    gist = {key: message.get(key) for key in ("role", "name", "tool_call_id", "function_call") if message.get(key)}
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if content:
        gist["content"] = content
    if calls := message.get("tool_calls"):
        gist["tool_calls"] = [_call_gist(call) for call in calls] if isinstance(calls, list) else calls
    return gist


def _call_gist(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    with suppress(ValueError, RecursionError):  # then they are compared as text
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return call.get("id"), function.get("name"), arguments
