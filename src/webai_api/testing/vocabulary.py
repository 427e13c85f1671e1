"""The few words that the tests of the suite are written in."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from webai_api.protocol import SessionStore
from webai_api.types import History, Item, Removal, Session

__all__ = ["contents", "eventually", "ids", "listed", "numbered", "present", "said", "seqs"]

PATIENCE = 10.0  # seconds until a condition that should come true counts as failed; a loaded machine is slow


def said(content: object, item_id: str | None = None) -> Item:
    """Return an item with this content, and with this id if it matters."""
    payload = {"role": "user", "content": content}
    return Item(data=payload) if item_id is None else Item(id=item_id, data=payload)


def numbered(count: int, prefix: str = "i") -> list[Item]:
    """Return *count* items with the ids i0, i1, ..."""
    return [said(f"{prefix}{n}", f"{prefix}{n}") for n in range(count)]


def ids(history: History) -> list[str]:
    """Return the ids of the items, in order."""
    return [item.id for item in history.items]


def seqs(history: History) -> list[int]:
    """Return the seqs of the items, in order."""
    return [item.seq for item in history.items]


async def contents(store: SessionStore, session_id: str) -> list[str]:
    """Return the ids the session holds now, and check what must always hold: nothing damaged, seqs and counts right."""
    history = await store.read(session_id)
    found = seqs(history)
    assert history.corrupt == ()
    assert found == sorted(set(found))
    if history.session is None:
        assert found == []
    else:
        assert history.session.count == len(found)
        assert history.session.first_seq == (found[0] if found else history.session.last_seq + 1)
        assert history.session.last_seq >= max(found, default=0)
    return ids(history)


def present(answer: History | Removal) -> Session:
    """Return the session of an answer that must have one."""
    assert answer.session is not None
    return answer.session


async def listed(sessions: AsyncIterator[Session]) -> list[str]:
    """Return the ids of a listing, in its order."""
    return [session.id async for session in sessions]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return as soon as *condition* holds; fail if it does not within `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s"
        await asyncio.sleep(0.005)
