"""``webai-api chat``: a conversation in the terminal, with the server in this process or with a running one.

Both are spoken to by the same request, so the terminal sees what any client sees.
"""

import asyncio
import json
import secrets
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing

from webai_api.cli.server_access import ChatServer, local_server, remote_server
from webai_api.cli.store_choice import server_settings
from webai_api.cli.terminal import printable
from webai_api.errors import InvalidInput, SessionError
from webai_api.limits import Limits
from webai_api.settings import client_key

__all__ = ["run"]

ANY_LENGTH = Limits(id_bytes=4096)  # how long an id may be, the server says


def run(arguments: Namespace) -> int:
    """Talk until Ctrl-D, or say one thing."""
    return asyncio.run(_chat(arguments))


async def _chat(arguments: Namespace) -> int:
    session_id = f"chat-{secrets.token_hex(4)}" if arguments.session is None else arguments.session
    ANY_LENGTH.check_id(session_id, "--session")
    once, terminal = " ".join(arguments.message), sys.stdin.isatty()
    async with _server(arguments) as server:
        print(f"session: {printable(session_id)}, model: {printable(arguments.model)}", file=sys.stderr)
        if once:
            return 0 if await _say(server, arguments.model, session_id, once) else 1
        if terminal:
            print("Ctrl-D ends; --session continues another time.", file=sys.stderr)
        worked = True
        while (line := await asyncio.to_thread(_read_line, "> " if terminal else "")) is not None:
            if line.strip():
                worked = await _say(server, arguments.model, session_id, line)
        return 0 if worked else 1


def _server(arguments: Namespace) -> AbstractAsyncContextManager[ChatServer]:
    if arguments.url:
        return remote_server(arguments.url, client_key())
    return local_server(server_settings(arguments), arguments.tenant)


def _read_line(prompt: str) -> str | None:
    try:
        line = input(prompt)
        line.encode()  # bytes that are no text arrive as lone surrogates in some locales, and raise in others
    except EOFError:
        return None
    except UnicodeError as error:
        raise InvalidInput("the input is not text in the terminal's encoding") from error
    return line


async def _say(server: ChatServer, model: str, session_id: str, text: str) -> bool:
    """Print the answer as it comes; return whether it was completed, which means stored."""
    body = {"model": model, "stream": True, "session_id": session_id, "messages": [{"role": "user", "content": text}]}
    completed = False
    try:
        async with aclosing(server.chat(json.dumps(body).encode())) as lines:
            async for piece in _pieces(lines):
                completed = piece is None
                print("\n" if piece is None else printable(piece), end="", flush=True)
    except SessionError as error:
        print(f"webai-api: {error}", file=sys.stderr)
        return False
    if not completed:
        print("\nwebai-api: the answer was cut off and not stored; say it again", file=sys.stderr)
    return completed


async def _pieces(lines: AsyncIterator[bytes]) -> AsyncIterator[str | None]:
    """Yield the text of an event stream as it comes, and None when it is complete."""
    async for line in lines:
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            yield None
            return
        yield _text(payload)


def _text(payload: bytes) -> str:
    try:
        event = json.loads(payload)
        if "error" not in event:
            deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
            return "".join(str(delta.get("content") or delta.get("refusal") or "") for delta in deltas)
        message = str(event["error"]["message"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SessionError("the server sent an event that is no chat chunk") from error
    raise SessionError(printable(message))
