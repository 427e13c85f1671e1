"""The index of sessions: which ids there are, by last activity. For listing only; nothing else depends on it.

An id is noted before its session is created, and then at most once a minute. A few random ids are looked at each time,
so that dead ones go without ever being listed; what is listed is verified first.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence

from webai_api.errors import StoreError
from webai_api.stores.redis.dispatch import Call, Dispatcher
from webai_api.stores.redis.keys import BUCKETS, bucket_of, index_key, session_keys
from webai_api.types import StoreOptions

__all__ = ["Index"]

NOTE_INTERVAL = 60.0  # seconds between two notes of one session
REMEMBERED = 10_000  # sessions this process knows to be noted
PAGE = 100  # ids a bucket is asked for at once

_Entry = tuple[float, bytes]  # last activity in ms, id


class Index:
    """The index of all tenants and namespaces of one Redis."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._noted: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()  # when, for how long; by id
        self._chores: set[asyncio.Task[None]] = set()

    def note(self, options: StoreOptions, session_id: str, ttl: float | None) -> Call | None:
        """Return the call that notes the session's activity, if it is due."""
        key = index_key(options, bucket_of(session_id))
        noted, lifetime = self._noted.get((key, session_id), (-math.inf, 0.0))
        if time.monotonic() - noted < NOTE_INTERVAL and (ttl is None or ttl <= lifetime):
            return None
        return self.note_now(options, session_id, ttl)

    def note_now(self, options: StoreOptions, session_id: str, ttl: float | None) -> Call:
        """Return the call that notes the session's activity; *ttl* is None if its expiry is not known."""
        # The session may be renewed until just before the next note, and must be listed until it expires then.
        lifetime = "" if ttl is None else "inf" if math.isinf(ttl) else round((ttl + NOTE_INTERVAL) * 1000)
        return Call("index", [index_key(options, bucket_of(session_id))], [session_id, lifetime])

    def noted(self, options: StoreOptions, session_id: str, ttl: float | None, sample: Sequence[bytes] | None) -> None:
        """Take note of the answer to such a call, and look after the sample it brought."""
        key = index_key(options, bucket_of(session_id))
        if ttl is None or sample is None:  # not noted for long, or not at all
            self._noted.pop((key, session_id), None)
            return
        self._noted[key, session_id] = time.monotonic(), ttl
        self._noted.move_to_end((key, session_id))
        while len(self._noted) > REMEMBERED:
            self._noted.popitem(last=False)
        entries = [(float(sample[i + 1]), sample[i]) for i in range(0, len(sample), 2)]
        task = asyncio.get_running_loop().create_task(self._drop_dead(options, entries))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def entries(self, options: StoreOptions, start: _Entry | None) -> AsyncIterator[_Entry]:
        """Yield what the index holds below *start*, newest activity first."""
        buckets = [self._bucket(options, bucket, start) for bucket in BUCKETS]
        heads = [(entry, bucket) for bucket in buckets if (entry := await anext(bucket, None)) is not None]
        while heads:
            newest = max(range(len(heads)), key=lambda i: heads[i][0])
            entry, bucket = heads[newest]
            yield entry
            following = await anext(bucket, None)
            if following is None:
                del heads[newest]
            else:
                heads[newest] = following, bucket

    async def find(self, options: StoreOptions, session_id: str) -> _Entry | None:
        """Return the session's entry."""
        call = Call(None, (), ("ZSCORE", index_key(options, bucket_of(session_id)), session_id))
        (score,) = await self._dispatcher.run([call], deadline=options.deadline, write=False)
        return None if score is None else (float(score), session_id.encode())

    async def drop(self, options: StoreOptions, entries: Sequence[_Entry]) -> None:
        """Forget entries found dead, unless they were active since."""
        calls = [
            Call("unindex", [index_key(options, bucket_of(name.decode()))], [name, f"{score:.0f}"])
            for score, name in entries
        ]
        if calls:
            await self._dispatcher.run(calls, deadline=options.deadline, write=False)

    async def _bucket(self, options: StoreOptions, bucket: int, start: _Entry | None) -> AsyncIterator[_Entry]:
        key, top, seen = index_key(options, bucket), "+inf" if start is None else f"{start[0]:.0f}", 0
        while True:
            command = ("ZRANGE", key, top, "-inf", "BYSCORE", "REV", "LIMIT", seen, PAGE, "WITHSCORES")
            (flat,) = await self._dispatcher.run([Call(None, (), command)], deadline=options.deadline, write=False)
            page = [(float(flat[i + 1]), flat[i]) for i in range(0, len(flat), 2)]
            for entry in page:
                if start is None or entry < start:
                    yield entry
            if len(page) < PAGE:
                return
            last = f"{page[-1][0]:.0f}"
            here = sum(1 for score, _ in page if f"{score:.0f}" == last)
            seen, top = (seen + here if last == top else here), last

    async def _drop_dead(self, options: StoreOptions, entries: Sequence[_Entry]) -> None:
        try:
            calls = [Call(None, (), ("EXISTS", *session_keys(options, name.decode()))) for _, name in entries]
            if calls:
                found = await self._dispatcher.run(calls, deadline=options.deadline, write=False)
                await self.drop(options, [entry for entry, n in zip(entries, found, strict=True) if not n])
        except StoreError:  # a chore: the next note looks again, and a listing verifies
            return
