"""`RedisStore`: each verb is one script (`*.lua`), sent by the dispatcher, its answer read by `replies`."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Self

from redis.asyncio import Redis

from webai_api import codec
from webai_api.errors import Conflict, CorruptData, DuplicateId, IdReused, SessionNotFound, StoreError
from webai_api.limits import DEFAULT_LIMITS, Limits, check_window, check_write
from webai_api.options import OptionsView
from webai_api.stores.redis.connect import Connections
from webai_api.stores.redis.dispatch import Call, Dispatcher
from webai_api.stores.redis.index import Index
from webai_api.stores.redis.keys import session_keys
from webai_api.stores.redis.replies import DERIVED_ID, history_of, session_of
from webai_api.types import History, Item, Removal, Session, StoreOptions

__all__ = ["RedisStore"]

FINGERPRINT_BITS = 21  # beside the seq in a sorted set's score, which is exact up to 53 bits
VERIFIED_AT_ONCE = 50  # sessions of a listing that are looked at in one round trip


class RedisStore(OptionsView):
    """Sessions in Redis >= 6.2 or Valkey, wire-compatible with the guide's list at ``session:ID``.

    Acknowledged means: the server has executed it. What a crash of the server then loses, its persistence decides.
    """

    def __init__(self, connections: Connections, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._dispatcher = Dispatcher(connections)
        self._index = Index(self._dispatcher)
        self._options = StoreOptions()

    @classmethod
    def from_url(cls, url: str, *, limits: Limits = DEFAULT_LIMITS) -> Self:
        """Return the store at ``redis://`` or ``rediss://`` *url*. Nothing is connected before the first call."""
        return cls(Connections(url), limits=limits)

    def __repr__(self) -> str:
        connections = self._dispatcher.connections
        return f"RedisStore({connections.host}:{connections.port})"

    @property
    def client(self) -> Redis:
        """A redis-py asyncio client of the same server, for the caller's own commands; `aclose` closes it, too."""
        return self._dispatcher.connections.client()

    async def append(
        self,
        session_id: str,
        items: Sequence[Item],
        *,
        expected: int | None = None,
        after: int | None = None,
        epoch: int | None = None,
        ttl: float | None = None,
        keep: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> History:
        """See `SessionStore.append`."""
        keys = self._keys(session_id)
        check_write(expected, after, epoch, ttl, keep)
        self.limits.check_items(items)
        args: list[Any] = [
            _given(expected),
            _given(after),
            _given(epoch),
            "" if ttl is None else "inf" if math.isinf(ttl) else max(1, round(ttl * 1000)),
            _given(keep),
            "" if metadata is None else codec.encode_metadata(metadata, self.limits),
            _token(None),
            "",  # 1 when it is sent again
            len(items),
        ]
        for item in items:
            packed = codec.pack(item.id, item.data, self.limits)  # checks what the fingerprint then relies on
            args += _digest(item.id), codec.fingerprint(item.data) >> (64 - FINGERPRINT_BITS), *packed
        end = asyncio.get_running_loop().time() + self._options.deadline
        note = self._index.note(self._options, session_id, ttl)
        calls = [Call("append", keys, args, again=7)]
        *sample, reply = await self._run([note, *calls] if note else calls)
        if sample:
            self._index.noted(self._options, session_id, ttl, sample[0])
        # Noted for an expiry that only the answer tells; or deleted, or expired, since it was noted.
        if reply[0] in (b"ok", b"created", b"repeat") and (ttl is None if note else reply[0] == b"created"):
            await self._note(session_id, reply, end)
        return self._appended(session_id, items, expected, reply)

    async def read(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        last: int | None = None,
        epoch: int | None = None,
    ) -> History:
        """See `SessionStore.read`."""
        keys = self._keys(session_id)
        check_window(after, before, last, epoch)
        end = asyncio.get_running_loop().time() + self._options.deadline
        asked = last
        while True:
            args = [after, _given(before), _given(asked), _given(epoch)]
            (reply,) = await self._run([Call("read", keys, args)], write=False)
            if reply[0] == b"adopted":
                await self._note(session_id, reply, end)
            history = history_of(session_id, reply)
            entries = len(history.items) + len(history.corrupt)
            # *last* counts good entries: where some are damaged, look further back, again at one instant.
            if asked is None or last is None or len(history.items) >= last or entries < asked:
                return _newest(history, last)
            asked += last - len(history.items)

    async def remove(
        self, session_id: str, item_ids: Sequence[str], *, expected: int | None = None, op_id: str | None = None
    ) -> Removal:
        """See `SessionStore.remove`."""
        keys = self._keys(session_id)
        check_write(expected)
        wanted = list(dict.fromkeys(self.limits.check_ids(item_ids, op_id)))
        args: list[Any] = [_given(expected), _token(op_id, "remove", *sorted(wanted)), len(wanted)]
        for item_id in wanted:
            derived = DERIVED_ID.fullmatch(item_id)
            args += codec.pack_head(item_id), derived[1] if derived else ""
        (reply,) = await self._run([Call("remove", keys, args)])
        self._refuse_conflict(session_id, expected, reply)
        session = session_of(session_id, reply)
        positions = reply[11] if session is not None else ()
        return Removal(tuple(wanted[int(position) - 1] for position in positions), session)

    async def delete(self, session_id: str, *, expected: int | None = None, op_id: str | None = None) -> bool:
        """See `SessionStore.delete`."""
        keys = self._keys(session_id)
        check_write(expected)
        self.limits.check_ids((), op_id)
        (reply,) = await self._run([Call("delete", keys, [_given(expected), _token(op_id, "delete")])])
        self._refuse_conflict(session_id, expected, reply)
        if reply[0] != b"deleted":
            session_of(session_id, reply)  # raises
        return bool(reply[1])

    async def sessions(self, *, prefix: str = "", after: str | None = None) -> AsyncIterator[Session]:
        """See `SessionStore.sessions`."""
        wanted = self.limits.check_prefix(prefix).encode()
        batch: list[tuple[float, bytes]] = []
        start = None
        if after is not None:
            start = await self._index.find(self._options, self.limits.check_id(after, "after"))
            session = (await self.read(after, last=0)).session
            if session is None:
                raise SessionNotFound(after)
            start = start or (session.updated_at * 1000, after.encode())  # where it would be if the index were whole
        async for entry in self._index.entries(self._options, start):
            if entry[1].startswith(wanted):
                batch.append(entry)
            if len(batch) == VERIFIED_AT_ONCE:
                for session in await self._verified(batch):
                    yield session
                batch = []
        for session in await self._verified(batch):
            yield session

    async def aclose(self) -> None:
        """See `SessionStore.aclose`."""
        await self._dispatcher.connections.aclose()

    def _keys(self, session_id: str) -> tuple[str, str, str]:
        return session_keys(self._options, self.limits.check_id(session_id))

    async def _run(self, calls: Sequence[Call], *, write: bool = True) -> list[Any]:
        return await self._dispatcher.run(calls, deadline=self._options.deadline, write=write)

    def _appended(self, session_id: str, items: Sequence[Item], expected: int | None, reply: Sequence[Any]) -> History:
        if reply[0] in (b"reused", b"partly"):
            error = IdReused if reply[0] == b"reused" else DuplicateId
            raise error(session_id, [items[position - 1].id for position in reply[1]])
        self._refuse_conflict(session_id, expected, reply)
        own = frozenset(item.id for item in items) if reply[0] == b"repeat" else frozenset()
        return history_of(session_id, reply, own)

    def _refuse_conflict(self, session_id: str, expected: int | None, reply: Sequence[Any]) -> None:
        if reply[0] == b"conflict" and expected is not None:
            missed = history_of(session_id, reply)
            actual = missed.session.version if missed.session else 0
            raise Conflict(session_id, expected=expected, actual=actual, missed=missed)

    async def _verified(self, entries: Sequence[tuple[float, bytes]]) -> list[Session]:
        if not entries:
            return []
        names = [name.decode() for _, name in entries]
        calls = [Call("read", self._keys(name), ["0", "", "0", ""]) for name in names]
        try:
            replies = await self._run(calls, write=False)
            found = [session_of(name, reply) for name, reply in zip(names, replies, strict=True) if reply[0] != b"lost"]
        except CorruptData:  # one damaged session must not hide the others: leave it out
            if len(entries) == 1:
                return []
            return [session for entry in entries for session in await self._verified([entry])]
        await self._index.drop(
            self._options, [e for e, reply in zip(entries, replies, strict=True) if reply[0] == b"none"]
        )
        return [session for session in found if session is not None]

    async def _note(self, session_id: str, reply: Sequence[Any], end: float) -> None:
        """Note a session in the index by what a script answered about it; not later than *end*."""
        updated_ms, expires_ms = reply[6:8]
        ttl = (expires_ms - updated_ms) / 1000 if expires_ms else math.inf
        left = end - asyncio.get_running_loop().time()
        try:
            (sample,) = await self._dispatcher.run(
                [self._index.note_now(self._options, session_id, ttl)], deadline=left, write=False
            )
        except StoreError:  # the call itself is done; the next append notes again
            sample = None
        self._index.noted(self._options, session_id, ttl, sample)


def _given(value: int | None) -> int | str:
    return "" if value is None else value


def _digest(item_id: str) -> bytes:
    return blake2b(item_id.encode(), digest_size=8).digest()


def _token(op_id: str | None, *what: str) -> str:
    """Return the name of one operation: the caller's, for this verb and these items, or one for our re-sends only."""
    if op_id is None:
        return secrets.token_urlsafe(9)
    return "." + blake2b("\n".join((op_id, *what)).encode(), digest_size=12).hexdigest()


def _newest(history: History, last: int | None) -> History:
    if last is None or len(history.items) <= last:
        return history
    return History(history.session, history.items[len(history.items) - last :], history.corrupt)
