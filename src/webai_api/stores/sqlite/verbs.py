"""What each writing verb does within its transaction: look, raise or decide, then write."""

import json
import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from webai_api.errors import Conflict, CorruptData, DuplicateId, IdReused, StoreError
from webai_api.protocol import DEDUPE_WINDOW
from webai_api.stores.sqlite.log import SEQ_BITS, SEQ_MAX, Address, Log, Snapshot
from webai_api.types import History, Item, Removal

__all__ = ["Append", "NewItem", "Transaction"]

OPERATIONS = 16  # named removals remembered per session
DELETED_FOR = 60.0  # seconds that a named deletion is remembered
PURGE_SESSIONS = 200  # expired sessions per round, and
PURGE_ITEMS = 1000  # items per round and per deletion: what one transaction drops, while all others wait


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item as it is written."""

    id: str
    body: bytes
    fingerprint: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """The arguments of an append, checked and encoded."""

    session_id: str
    address: Address
    items: Sequence[NewItem]
    expected: int | None
    after: int | None
    epoch: int | None
    ttl: float | None
    keep: int | None
    metadata: bytes | None


class Transaction(Snapshot):
    """One transaction that may write. `finish` belongs before its COMMIT."""

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        super().__init__(connection, now)
        self._version: int | None = None  # the last one handed out, once one was

    def next_version(self) -> int:
        last = self._version
        if last is None:
            (last,) = self.execute("SELECT version FROM counter").fetchone()
        self._version = max(last + 1, int(self.now * 1e6))
        return self._version

    def finish(self) -> None:
        """Write what all calls of the transaction share."""
        if self._version is not None:
            self.execute("UPDATE counter SET version = ?", (self._version,))

    def append(self, call: Append) -> History:
        """See `SessionStore.append`."""
        log = self.find(call.address)
        if log is not None and call.items and self._is_repeat(log, call.items):
            return self._repeat(log, call)
        self._check_expected(log, call.session_id, call.expected, call.after, call.epoch)
        news = self._news(log, call.after, call.epoch)
        if log is None:
            log = self._create(call.address, call.session_id)
        elif call.items or call.metadata is not None or (call.keep is not None and log.count > call.keep):
            log.version, log.updated_at = self.next_version(), self.now
        self._add(log, call.items)
        if call.keep is not None and log.count > call.keep:
            self._trim(log, log.count - call.keep)
        if call.metadata is not None:
            log.metadata = call.metadata
        if call.ttl is not None:
            log.expires_at = self.now + call.ttl
        self._save(log)
        first = log.first_seq  # what was trimmed just now is no news
        items, corrupt = tuple(i for i in news[0] if i.seq >= first), tuple(seq for seq in news[1] if seq >= first)
        return History(log.session(), items, corrupt)

    def remove(
        self, address: Address, session_id: str, item_ids: Sequence[str], expected: int | None, op_id: str | None
    ) -> Removal:
        """See `SessionStore.remove`."""
        log = self.find(address)
        operation = None if op_id is None else _digest(op_id, item_ids)
        if log is not None and operation is not None and (first := self._first_removal(log, operation)) is not None:
            return Removal(first, log.session())
        self._check_expected(log, session_id, expected)
        if log is None:
            return Removal((), None)
        found = ((self._newest(log, item_id), item_id) for item_id in set(item_ids))
        gone = sorted((position, item_id) for position, item_id in found if position is not None)
        if gone:
            self._drop(log, [position for position, _ in gone])
            log.count -= len(gone)
            log.first_seq = self._lowest(log, skip=0)
            log.version = log.epoch = self.next_version()
            log.updated_at = self.now
            self._save(log)
        ids = tuple(item_id for _, item_id in gone)
        if operation is not None:
            self._remember_removal(log, operation, ids)
        return Removal(ids, log.session())

    def delete(self, address: Address, session_id: str, expected: int | None, op_id: str | None) -> bool:
        """See `SessionStore.delete`. A damaged session goes too, unless a version is expected of it."""
        if op_id is not None and (first := self._first_deletion(address, op_id)) is not None:
            return first
        try:
            log = self.find(address)
        except CorruptData:
            if expected is not None:
                raise
            existed = True
        else:
            self._check_expected(log, session_id, expected)
            existed = log is not None
        self._discard(address)
        if op_id is not None:
            answer = (*address, op_id.encode(), existed, self.now + DELETED_FOR)
            self.execute("INSERT OR REPLACE INTO deletions VALUES (?, ?, ?, ?, ?, ?)", answer)
        return existed

    def purge(self) -> bool:
        """Drop some of what has expired or waits to be dropped. Return whether there may be more."""
        expired = self.execute(
            "SELECT number FROM sessions WHERE expires_at <= ? LIMIT ?", (self.now, PURGE_SESSIONS)
        ).fetchall()
        for (number,) in expired:
            self._forget(number)
        budget = PURGE_ITEMS
        while budget > 0 and (row := self.execute("SELECT min(session) FROM garbage").fetchone()) != (None,):
            budget -= 1 + self._sweep(row[0], budget)
        self.execute("DELETE FROM deletions WHERE until <= ?", (self.now,))
        return len(expired) == PURGE_SESSIONS or budget <= 0

    def is_purge_due(self) -> bool:
        """Return whether `purge` would find anything. Needs no lock."""
        row = self.execute(
            "SELECT EXISTS (SELECT 1 FROM sessions WHERE expires_at <= ?1) OR EXISTS (SELECT 1 FROM garbage) "
            "OR EXISTS (SELECT 1 FROM deletions WHERE until <= ?1)",
            (self.now,),
        ).fetchone()
        return bool(row[0])

    def _news(self, log: Log | None, after: int | None, epoch: int | None) -> tuple[tuple[Item, ...], tuple[int, ...]]:
        if log is None or after is None:
            return (), ()
        return self.items(log, after, None, None, epoch)

    def _check_expected(
        self,
        log: Log | None,
        session_id: str,
        expected: int | None,
        after: int | None = None,
        epoch: int | None = None,
    ) -> None:
        actual = 0 if log is None else log.version
        if expected is not None and expected != actual:
            missed = History(None if log is None else log.session(), *self._news(log, after, epoch))
            raise Conflict(session_id, expected=expected, actual=actual, missed=missed)

    def _is_repeat(self, log: Log, items: Sequence[NewItem]) -> bool:
        """Return whether the call is known as a whole; raise if only a part of it is, or with other content."""
        window = log.base + log.known_from
        known = [
            self.execute(
                "SELECT position, fingerprint FROM items INDEXED BY items_by_id "
                "WHERE position >> 32 = ? AND id = ? AND position >= ?",
                (log.number, item.id.encode(), window),
            ).fetchone()
            for item in items
        ]
        reused = [item.id for item, k in zip(items, known, strict=True) if k is not None and k[1] != item.fingerprint]
        if reused:
            raise IdReused(log.id, reused)
        starts = [k[0] - i for i, k in enumerate(known) if k is not None]
        if starts and (len(starts) < len(items) or len(set(starts)) > 1):
            raise DuplicateId(log.id, [item.id for item, k in zip(items, known, strict=True) if k is not None])
        return bool(starts)

    def _repeat(self, log: Log, call: Append) -> History:
        if call.ttl is not None and self.now + call.ttl > log.expires_at:
            log.expires_at = self.now + call.ttl
            self._save(log)
        own = {item.id for item in call.items}
        items, corrupt = self._news(log, call.after, call.epoch)
        return History(log.session(), tuple(item for item in items if item.id not in own), corrupt)

    def _create(self, address: Address, session_id: str) -> Log:
        self._discard(address)  # an expired one may still be there
        # Above what waits to be dropped too: its items still have their positions.
        (number,) = self.execute(
            "SELECT 1 + max(coalesce((SELECT max(number) FROM sessions), 0), "
            "coalesce((SELECT max(session) FROM garbage), 0))"
        ).fetchone()
        version = self.next_version()
        log = Log(number, session_id, version, version, self.now, self.now, math.inf, 1, 0, 0, 1, b"{}")
        self.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, *address, version, version, self.now, self.now, None, 1, 0, 0, 1, log.metadata),
        )
        return log

    def _save(self, log: Log) -> None:
        self.execute(
            "UPDATE sessions SET version = ?, epoch = ?, updated_at = ?, expires_at = ?, first_seq = ?, last_seq = ?, "
            "count = ?, known_from = ?, metadata = ? WHERE number = ?",
            (
                *(log.version, log.epoch, log.updated_at, None if math.isinf(log.expires_at) else log.expires_at),
                *(log.first_seq, log.last_seq, log.count, log.known_from, log.metadata, log.number),
            ),
        )

    def _add(self, log: Log, items: Sequence[NewItem]) -> None:
        if not items:
            return
        if log.last_seq + len(items) > SEQ_MAX - 1:
            raise StoreError(f"session {log.id!r} has given all its numbers; go on in another session")
        known_from = max(log.known_from, log.last_seq + 1 - max(0, DEDUPE_WINDOW - len(items)))
        if log.count < log.last_seq:  # some are gone; whose ids are forgotten now, those need no row any more
            self.execute(
                "DELETE FROM items WHERE position >= ? AND position < ? AND body IS NULL",
                (log.base + log.known_from, log.base + known_from),
            )
        log.known_from = known_from
        first = log.base + log.last_seq + 1
        for position, item in enumerate(items, first):
            row = (position, item.id.encode(), item.fingerprint, self.now, item.body)
            self.execute("INSERT INTO items VALUES (?, ?, ?, ?, ?)", row)
        if not log.count:
            log.first_seq = log.last_seq + 1
        log.last_seq += len(items)
        log.count += len(items)

    def _trim(self, log: Log, excess: int) -> None:
        """Drop the oldest *excess* items. Costs what it drops, whatever stays."""
        first = self._lowest(log, skip=excess)
        old, known, new = log.base + log.first_seq, log.base + log.known_from, log.base + first
        self.execute("DELETE FROM items WHERE position >= ? AND position < ?", (old, min(known, new)))
        self.execute("UPDATE items SET body = NULL WHERE position >= ? AND position < ?", (max(old, known), new))
        log.first_seq = first
        log.count -= excess

    def _newest(self, log: Log, item_id: str) -> int | None:
        """Return the position of the newest item of this id."""
        row = self.execute(
            "SELECT max(position) FROM items INDEXED BY items_by_id "
            "WHERE position >> 32 = ? AND id = ? AND body IS NOT NULL",
            (log.number, item_id.encode()),
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def _drop(self, log: Log, positions: Sequence[int]) -> None:
        known = log.base + log.known_from
        for position in positions:
            if position < known:
                self.execute("DELETE FROM items WHERE position = ?", (position,))
            else:
                self.execute("UPDATE items SET body = NULL WHERE position = ?", (position,))

    def _lowest(self, log: Log, *, skip: int) -> int:
        """Return the seq of the oldest item after the *skip* oldest ones; if there is none, the one to come."""
        row = self.execute(
            "SELECT position FROM items WHERE position >= ? AND position < ? AND body IS NOT NULL "
            "ORDER BY position LIMIT 1 OFFSET ?",
            (log.base + log.first_seq, log.end, skip),
        ).fetchone()
        return log.last_seq + 1 if row is None else int(row[0]) - log.base

    def _discard(self, address: Address) -> None:
        row = self.execute(
            "SELECT number FROM sessions WHERE tenant = ? AND namespace = ? AND id = ?", address
        ).fetchone()
        if row is not None:
            self._forget(row[0])
            self._sweep(row[0], PURGE_ITEMS)

    def _forget(self, number: int) -> None:
        self.execute("DELETE FROM sessions WHERE number = ?", (number,))
        self.execute("INSERT INTO garbage VALUES (?)", (number,))

    def _sweep(self, number: int, budget: int) -> int:
        """Drop up to *budget* items of a session that is gone, and the last traces of it with them."""
        base, end = number << SEQ_BITS, (number + 1) << SEQ_BITS
        dropped = self.execute(
            "DELETE FROM items WHERE position IN "
            "(SELECT position FROM items WHERE position >= ? AND position < ? ORDER BY position LIMIT ?)",
            (base, end, budget),
        ).rowcount
        if dropped < budget:
            self.execute("DELETE FROM removals WHERE session = ?", (number,))
            self.execute("DELETE FROM garbage WHERE session = ?", (number,))
        return dropped

    def _first_removal(self, log: Log, operation: bytes) -> tuple[str, ...] | None:
        row = self.execute(
            "SELECT answer FROM removals WHERE session = ? AND operation = ?", (log.number, operation)
        ).fetchone()
        return None if row is None else tuple(json.loads(row[0]))

    def _remember_removal(self, log: Log, operation: bytes, ids: Sequence[str]) -> None:
        self.execute(
            "INSERT INTO removals SELECT ?1, ?2, 1 + coalesce(max(ordinal), 0), ?3 FROM removals WHERE session = ?1",
            (log.number, operation, json.dumps(ids)),
        )
        self.execute(
            "DELETE FROM removals WHERE session = ?1 AND operation NOT IN "
            "(SELECT operation FROM removals WHERE session = ?1 ORDER BY ordinal DESC LIMIT ?2)",
            (log.number, OPERATIONS),
        )

    def _first_deletion(self, address: Address, op_id: str) -> bool | None:
        row = self.execute(
            "SELECT existed FROM deletions WHERE tenant = ? AND namespace = ? AND id = ? AND op_id = ? AND until > ?",
            (*address, op_id.encode(), self.now),
        ).fetchone()
        return None if row is None else bool(row[0])


def _digest(op_id: str, item_ids: Iterable[str]) -> bytes:
    """Return what tells a named removal of these items from all others."""
    return blake2b(json.dumps([op_id, *sorted(set(item_ids))]).encode(), digest_size=16).digest()
