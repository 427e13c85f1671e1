"""Calls on their way from event loops to a thread and back.

A call is *queued*, then *begun*. While it is queued its caller can take it back (cancelled, or at the deadline) and
nothing has happened.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from webai_api.errors import StoreError, StoreUnavailable
from webai_api.stores.sqlite.verbs import Transaction

__all__ = ["Answer", "Call", "CallQueue", "Work", "settle"]

# Bytes of new items that all callers together may have waiting; what comes beyond is refused at once. Each of them
# waits for as long as its deadline allows, so this is only reached when the disk falls seconds behind.
QUEUE_BYTES = 256 << 20

T = TypeVar("T")
Work = Callable[[Transaction], T]


class Call(Generic[T]):
    """One verb of one caller, and where its answer goes. Made in the caller's task."""

    __slots__ = ("deadline", "future", "loop", "queued", "size", "work")

    def __init__(self, work: Work[T], size: int, seconds: float) -> None:
        self.work = work
        self.size = size  # bytes
        self.deadline = time.monotonic() + seconds
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self.queued = False


Answer = tuple[Call[Any], Any, BaseException | None]


def settle(answers: list[Answer]) -> None:
    """Give each caller its answer in its own loop; callers that are gone are passed over."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer[0].loop, []).append(answer)
    for loop, part in by_loop.items():
        with suppress(RuntimeError):  # a closed loop: nobody waits any more
            loop.call_soon_threadsafe(_settle, part)


def _settle(answers: list[Answer]) -> None:
    for call, result, error in answers:
        if call.future.done():
            continue
        if error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)


class CallQueue:
    """First in, first out, between any number of loops and one thread."""

    def __init__(self) -> None:
        self._calls: deque[Call[Any]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, call: Call[Any]) -> None:
        with self._changed:
            if self._closed:
                raise StoreError("this store is closed")
            if self._calls and self._bytes + call.size > QUEUE_BYTES:
                raise StoreUnavailable("sqlite: too much is waiting to be written; send less at once, or try later")
            call.queued = True
            self._calls.append(call)
            self._bytes += call.size
            self._changed.notify()

    def take_back(self, call: Call[Any]) -> bool:
        """Return whether the call had not begun; then it never will."""
        with self._changed:
            if not call.queued:
                return False
            call.queued = False
            self._bytes -= call.size
            self._calls.remove(call)  # near the front: the oldest have the earliest deadlines
            return True

    def take(self, most_calls: int, most_bytes: int) -> list[Call[Any]]:
        """Begin the oldest calls: as many as fit, at least one if there is any."""
        group: list[Call[Any]] = []
        size = 0
        with self._changed:
            while self._calls and len(group) < most_calls:
                call = self._calls[0]
                if group and size + call.size > most_bytes:
                    break
                self._calls.popleft()
                call.queued = False
                self._bytes -= call.size
                size += call.size
                group.append(call)
        return group

    def drop_late(self) -> None:
        """Refuse what is past its deadline. Its loop does so too, unless it is blocked or gone."""
        now = time.monotonic()
        with self._changed:
            late = [call for call in self._calls if call.deadline < now]
        error = "sqlite: the call waited beyond its deadline"
        settle([(call, None, StoreUnavailable(error)) for call in late if self.take_back(call)])

    def wait(self, seconds: float) -> bool:
        """Wait for a call, for *seconds* at most. Return False once the queue is closed and empty."""
        with self._changed:
            if not self._calls and not self._closed:
                self._changed.wait(max(0.0, seconds))
            return bool(self._calls) or not self._closed

    def close(self) -> None:
        """Refuse new calls; those that are there are still served."""
        with self._changed:
            self._closed = True
            self._changed.notify()
