"""What a chat message must look like, and its two shapes: as it is stored, and as a model's API takes it.

Only the facade and what is above it know roles; a store never looks into an item.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from webai_api.codec import encode_metadata
from webai_api.errors import InvalidInput, InvalidType
from webai_api.limits import Limits
from webai_api.types import History, Message

__all__ = ["KNOWN_ROLES", "chat_messages", "history_message", "last_turns", "stored_message"]

KNOWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal", "audio")  # OpenAI's assistant messages without content
NOT_FOR_MODELS = frozenset({"metadata", "id", "created_at"})  # ours and the guide's; a model's API refuses them

_logger = logging.getLogger("webai_api")
_warned: set[str] = set()


def stored_message(message: Mapping[str, Any], limits: Limits) -> Message:
    """Return *message* as it is stored: role, content and metadata first, then every other key as it came.

    Raises:
        InvalidInput: no role, no content (None only for an assistant that has tool_calls, function_call, refusal
            or audio instead), or larger than the limits.
    """
    if not isinstance(message, dict):
        raise InvalidType(f"a message must be a dict, not {type(message).__name__}")
    role, content, metadata = message.get("role"), message.get("content"), message.get("metadata")
    _check_role(role, limits)
    if content is None:
        if role != "assistant" or not any(message.get(key) for key in INSTEAD_OF_CONTENT):
            raise InvalidInput("content may be missing only in an assistant's message that has tool_calls instead")
    else:
        _check_content(content, limits)
    if metadata:
        encode_metadata(metadata, limits)
    elif metadata is not None and not isinstance(metadata, dict):
        raise InvalidType(f"metadata must be a dict, not {type(metadata).__name__}")
    return {"role": role, "content": content, "metadata": metadata or {}, **_others(message)}


def history_message(stored: Mapping[str, Any]) -> Message:
    """Return the stored *data* as `get_history` gives it: role, content, metadata (``{}`` if missing), the rest."""
    return {
        "role": stored.get("role"),
        "content": stored.get("content"),
        "metadata": stored.get("metadata") or {},
        **_others(stored),
    }


def chat_messages(history: History | Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return the messages as a model's API accepts them: without ``metadata``, ``id`` and ``created_at``."""
    found = (item.data for item in history.items) if isinstance(history, History) else history
    return [{key: value for key, value in message.items() if key not in NOT_FOR_MODELS} for message in found]


def last_turns(messages: Sequence[Message], limit: int | None) -> Sequence[Message]:
    """Return the newest whole turns that together have at most *limit* messages.

    A turn begins with a user's message. The newest turn is kept whole even if it is longer.
    """
    if limit is None or len(messages) <= limit:
        return messages
    starts = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    fitting = [i for i in starts if len(messages) - i <= limit]
    return messages[fitting[0] if fitting else starts[-1] if starts else len(messages) - limit :]


def _others(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in ("role", "content", "metadata")}


def _check_role(role: object, limits: Limits) -> None:
    if not isinstance(role, str):
        raise InvalidType(f"role must be a str, not {type(role).__name__}")
    if role in KNOWN_ROLES:
        return
    if not role.strip() or len(role.encode(errors="replace")) > limits.role_bytes:
        raise InvalidInput(f"role must have 1 to {limits.role_bytes} bytes")
    limits.check_id(role, "role")
    if role not in _warned and len(_warned) < 100:
        _warned.add(role)
        _logger.warning("a message with the unknown role %r was stored; chat models may refuse it", role)


def _check_content(content: object, limits: Limits) -> None:
    if isinstance(content, str):
        size = len(content) if content.isascii() else len(content.encode(errors="replace"))
    elif isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise InvalidType("each part of a message's content must be a dict with a 'type'")
        size = sum(len(part["text"].encode(errors="replace")) for part in content if isinstance(part.get("text"), str))
    else:
        raise InvalidType(f"content must be a str or a list of parts, not {type(content).__name__}")
    if size > limits.content_bytes:
        raise InvalidInput(f"content must have at most {limits.content_bytes} bytes of UTF-8, not {size}")
