"""What the model said, put together from a whole response or from the pieces of a stream."""

import json
from collections.abc import Mapping
from typing import Any

from webai_api.server.errors import ApiError
from webai_api.types import Message

__all__ = ["MAX_ANSWER_BYTES", "Answer", "answer_of"]

MAX_ANSWER_BYTES = 16 << 20  # an answer that must be kept whole (for a session, for a replay) ends here
KEPT = ("role", "content", "refusal", "tool_calls", "function_call", "audio")  # what a model is shown again


def answer_of(completion: object) -> Message:
    """Return the message of a whole chat completion.

    Raises:
        ApiError: 502, there is none.
    """
    try:
        choice = completion["choices"][0]  # type: ignore[index]  # anything else is what `except` is for
        message, finish_reason = choice["message"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _unusable("it is no chat completion") from error
    if not isinstance(message, dict):
        raise _unusable("its message is no object")
    return _kept(message, finish_reason)


class Answer:
    """Collects the pieces of the first choice of a stream."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.done = False  # the stream said so
        self._content: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._slots: dict[int, dict[str, Any]] = {}  # a call by its index in the stream
        self._function: dict[str, Any] = {}
        self._audio: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the stream came to its end, and was not just cut off."""
        return self.done or self.finish_reason is not None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take in one chunk.

        Raises:
            ApiError: 502, it reports an error. What it says is not repeated to the client.
        """
        if chunk.get("error"):
            raise ApiError(502, "The upstream broke off with an error; nothing was stored.", code="upstream_error")
        for choice in _objects(chunk.get("choices")):
            if choice.get("index") not in (0, None):
                continue
            if isinstance(reason := choice.get("finish_reason"), str):
                self.finish_reason = reason
            if isinstance(delta := choice.get("delta"), dict):
                self._add_delta(delta)

    def message(self) -> Message:
        """Return the message that the pieces make.

        Raises:
            ApiError: 502, it was cut off within a tool call.
        """
        whole: Message = {"role": "assistant", "content": "".join(self._content) or None}
        if self._refusal:
            whole["refusal"] = "".join(self._refusal)
        whole["tool_calls"] = self._calls
        whole["function_call"] = self._function
        whole["audio"] = {"id": self._audio} if self._audio else None
        return _kept(whole, self.finish_reason)

    def _add_delta(self, delta: dict[str, Any]) -> None:
        if isinstance(text := delta.get("content"), str):
            self._content.append(text)
        if isinstance(text := delta.get("refusal"), str):
            self._refusal.append(text)
        if isinstance(function := delta.get("function_call"), dict):
            _merge_function(self._function, function)
        if isinstance(audio := delta.get("audio"), dict) and isinstance(audio.get("id"), str):
            self._audio = audio["id"]
        for piece in _objects(delta.get("tool_calls")):
            self._add_call(piece)

    def _add_call(self, piece: dict[str, Any]) -> None:
        call = self._slot(piece)
        for key, value in piece.items():
            if key == "function":
                _merge_function(call.setdefault("function", {}), value if isinstance(value, dict) else {})
            elif key != "index" and value not in (None, ""):
                call[key] = value

    def _slot(self, piece: dict[str, Any]) -> dict[str, Any]:
        """Return the call that *piece* belongs to. Some upstreams leave the index out, or give all calls the same."""
        index, call_id = piece.get("index"), piece.get("id") or None
        function = piece.get("function")
        named = isinstance(function, dict) and bool(function.get("name"))
        numbered = isinstance(index, int)
        call = self._slots.get(index) if isinstance(index, int) else self._calls[-1] if self._calls else None
        if call is not None:
            other_id = call_id is not None and call.get("id") not in (None, call_id)
            begins_anew = not numbered and named and call_id is None and bool(call.get("function", {}).get("name"))
            if not other_id and not begins_anew:
                return call
        call = {}
        self._calls.append(call)
        if isinstance(index, int):
            self._slots[index] = call
        return call


def _objects(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _merge_function(whole: dict[str, Any], piece: Mapping[str, Any]) -> None:
    if name := piece.get("name"):
        whole["name"] = name
    if isinstance(arguments := piece.get("arguments"), str):
        whole["arguments"] = whole.get("arguments", "") + arguments


def _kept(message: Mapping[str, Any], finish_reason: object) -> Message:
    kept: Message = {key: message[key] for key in KEPT if message.get(key)}
    kept["role"] = "assistant"
    if isinstance(audio := kept.get("audio"), dict):
        kept["audio"] = {"id": audio.get("id")}  # its sound is long and of no use to the model
    if not isinstance(kept.get("tool_calls", []), list):
        raise _unusable("its tool_calls are no list")
    if finish_reason in ("length", "content_filter"):
        for call in kept.get("tool_calls", ()):
            _check_whole(call)
    kept.setdefault("content", None if len(kept) > 1 else "")
    return kept


def _check_whole(call: object) -> None:
    try:
        json.loads(call["function"]["arguments"])  # type: ignore[index]  # anything else is what `except` is for
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unusable("it was cut off within a tool call") from error


def _unusable(why: str) -> ApiError:
    return ApiError(502, f"The upstream's answer cannot be kept: {why}; nothing was stored.", code="upstream_error")
