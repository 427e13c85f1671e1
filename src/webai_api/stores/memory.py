"""`MemoryStore`: the specification in code.

What a session does under each verb is in `_Log`, one dictionary of them is the store, and one lock makes each verb
atomic across tasks, threads and event loops. Items are kept encoded, so that a reader can never change them.
"""

import heapq
import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from webai_api import codec
from webai_api.errors import Conflict, DuplicateId, IdReused, SessionNotFound, StoreError
from webai_api.limits import DEFAULT_LIMITS, Limits, check_window, check_write
from webai_api.options import OptionsView
from webai_api.protocol import DEDUPE_WINDOW
from webai_api.types import History, Item, Removal, Session, StoreOptions

__all__ = ["MemoryStore"]

PURGE_INTERVAL = 1.0  # seconds between looks at what has expired
PURGE_BATCH = 1000  # sessions dropped per look, so that the lock is never held for long
OPERATIONS = 16  # named removals remembered per session
DELETIONS = 60.0  # seconds that a named deletion is remembered

_Address = tuple[str | None, str, str]  # tenant, namespace, id


class _Entry(NamedTuple):
    seq: int
    id: str
    created_at: float
    raw: bytes


@dataclass(slots=True)
class _Log:
    """One session."""

    id: str
    version: int
    epoch: int
    created_at: float
    updated_at: float
    expires_at: float = math.inf
    due: float = math.inf  # when the purger looks at it next; never after it expired
    last_seq: int = 0
    entries: list[_Entry] = field(default_factory=list)
    metadata: bytes = b"{}"
    known: OrderedDict[str, tuple[int, int]] = field(default_factory=OrderedDict)  # id -> seq, fingerprint
    operations: OrderedDict[tuple[str, frozenset[str]], tuple[str, ...]] = field(default_factory=OrderedDict)

    def session(self) -> Session:
        return Session(
            id=self.id,
            version=self.version,
            epoch=self.epoch,
            first_seq=self.entries[0].seq if self.entries else self.last_seq + 1,
            last_seq=self.last_seq,
            count=len(self.entries),
            created_at=self.created_at,
            updated_at=self.updated_at,
            expires_at=None if math.isinf(self.expires_at) else self.expires_at,
            metadata=codec.decode(self.metadata),
        )

    def history(self, after: int, before: int | None, last: int | None, epoch: int | None) -> History:
        if epoch is not None and (epoch != self.epoch or after > self.last_seq):
            after = 0
        chosen = [e for e in self.entries if after < e.seq and (before is None or e.seq < before)]
        if last is not None:
            chosen = chosen[len(chosen) - min(last, len(chosen)) :]
        items = tuple(Item(id=e.id, seq=e.seq, created_at=e.created_at, data=codec.decode(e.raw)) for e in chosen)
        return History(self.session(), items)

    def is_repeat(self, items: Sequence[Item], prints: Sequence[int]) -> bool:
        """Return whether the call is known as a whole; raise if only a part of it is, or with other content."""
        known = [self.known.get(item.id) for item in items]
        reused = [item.id for item, k, p in zip(items, known, prints, strict=True) if k is not None and k[1] != p]
        if reused:
            raise IdReused(self.id, reused)
        seqs = [k[0] - i for i, k in enumerate(known) if k is not None]
        if seqs and (len(seqs) < len(items) or len(set(seqs)) > 1):
            raise DuplicateId(self.id, [item.id for item, k in zip(items, known, strict=True) if k is not None])
        return bool(seqs)

    def take(self, wanted: set[str]) -> tuple[str, ...]:
        """Drop the newest entry of each id; return the ids dropped, oldest entry first."""
        kept: list[_Entry] = []
        gone: list[_Entry] = []
        for entry in reversed(self.entries):
            (gone if entry.id in wanted else kept).append(entry)
            wanted.discard(entry.id)
        if gone:
            self.entries = kept[::-1]
        return tuple(entry.id for entry in reversed(gone))

    def add(self, items: Sequence[Item], raws: Sequence[bytes], prints: Sequence[int], now: float) -> None:
        while items and len(self.known) > max(0, DEDUPE_WINDOW - len(items)):
            self.known.popitem(last=False)
        for item, raw, fingerprint in zip(items, raws, prints, strict=True):
            self.last_seq += 1
            self.entries.append(_Entry(self.last_seq, item.id, now, raw))
            self.known[item.id] = (self.last_seq, fingerprint)


class _Engine:
    """All sessions of a store, shared by its views."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.logs: dict[_Address, _Log] = {}
        self.deleted: OrderedDict[tuple[_Address, str], tuple[float, bool]] = OrderedDict()  # op_id -> answer
        self.expiries: list[tuple[float, _Address]] = []  # a heap; an entry that is not its log's `due` is stale
        self.last_version = 0
        self.closed = threading.Event()
        self.purger: threading.Thread | None = None

    def next_version(self) -> int:
        self.last_version = max(self.last_version + 1, int(self.clock() * 1e6))
        return self.last_version

    def ensure_open(self) -> None:
        if self.closed.is_set():
            raise StoreError("this store is closed")

    def find(self, address: _Address) -> _Log | None:
        self.ensure_open()
        log = self.logs.get(address)
        if log is not None and log.expires_at <= self.clock():
            del self.logs[address]
            return None
        return log

    def expire(self, address: _Address, log: _Log, expires_at: float) -> None:
        log.expires_at = expires_at
        if expires_at < log.due:  # a later one needs no entry: the purger finds it when the earlier one is due
            log.due = expires_at
            heapq.heappush(self.expiries, (expires_at, address))
            if len(self.expiries) > 2 * len(self.logs) + PURGE_BATCH:  # mostly sessions that were deleted since
                self.expiries = [(log.due, a) for a, log in self.logs.items() if log.due < math.inf]
                heapq.heapify(self.expiries)
            self.start_purger()

    def remember_deletion(self, address: _Address, op_id: str, existed: bool) -> None:
        self.deleted[address, op_id] = (self.clock() + DELETIONS, existed)
        self.deleted.move_to_end((address, op_id))
        self.start_purger()

    def remembered_deletion(self, address: _Address, op_id: str) -> bool | None:
        until, existed = self.deleted.get((address, op_id), (0.0, None))
        return existed if until > self.clock() else None

    def start_purger(self) -> None:
        if self.purger is None:
            self.purger = threading.Thread(target=_purge, args=(weakref.ref(self), self.closed), daemon=True)
            self.purger.start()

    def purge(self) -> None:
        """Drop what has expired, a bounded number at a time."""
        with self.lock:
            now = self.clock()
            for _ in range(PURGE_BATCH):
                if not self.expiries or self.expiries[0][0] > now:
                    break
                due, address = heapq.heappop(self.expiries)
                log = self.logs.get(address)
                if log is None or log.due != due:
                    continue
                if log.expires_at <= now:
                    del self.logs[address]
                else:
                    log.due = math.inf
                    self.expire(address, log, log.expires_at)
            while self.deleted and next(iter(self.deleted.values()))[0] <= now:
                self.deleted.popitem(last=False)

    def close(self) -> None:
        with self.lock:
            self.closed.set()
            self.logs.clear()
            self.deleted.clear()
            self.expiries.clear()


def _purge(engine: "weakref.ref[_Engine]", closed: threading.Event) -> None:
    while not closed.wait(PURGE_INTERVAL):
        alive = engine()
        if alive is None:
            return
        alive.purge()
        del alive


class MemoryStore(OptionsView):
    """Sessions in this process's memory: gone with it. The reference that every other store is compared with."""

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS, clock: Callable[[], float] = time.time) -> None:
        self.limits = limits
        self._engine = _Engine(clock)
        self._options = StoreOptions()

    def __repr__(self) -> str:
        return "MemoryStore()"

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
        address = self._address(session_id)
        check_write(expected, after, epoch, ttl, keep)
        self.limits.check_items(items)
        raws = [codec.encode_item(item.data, self.limits) for item in items]
        prints = [codec.fingerprint(item.data) for item in items]
        described = None if metadata is None else codec.encode_metadata(metadata, self.limits)
        engine = self._engine
        with engine.lock:
            log = engine.find(address)
            now = engine.clock()
            if log is not None and items and log.is_repeat(items, prints):
                if ttl is not None and now + ttl > log.expires_at:
                    engine.expire(address, log, now + ttl)
                own = {item.id for item in items}
                news = _news(log, after, epoch)
                return replace(news, items=tuple(item for item in news.items if item.id not in own))
            self._check_expected(session_id, log, expected, after, epoch)
            news = _news(log, after, epoch)
            if log is None:
                version = engine.next_version()
                log = _Log(id=session_id, version=version, epoch=version, created_at=now, updated_at=now)
                engine.logs[address] = log
            elif items or described is not None or (keep is not None and len(log.entries) > keep):
                log.version = engine.next_version()
                log.updated_at = now
            log.add(items, raws, prints, now)
            if keep is not None:
                del log.entries[: max(0, len(log.entries) - keep)]
            if described is not None:
                log.metadata = described
            if ttl is not None:
                engine.expire(address, log, now + ttl)
            session = log.session()
            return History(session, tuple(item for item in news.items if item.seq >= session.first_seq))

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
        address = self._address(session_id)
        check_window(after, before, last, epoch)
        with self._engine.lock:
            log = self._engine.find(address)
            return History(None) if log is None else log.history(after, before, last, epoch)

    async def remove(
        self, session_id: str, item_ids: Sequence[str], *, expected: int | None = None, op_id: str | None = None
    ) -> Removal:
        """See `SessionStore.remove`."""
        address = self._address(session_id)
        check_write(expected)
        wanted = set(self.limits.check_ids(item_ids, op_id))
        operation = None if op_id is None else (op_id, frozenset(wanted))
        engine = self._engine
        with engine.lock:
            log = engine.find(address)
            if log is not None and operation is not None and operation in log.operations:
                return Removal(log.operations[operation], log.session())
            self._check_expected(session_id, log, expected)
            if log is None:
                return Removal((), None)
            gone = log.take(wanted)
            if gone:
                log.version = log.epoch = engine.next_version()
                log.updated_at = engine.clock()
            if operation is not None:
                log.operations[operation] = gone
                while len(log.operations) > OPERATIONS:
                    log.operations.popitem(last=False)
            return Removal(gone, log.session())

    async def delete(self, session_id: str, *, expected: int | None = None, op_id: str | None = None) -> bool:
        """See `SessionStore.delete`."""
        address = self._address(session_id)
        check_write(expected)
        self.limits.check_ids((), op_id)
        engine = self._engine
        with engine.lock:
            log = engine.find(address)
            if op_id is not None and (first := engine.remembered_deletion(address, op_id)) is not None:
                return first
            self._check_expected(session_id, log, expected)
            if log is not None:
                del engine.logs[address]
            if op_id is not None:
                engine.remember_deletion(address, op_id, log is not None)
            return log is not None

    async def sessions(self, *, prefix: str = "", after: str | None = None) -> AsyncIterator[Session]:
        """See `SessionStore.sessions`."""
        engine, space = self._engine, (self._options.tenant, self._options.namespace)
        self.limits.check_prefix(prefix)
        with engine.lock:
            engine.ensure_open()
            found = [(log.updated_at, log.version, a) for a, log in engine.logs.items() if a[:2] == space]
            start = math.inf, 0
            if after is not None:
                log = engine.find(self._address(after))
                if log is None:
                    raise SessionNotFound(after)
                start = log.updated_at, log.version
        for updated_at, version, address in sorted(found, key=lambda f: f[:2], reverse=True):
            if (updated_at, version) < start and address[2].startswith(prefix):
                with engine.lock:
                    log = engine.find(address)
                    session = log.session() if log is not None else None
                if session is not None:
                    yield session

    async def aclose(self) -> None:
        """Forget every session."""
        self._engine.close()

    def _address(self, session_id: str) -> _Address:
        return self._options.tenant, self._options.namespace, self.limits.check_id(session_id)

    @staticmethod
    def _check_expected(
        session_id: str, log: _Log | None, expected: int | None, after: int | None = None, epoch: int | None = None
    ) -> None:
        actual = 0 if log is None else log.version
        if expected is not None and expected != actual:
            raise Conflict(session_id, expected=expected, actual=actual, missed=_news(log, after, epoch))


def _news(log: _Log | None, after: int | None, epoch: int | None) -> History:
    if log is None:
        return History(None)
    return log.history(after or 0, None, 0 if after is None else None, epoch)
