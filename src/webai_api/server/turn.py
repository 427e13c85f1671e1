"""A turn of a session: taken, read, answered by somebody else, committed as a whole."""

import asyncio
import random
from collections.abc import Sequence
from typing import Self

from webai_api.codec import encode_item
from webai_api.errors import InvalidInput, NotDurable, OutcomeUnknown, StoreError, StoreUnavailable
from webai_api.messages import chat_messages, last_turns, stored_message
from webai_api.protocol import SessionStore
from webai_api.server.errors import ApiError
from webai_api.server.lease import Passage
from webai_api.server.services import Services
from webai_api.server.session import INSTRUCTIONS, divide, upstream_message
from webai_api.types import History, Item, Message, new_id

__all__ = ["Turn", "commit"]

COMMIT_SECONDS = 8.0  # an answer was paid for: a store that is away for a moment gets more than one chance
RETRY_SECONDS = 0.05, 0.25


class Turn:
    """One turn, from the lease to the commit.

    Attributes:
        version: the session's at the start; 0 if there is none yet.
        messages: what goes upstream: instructions, history, and what is new.
    """

    def __init__(self, services: Services, store: SessionStore, session_id: str, passage: Passage) -> None:
        self.session_id = session_id
        self.version = 0
        self.messages: list[Message] = []
        self._services = services
        self._store = store
        self._passage = passage
        self._new: list[Message] = []

    @classmethod
    async def begin(cls, services: Services, tenant: str | None, session_id: str) -> Self:
        """Take the session, until `leave`.

        Raises:
            ApiError: 409, another turn is under way.
            StoreError: nothing was stored, nobody was asked.
        """
        views = services.views(tenant)
        passage = await services.turnstile.enter(views.leases, tenant, session_id)
        return cls(services, views.sessions, session_id, passage)

    def leave(self) -> None:
        """Give the session free for the next turn."""
        self._passage.leave()

    def items(self, answer: Message) -> list[Item]:
        """Return the turn as it will be stored, the answer included.

        Raises:
            ApiError: 502, the answer is larger than a session may hold.
        """
        limits = self._services.limits
        try:
            stored = stored_message(answer, limits)
            encode_item(stored, limits)
        except InvalidInput as error:
            raise ApiError(
                502, f"The upstream's answer cannot be stored: {error}; nothing was stored.", code="upstream_error"
            ) from error
        turn_id = new_id()
        return [Item(id=f"{turn_id}:{i}", data=data) for i, data in enumerate([*self._new, stored])]

    async def commit(self, items: Sequence[Item]) -> int:
        """Store the turn, then give the lease back; return the session's version after it."""
        ttl = self._services.settings.store.ttl
        try:
            # Not before the turn is stored: another instance would begin on the old history, and its answer, which
            # somebody pays for, could only be refused.
            return await commit(self._store, self.session_id, items, expected=self.version, ttl=ttl)
        finally:
            # And before the client has its answer: it never meets the lease of the turn it had, even if we are killed
            # the moment after.
            await self._passage.give_back()

    async def read(self, messages: Sequence[Message]) -> None:
        """Read what the turn needs of the session, and find what is new in *messages*.

        Raises:
            ApiError: 400, *messages* do not fit the session.
            StoreError: nothing was stored, nobody was asked.
        """
        limit = self._services.settings.history_limit
        # A single question cannot be a whole history sent again (but of a session that short): the tail is enough.
        brief = not any(m["role"] == "assistant" for m in messages) and sum(m["role"] == "user" for m in messages) <= 1
        if limit is not None and brief:
            history = await self._store.read(self.session_id, last=limit + 1)
            if self._fill(history, messages, limit, whole=_is_whole(history)):
                return
        self._fill(await self._store.read(self.session_id), messages, limit, whole=True)

    def _fill(self, history: History, messages: Sequence[Message], limit: int | None, *, whole: bool) -> bool:
        """Take in what was read; False if a turn that must go upstream whole begins before it."""
        stored = chat_messages(history)
        instructions, self._new = divide(messages, stored, self._services.limits, whole=whole)
        self.version = history.session.version if history.session else 0
        spoken = [m for m in stored if m.get("role") not in INSTRUCTIONS] + [upstream_message(m) for m in self._new]
        recent = last_turns(spoken, limit)
        # The session's own instructions (a library's user may have stored some) stand in where a request has none.
        first = [upstream_message(m) for m in instructions] or [m for m in stored if m.get("role") in INSTRUCTIONS]
        self.messages = [*first, *recent]
        return whole or recent[0].get("role") == "user"


def _is_whole(history: History) -> bool:
    return history.session is None or len(history.items) + len(history.corrupt) >= history.session.count


async def commit(store: SessionStore, session_id: str, items: Sequence[Item], *, expected: int, ttl: float) -> int:
    """Append *items* in one step, repeating it while the store is away for a moment; return the version after it.

    Raises:
        Conflict: the session is not at *expected*, and the items are not there.
        StoreError: the store failed for longer, or for good.
    """
    time = asyncio.get_running_loop().time
    until = time() + COMMIT_SECONDS
    unknown: StoreError | None = None
    while True:
        try:
            history = await store.append(session_id, items, expected=expected, ttl=ttl)
        except (StoreUnavailable, OutcomeUnknown, NotDurable) as error:
            if not isinstance(error, StoreUnavailable):
                unknown = error  # stays so, whatever becomes of the next tries
            if time() > until:
                raise unknown or error from error
            await asyncio.sleep(random.uniform(*RETRY_SECONDS))  # noqa: S311  # a jitter, not a secret
        else:
            return history.session.version if history.session else 0
