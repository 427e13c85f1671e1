"""The built-in model `demo`: no key, no network, and the same answer to the same messages.

It answers from the history that it was sent, so that lost or foreign memory is visible at once: it knows a name, a
code word and what was said first, and otherwise says how many messages it remembers.
"""

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

from webai_api.server.errors import bad_request
from webai_api.server.upstream import Reply
from webai_api.server.wire import DONE, encode, event
from webai_api.types import Message

__all__ = ["DEMO", "DemoUpstream", "answer"]

DEMO = "demo"
MAX_CHOICES = 8
SHOWN_CHARS = 200  # of what was said, in an echo

_NAME = re.compile(r"\b(?:my name is|i am called|call me)\s+([^\s.,;:!?\"']+)", re.IGNORECASE)
_I_AM = re.compile(r"\b(?:i am|i'm)\s+([^\s.,;:!?\"']+)", re.IGNORECASE)  # may be "tired": only if no name was given
_CODE_WORD = re.compile(r"\bcode ?word(?:\s+is|\s*:|\s*=)\s+([^\s.,;!?\"']+)", re.IGNORECASE)
_ASKS_NAME = re.compile(r"\b(?:what(?:'s| is| was)? my name|who am i)\b", re.IGNORECASE)
_ASKS_CODE_WORD = re.compile(r"\bwhat(?:'s| is| was)\b[^.?!]{0,80}\bcode ?word\b", re.IGNORECASE)
_ASKS_FIRST = re.compile(r"\bwhat did i (?:say|ask|tell you) first\b", re.IGNORECASE)


class DemoUpstream:
    """Answers by rules."""

    name = DEMO
    refused: frozenset[str] = frozenset()

    @asynccontextmanager
    async def chat(self, body: bytes, payload: Mapping[str, Any]) -> AsyncIterator[Reply]:
        n = 1 if payload.get("n") is None else payload["n"]
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
            raise bad_request(f"n must be a whole number from 1 to {MAX_CHOICES}.", param="n")
        yield _DemoReply(payload, sha256(body).hexdigest()[:24], n)

    async def models(self) -> list[str]:
        return [DEMO]


class _DemoReply:
    def __init__(self, payload: Mapping[str, Any], digest: str, n: int) -> None:
        self.streams = payload.get("stream") is True
        kind = b"text/event-stream; charset=utf-8" if self.streams else b"application/json"
        self.headers = [(b"content-type", kind)]
        self._n = n
        self._message = answer(payload)
        self._usage = _usage(payload, self._message, n)
        options = payload.get("stream_options")
        self._wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        self._head = {"id": f"chatcmpl-{digest}", "created": int(time.time()), "model": DEMO}
        self._finish = "tool_calls" if self._message.get("tool_calls") else "stop"

    async def read(self, limit: int | None = None) -> bytes:  # noqa: ARG002  # its answers are short
        if self.streams:
            return b"".join([piece async for piece in self.pieces()])
        choices = [
            {"index": i, "message": self._message, "logprobs": None, "finish_reason": self._finish}
            for i in range(self._n)
        ]
        return encode({**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage})

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        if not self.streams:
            yield await self.read()
            return
        for i in range(self._n):
            for delta in _deltas(self._message):
                yield self._chunk([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}])
            yield self._chunk([{"index": i, "delta": {}, "logprobs": None, "finish_reason": self._finish}])
        if self._wants_usage:
            yield self._chunk([], self._usage)
        yield DONE

    def _chunk(self, choices: list[dict[str, Any]], usage: Mapping[str, Any] | None = None) -> bytes:
        chunk: dict[str, Any] = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        if self._wants_usage:
            chunk["usage"] = usage
        return event(chunk)


def answer(payload: Mapping[str, Any]) -> Message:
    """Return the assistant's message that follows the request's messages."""
    messages: list[Message] = payload["messages"]
    if (tool := _wanted_tool(payload, messages[-1])) is not None:
        arguments = _example(tool.get("parameters") or {}, _text(messages[-1]))
        call = {
            "id": "call_" + sha256(encode([len(messages), tool.get("name"), arguments])).hexdigest()[:24],
            "type": "function",
            "function": {"name": tool.get("name"), "arguments": encode(arguments).decode()},
        }
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    return {"role": "assistant", "content": _reply_to(messages), "refusal": None}


def _reply_to(messages: Sequence[Message]) -> str:
    said = [_text(m) for m in messages if m.get("role") == "user"]
    remembered = sum(m.get("role") not in ("system", "developer") for m in messages) - 1
    last, earlier = _text(messages[-1]), said[:-1]
    if messages[-1].get("role") in ("tool", "function"):
        return f"The tool answered: {last[:SHOWN_CHARS]}"
    if _ASKS_NAME.search(last):
        name = _last_match(_NAME, said) or _last_match(_I_AM, said)
        return f"Your name is {name}." if name else f"I do not know your name. {_memory(remembered)}"
    if _ASKS_CODE_WORD.search(last):
        word = _last_match(_CODE_WORD, said)
        return f"The code word is {word}." if word else f"I do not know a code word. {_memory(remembered)}"
    if _ASKS_FIRST.search(last):
        return f'You said first: "{earlier[0][:SHOWN_CHARS]}".' if earlier else "This is the first thing you said."
    return f'You said: "{last[:SHOWN_CHARS]}". {_memory(remembered)}'


def _memory(count: int) -> str:
    return f"I remember {count} earlier message{'' if count == 1 else 's'}."


def _last_match(pattern: re.Pattern[str], texts: Sequence[str]) -> str | None:
    found = [match for text in texts for match in pattern.findall(text)]
    return str(found[-1]) if found else None


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _wanted_tool(payload: Mapping[str, Any], last: Message) -> dict[str, Any] | None:
    """Return the function to call: the one that was named, else the first if one is required or a user speaks."""
    tools = payload.get("tools")
    functions = [t["function"] for t in tools or () if isinstance(t, dict) and isinstance(t.get("function"), dict)]
    choice = payload.get("tool_choice") or "auto"
    if not functions or last.get("role") in ("tool", "function") or choice == "none":
        return None
    if isinstance(choice, dict):
        named = choice.get("function")
        name = named.get("name") if isinstance(named, dict) else None
        return next((f for f in functions if f.get("name") == name), None)
    return functions[0] if choice == "required" or last.get("role") == "user" else None


def _example(schema: object, text: str, depth: int = 8) -> Any:  # noqa: ANN401  # any JSON value
    """Return a value that a JSON schema allows, its texts taken from *text*."""
    if not isinstance(schema, dict) or depth == 0:
        return text[:SHOWN_CHARS]
    if isinstance(choices := schema.get("enum"), list) and choices:
        return choices[0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    properties = schema.get("properties")
    if kind == "object" or isinstance(properties, dict) or (kind is None and depth == 8):
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        names = [n for n in (required if isinstance(required, list) else properties) if isinstance(n, str)]
        return {name: _example(properties.get(name, {}), text, depth - 1) for name in names}
    simple: dict[object, Any] = {"integer": 1, "number": 1, "boolean": True, "array": [], "null": None}
    return simple.get(kind, text[:SHOWN_CHARS])


def _deltas(message: Message) -> Iterator[dict[str, Any]]:
    calls = message.get("tool_calls")
    if not calls:
        yield {"role": "assistant", "content": "", "refusal": None}
        for word in re.findall(r"\S+\s*|\s+", message["content"]):
            yield {"content": word}
        return
    yield {"role": "assistant", "content": None}
    for index, call in enumerate(calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        yield {"tool_calls": [{"index": index, **call, "function": {"name": name, "arguments": ""}}]}
        for start in range(0, len(arguments), 20):
            yield {"tool_calls": [{"index": index, "function": {"arguments": arguments[start : start + 20]}}]}


def _usage(payload: Mapping[str, Any], message: Message, n: int) -> dict[str, int]:
    prompt = sum(4 + len(_text(m)) // 4 for m in payload["messages"])
    completion = n * (1 + len(encode(message.get("tool_calls") or message["content"])) // 4)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
