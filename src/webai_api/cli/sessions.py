"""``webai-api sessions list | show | clear``."""

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeGuard

from webai_api.cli.store_choice import chosen_store, missing_file
from webai_api.cli.terminal import json_escaped, printable, table
from webai_api.errors import SessionNotFound, StoreError
from webai_api.manager import SessionManager
from webai_api.settings import EMBEDDED_STORE, StoreSettings
from webai_api.types import Session

__all__ = ["clear_sessions", "list_sessions", "show_session"]


def list_sessions(arguments: Namespace) -> int:
    """Print one row a session, newest activity first."""
    return asyncio.run(_list(arguments))


def show_session(arguments: Namespace) -> int:
    """Print the messages of a session."""
    return asyncio.run(_show(arguments))


def clear_sessions(arguments: Namespace) -> int:
    """Delete sessions; exit 1 if one of them did not exist."""
    return asyncio.run(_clear(arguments))


@asynccontextmanager
async def _manager(arguments: Namespace) -> AsyncIterator[SessionManager | None]:
    settings = StoreSettings.from_env()
    url = chosen_store(arguments, settings)
    named = getattr(arguments, "session", [])
    for session_id in [named] if isinstance(named, str) else named:
        settings.limits.check_id(session_id)
    if arguments.tenant is not None:
        settings.limits.check_id(arguments.tenant, "tenant")
    if (file := missing_file(url)) is not None:
        if url != EMBEDDED_STORE:
            raise StoreError(f"there is no file {file!r}; give another --store")
        print("there are no sessions yet: `make run` or `webai-api chat` makes the file", file=sys.stderr)
        yield None
        return
    async with SessionManager.from_url(url, tenant=arguments.tenant, limits=settings.limits) as manager:
        yield manager


async def _list(arguments: Namespace) -> int:
    found: list[Session] = []
    async with _manager(arguments) as manager:
        if manager is not None:
            async for session in manager.sessions(prefix=arguments.prefix):
                found.append(session)
                if len(found) == arguments.limit:
                    break
    if arguments.json:
        _print_json([_as_json(session) for session in found])
    elif found:
        rows = [
            (
                printable(s.id),
                str(s.count),
                _ago(s.updated_at),
                "never" if s.expires_at is None else _ahead(s.expires_at),
            )
            for s in found
        ]
        print(table(("SESSION", "MESSAGES", "ACTIVE", "EXPIRES"), rows))
    elif sys.stdout.isatty():
        print("no sessions", file=sys.stderr)
    return 0


async def _show(arguments: Namespace) -> int:
    async with _manager(arguments) as manager:
        if manager is None:
            raise SessionNotFound(arguments.session)
        history = await manager.read(arguments.session, last=arguments.last)
    if history.session is None:
        raise SessionNotFound(arguments.session)
    if arguments.json:
        messages = [
            {**item.data, "id": item.id, "seq": item.seq, "created_at": item.created_at} for item in history.items
        ]
        _print_json({**_as_json(history.session), "items": messages, "corrupt": list(history.corrupt)})
        return 0
    for item in history.items:
        print(f"[{item.seq}] {printable(str(item.data.get('role')))}: {_text(item.data)}")
    if history.corrupt:
        print(f"{len(history.corrupt)} entries cannot be decoded: {_numbers(history.corrupt)}", file=sys.stderr)
    return 0


async def _clear(arguments: Namespace) -> int:
    cleared = {}
    async with _manager(arguments) as manager:
        for session_id in arguments.session:
            cleared[session_id] = manager is not None and await manager.clear_session(session_id)
    if arguments.json:
        _print_json(cleared)
    else:
        for session_id, existed in cleared.items():
            print(f"{printable(session_id)}: {'cleared' if existed else 'does not exist'}")
    return 0 if all(cleared.values()) else 1


def _as_json(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "version": session.version,
        "count": session.count,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
        "expires_at": session.expires_at,
        "metadata": dict(session.metadata),
    }


def _print_json(value: object) -> None:
    print(json_escaped(json.dumps(value, ensure_ascii=False, indent=2)))


def _text(message: Mapping[str, Any]) -> str:
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text") or f"({part.get('type')})") for part in content if _is_object(part))
    shown = [] if content is None else [printable(str(content))]
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if _is_object(call) else None
        if _is_object(function):
            shown.append(printable(f"calls {function.get('name')}({function.get('arguments')})"))
    return "\n".join(shown)


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)  # other programs may have written anything


def _numbers(seqs: Sequence[int]) -> str:
    return ", ".join(str(seq) for seq in seqs[:10]) + (" ..." if len(seqs) > 10 else "")


def _ago(instant: float) -> str:
    return f"{_duration(time.time() - instant)} ago"


def _ahead(instant: float) -> str:
    return f"in {_duration(instant - time.time())}"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"
