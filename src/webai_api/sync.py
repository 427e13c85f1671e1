"""`SyncSessionManager`: the same verbs without ``await``.

Its store lives on an event loop of its own, in a thread of its own, so it works in plain scripts, in threads, and
inside a running loop (which it blocks for the time of the call).
"""

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from webai_api.errors import StoreError
from webai_api.limits import DEFAULT_LIMITS, Limits
from webai_api.manager import SessionManager
from webai_api.settings import DEFAULT_TTL
from webai_api.types import Content, History, Message, Session

__all__ = ["SyncSessionManager"]

END_SECONDS = 1.0  # for connections to be closed when the manager is forgotten or the program ends

T = TypeVar("T")


class SyncSessionManager:
    """`SessionManager` for code that is not asynchronous; safe to share between threads. Errors are the same."""

    def __init__(self, manager: SessionManager) -> None:
        """Use *manager*, which must not be used directly any more; `close` closes it."""
        self._manager = manager
        self._process = os.getpid()
        self._lock = threading.Lock()  # of the next two: no call may be handed to a loop that has been told to stop
        self._closed = False
        self._calls: set[concurrent.futures.Future[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name="webai-api sync", daemon=True)
        self._thread.start()
        self._stop = weakref.finalize(self, _end, self._loop, self._thread)

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
        """Return a manager of the store at *url*: see `SessionManager.from_url`."""
        return cls(SessionManager.from_url(url, ttl=ttl, keep=keep, tenant=tenant, deadline=deadline, limits=limits))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the manager that the environment describes: see `SessionManager.from_env`."""
        return cls(SessionManager.from_env(environ))

    def store_message(
        self,
        session_id: str,
        role: str,
        content: Content,
        metadata: dict[str, Any] | None = None,
        *,
        message_id: str | None = None,
    ) -> Session:
        """See `SessionManager.store_message`."""
        return self._wait(self._manager.store_message(session_id, role, content, metadata, message_id=message_id))

    def store_turn(
        self,
        session_id: str,
        messages: Sequence[Message],
        *,
        turn_id: str | None = None,
        expected: int | None = None,
    ) -> Session:
        """See `SessionManager.store_turn`."""
        return self._wait(self._manager.store_turn(session_id, messages, turn_id=turn_id, expected=expected))

    def get_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """See `SessionManager.get_history`."""
        return self._wait(self._manager.get_history(session_id, limit))

    def read(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        last: int | None = None,
        epoch: int | None = None,
    ) -> History:
        """See `SessionManager.read`."""
        return self._wait(self._manager.read(session_id, after=after, before=before, last=last, epoch=epoch))

    def pop_message(self, session_id: str) -> Message | None:
        """See `SessionManager.pop_message`."""
        return self._wait(self._manager.pop_message(session_id))

    def clear_session(self, session_id: str) -> bool:
        """See `SessionManager.clear_session`."""
        return self._wait(self._manager.clear_session(session_id))

    def sessions(self, *, prefix: str = "", after: str | None = None) -> Iterator[Session]:
        """See `SessionManager.sessions`."""
        found = self._manager.sessions(prefix=prefix, after=after)

        async def following() -> Session | None:
            return await anext(found, None)

        while (session := self._wait(following())) is not None:
            yield session

    def close(self) -> None:
        """Let running calls end, close the manager, end its thread. Harmless twice; a later call raises StoreError."""
        if self._process != os.getpid():  # a fork has neither the thread nor what it opened
            return
        with self._lock:
            first, self._closed = not self._closed, True
            running = list(self._calls)
        if first:
            concurrent.futures.wait(running)
            try:
                asyncio.run_coroutine_threadsafe(self._manager.aclose(), self._loop).result()
            finally:
                self._stop()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        future = self._begun(call)
        try:
            return future.result()
        finally:
            future.cancel()  # has an effect only when Ctrl-C ended the waiting
            with self._lock:
                self._calls.discard(future)

    def _begun(self, call: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        if self._process != os.getpid():
            call.close()
            raise StoreError("this manager was made before a fork, which ends its thread: make one in each process")
        with self._lock:
            if self._closed:
                call.close()
                raise StoreError("this manager is closed")
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
            self._calls.add(future)
            return future


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):  # what a store still does in the background
            task.cancel()
        while left := asyncio.all_tasks(loop):
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():  # where the last reference went is anyone's guess
        thread.join(END_SECONDS)
