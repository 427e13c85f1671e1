"""Leases: who may act on an id now, across all instances, from nothing but a store's `append` and `delete`.

A lease is one item in a namespace of its own, whose id is the holder's random token. Appending it with ``expected=0``
takes the lease; appending it again is a repeat, which renews it; `delete` with its version gives it back. It expires by
itself when its holder dies. A holder that sleeps past the expiry does no harm: what a lease protects is also checked
by version.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Coroutine, Mapping
from typing import Any

from webai_api.errors import Conflict, OutcomeUnknown, StoreError, StoreUnavailable
from webai_api.protocol import SessionStore
from webai_api.server.background import Background
from webai_api.server.errors import conversation_locked
from webai_api.types import Item

__all__ = ["LEASE_SECONDS", "Lease", "Passage", "Turnstile"]

LEASE_SECONDS = 6.0  # how long a crash can block an id; a renewal may fail twice before it is lost
RENEW_SECONDS = 2.0
RELEASE_AGAIN = 0.25  # between tries to give a lease back to a store that is away
WAIT_SECONDS = 2.0  # for a turn that is under way
POLL_SECONDS = 0.02, 0.1  # between tries, when another instance holds it

_logger = logging.getLogger("webai_api.server")


class Lease:
    """One holder's claim on one id."""

    def __init__(
        self, store: SessionStore, name: str, background: Background, data: Mapping[str, Any] | None = None
    ) -> None:
        self.version = 0
        self.unsure = False
        self._store = store
        self._name = name
        self._item = Item(id=secrets.token_hex(16), data=data if data is not None else {})
        self._background = background
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Take the lease and keep renewing it.

        Raises:
            Conflict: somebody holds it; carries the items that are there.
            StoreUnavailable: the store did not answer. If `unsure`, the lease may be taken: `release` it.
        """
        try:
            await self._append()
        except OutcomeUnknown as error:
            self.unsure = True
            raise StoreUnavailable("the store did not confirm a lease in time") from error
        self._renew_later()

    async def hold_still(self) -> None:
        """Renew no more. When this returns, no renewal is on its way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._renewal is not None:
            await asyncio.wait({self._renewal})

    async def release(self) -> None:
        """Give the lease back. If that fails, it expires."""
        await self.hold_still()
        until = asyncio.get_running_loop().time() + LEASE_SECONDS
        while True:
            try:
                if not self.version:  # the taking was cut off; taken now, it is certainly ours
                    await self._append()
                await self._store.delete(self._name, expected=self.version)
            except Conflict:
                return  # it had expired, and another has it
            except StoreError as error:
                if asyncio.get_running_loop().time() > until:
                    _logger.warning("a lease was not given back and will expire: %s", type(error).__name__)
                    return
                await asyncio.sleep(RELEASE_AGAIN)
            else:
                return

    async def _append(self) -> None:
        taken = await self._store.append(self._name, [self._item], expected=0, after=0, ttl=LEASE_SECONDS)
        self.version = taken.session.version if taken.session else 0

    def _renew_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(RENEW_SECONDS, self._begin_renewal)

    def _begin_renewal(self) -> None:
        self._renewal = self._background.spawn(self._renew())

    async def _renew(self) -> None:
        try:
            await self._append()
        except Conflict:
            _logger.warning("a lease expired before it was renewed, and another has it now")
            self._timer = None
            return
        except StoreError as error:
            _logger.warning("a lease was not renewed: %s", type(error).__name__)
        if self._timer is not None:  # nobody said to hold still meanwhile
            self._renew_later()


class _Queue:
    """Those of this process who want one session, in the order they came."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Turnstile:
    """Lets one turn at a time through to each session: in the order of arrival here, by lease among instances."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._queues: dict[tuple[str | None, str], _Queue] = {}

    async def enter(self, store: SessionStore, tenant: str | None, session_id: str) -> "Passage":
        """Wait for the session to be free, and take it.

        Raises:
            ApiError: 409 `conversation_locked`, it was not free in time.
        """
        until = asyncio.get_running_loop().time() + WAIT_SECONDS
        key = tenant, session_id
        queue = self._queues.setdefault(key, _Queue())
        queue.users += 1
        lease = Lease(store, session_id, self._background)
        passage = Passage(self, key, lease)
        try:
            try:
                async with asyncio.timeout_at(until):
                    await queue.lock.acquire()
            except TimeoutError as error:
                raise _locked() from error
            passage.first = True
            passage.held = await _taken(lease, until)
            if not passage.held:
                raise _locked()  # noqa: TRY301  # the clean-up below is for this one, too
        except BaseException as error:
            if isinstance(error, StoreUnavailable) and not lease.unsure:
                passage.held = False  # nothing happened, so there is nothing to give back
            passage.leave()
            raise
        return passage

    def left(self, key: tuple[str | None, str], *, first: bool) -> None:
        """Let the next one come."""
        queue = self._queues[key]
        if first:
            queue.lock.release()
        queue.users -= 1
        if not queue.users:
            del self._queues[key]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do *work* without being waited for."""
        self._background.spawn(work)


class Passage:
    """The right to a session, until `leave`."""

    def __init__(self, turnstile: Turnstile, key: tuple[str | None, str], lease: Lease) -> None:
        self.first = False
        self.held = True
        self._turnstile = turnstile
        self._key = key
        self._lease = lease

    async def give_back(self) -> None:
        """Give the lease back; the next one of this process still waits for `leave`."""
        await self._lease.release()
        self.held = False

    def leave(self) -> None:
        """Give the session free. Needs no waiting, so that it works in a task that is being cancelled."""
        if self.first and self.held:
            self._turnstile.spawn(self._give_back_and_leave())
        else:
            self._turnstile.left(self._key, first=self.first)

    async def _give_back_and_leave(self) -> None:
        try:
            await self._lease.release()
        finally:
            self._turnstile.left(self._key, first=True)


async def _taken(lease: Lease, until: float) -> bool:
    """Try until the time *until*; tell whether the lease is ours."""
    while True:
        try:
            await lease.take()
        except Conflict:
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(random.uniform(*POLL_SECONDS))  # noqa: S311  # a jitter, not a secret
        else:
            return True


def _locked() -> Exception:
    return conversation_locked(
        f"Another turn of this conversation is under way and did not end within {WAIT_SECONDS:.0f} seconds."
    )
