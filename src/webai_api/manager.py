"""`SessionManager`: conversation history for people who write agents.

Everything here is built from the store's five verbs; roles and contents are checked here and nowhere below.
"""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from webai_api.errors import InvalidInput, InvalidType
from webai_api.limits import DEFAULT_LIMITS, Limits, check_ttl, check_write
from webai_api.messages import history_message, stored_message
from webai_api.protocol import SessionStore
from webai_api.settings import DEFAULT_TTL, StoreSettings
from webai_api.types import Content, History, Item, Message, Session, new_id
from webai_api.urls import open_store

__all__ = ["SessionManager", "environment_store"]

_shared_memory: SessionStore | None = None


def environment_store(settings: StoreSettings, url: str | None) -> tuple[SessionStore, bool]:
    """Return the store at *url* and whether it is the caller's to close; without a URL the process's own memory.

    All managers that the environment sends to memory share one store, so that one reads what another wrote.
    """
    global _shared_memory  # noqa: PLW0603  # one per process is the point
    if url is not None:
        return open_store(url, limits=settings.limits), True
    if _shared_memory is None:
        _shared_memory = open_store("memory://", limits=settings.limits)
    return _shared_memory, False


class SessionManager:
    """Stores and reads chat messages. Failures raise (see `webai_api.errors`); nothing is lost or doubled silently.

    One manager may be used by any number of tasks and, one after the other or at once, by several event loops; it can
    be made outside any loop.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        ttl: float | None = DEFAULT_TTL,
        keep: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Use *store*, which stays the caller's to close.

        Args:
            ttl: seconds a session lives after its last message; None or `math.inf` for ever.
            keep: only the newest *keep* messages of a session are kept; None for all.
            limits: how large ids, contents and metadata may be.

        Raises:
            InvalidInput: *ttl* or *keep* cannot be used.
        """
        check_write(keep=keep)
        self.store = store
        self.ttl = math.inf if ttl is None else check_ttl(ttl)
        self.keep = keep
        self.limits = limits
        self._owns_store = False

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        ttl: float | None = DEFAULT_TTL,
        keep: int | None = None,
        tenant: str | None = None,
        deadline: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> Self:
        """Return a manager of the store at *url*; `aclose` closes it. Nothing is connected before the first call.

        Args:
            url: ``memory://``, ``sqlite:///file.db`` or ``redis://host:6379/0``; see `webai_api.urls`.
            tenant: keeps its sessions in a key space of their own.
            deadline: seconds after which a call gives up; 5 unless given.

        Raises:
            InvalidInput: the URL or an option cannot be used.
        """
        store = open_store(url, limits=limits).with_options(tenant=tenant, deadline=deadline)
        manager = cls(store, ttl=ttl, keep=keep, limits=limits)
        manager._owns_store = True
        return manager

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the manager that SESSION_STORE or the REDIS_* variables describe; without them, in-memory sessions.

        Raises:
            InvalidInput: a variable cannot be understood; names it.
        """
        settings = StoreSettings.from_env(environ)
        store, owned = environment_store(settings, settings.store_url)
        manager = cls(store, ttl=settings.ttl, limits=settings.limits)
        manager._owns_store = owned
        return manager

    async def store_message(
        self,
        session_id: str,
        role: str,
        content: Content,
        metadata: dict[str, Any] | None = None,
        *,
        message_id: str | None = None,
    ) -> Session:
        """Store one message at the end of the session, and return the session after it.

        Args:
            content: text, or a list of content parts as in OpenAI's chat format.
            metadata: a JSON object, kept beside the message and never sent to a model.
            message_id: makes repeating the call safe: the same id is stored once.

        Raises:
            InvalidInput: the message can never be stored.
            IdReused: *message_id* is known with another message.
            StoreUnavailable, OutcomeUnknown: see `webai_api.errors`.
        """
        message = {"role": role, "content": content, "metadata": metadata}
        item = Item(data=stored_message(message, self.limits), id=new_id() if message_id is None else message_id)
        history = await self.store.append(session_id, [item], ttl=self.ttl, keep=self.keep)
        return _present(history)

    async def store_turn(
        self,
        session_id: str,
        messages: Sequence[Message],
        *,
        turn_id: str | None = None,
        expected: int | None = None,
    ) -> Session:
        """Store *messages* adjacent and in order, all or none, and return the session after them.

        A message is a dict with ``role`` and ``content``, optional ``metadata``, and every other key of the chat
        format (``tool_calls``, ``tool_call_id``, ``name``, ...); unknown keys are kept.

        Args:
            turn_id: makes repeating the call safe: the same turn is stored once.
            expected: the version (`Session.version`) that the caller's history belongs to; 0 for a session that must
                not exist yet.

        Raises:
            InvalidInput: a message can never be stored.
            Conflict: somebody wrote since *expected*; nothing was stored.
            IdReused, DuplicateId: *turn_id* is known with other messages, or with fewer. (The beginning of a stored
                turn counts as its repeat: nothing is missing.)
            StoreUnavailable, OutcomeUnknown: see `webai_api.errors`.
        """
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            raise InvalidType(f"messages must be a list of dicts, not {type(messages).__name__}")
        if not messages:
            raise InvalidInput("a turn must have at least one message")
        turn = new_id() if turn_id is None else self._checked_turn(turn_id, len(messages))
        stored = [stored_message(message, self.limits) for message in messages]
        items = [Item(data=message, id=f"{turn}:{i}") for i, message in enumerate(stored)]
        history = await self.store.append(session_id, items, expected=expected, ttl=self.ttl, keep=self.keep)
        return _present(history)

    async def get_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """Return the messages, oldest first; with *limit* only the newest *limit* of them, 0 for none.

        Each has ``role``, ``content`` and ``metadata`` (``{}`` if it has none), then its other keys. A session that
        does not exist gives ``[]``; a store that does not answer raises.
        """
        history = await self.store.read(session_id, last=self._checked_limit(limit))
        return [history_message(item.data) for item in history.items]

    async def read(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        last: int | None = None,
        epoch: int | None = None,
    ) -> History:
        """Return messages with their ids, numbers and times, and the session: see `SessionStore.read`."""
        return await self.store.read(session_id, after=after, before=before, last=last, epoch=epoch)

    async def pop_message(self, session_id: str) -> Message | None:
        """Remove the newest message and return it; None if there is none. Of several callers, one gets it."""
        while items := (await self.store.read(session_id, last=1)).items:
            if await self.store.remove(session_id, [items[0].id]):
                return history_message(items[0].data)
        return None

    async def clear_session(self, session_id: str) -> bool:
        """Forget the session and everything in it. Return whether there was one."""
        return await self.store.delete(session_id)

    def sessions(self, *, prefix: str = "", after: str | None = None) -> AsyncIterator[Session]:
        """Yield the sessions, newest activity first: see `SessionStore.sessions`."""
        return self.store.sessions(prefix=prefix, after=after)

    async def aclose(self) -> None:
        """Close the store if this manager opened it."""
        if self._owns_store:
            await self.store.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _checked_turn(self, turn_id: str, count: int) -> str:
        longest = self.limits.id_bytes - len(f":{count - 1}")  # the ids of its messages must fit
        return replace(self.limits, id_bytes=longest).check_id(turn_id, "turn_id")

    def _checked_limit(self, limit: int | None) -> int | None:
        if limit is None:
            return None
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise InvalidType(f"limit must be an int, not {type(limit).__name__}")
        if limit < 0:
            raise InvalidInput("limit must not be negative")
        return min(limit, self.limits.history)


def _present(history: History) -> Session:
    if history.session is None:  # a store that breaks its contract must not look like success
        raise AssertionError("append returned no session")
    return history.session
