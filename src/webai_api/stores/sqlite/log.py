"""What a reader sees within one transaction: sessions, and their items."""

import logging
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from webai_api import codec
from webai_api.errors import CorruptData, SessionNotFound
from webai_api.types import History, Item, Session

__all__ = ["SEQ_MAX", "Address", "Log", "Snapshot"]

SEQ_BITS = 32
SEQ_MAX = (1 << SEQ_BITS) - 1
PAGE = 512  # sessions looked up at once when listing

# Casts: a damaged text is decoded here, by us, and not by the sqlite3 module, which would fail the whole query.
_COLUMNS = (
    "number, CAST(id AS BLOB), version, epoch, created_at, updated_at, expires_at, "
    "first_seq, last_seq, count, known_from, CAST(metadata AS BLOB)"
)

_TYPES = [int, int, float, float, float, int, int, int, int, bytes]  # of the columns after id

logger = logging.getLogger("webai_api")


class Address(NamedTuple):
    """A session's name as the tables hold it."""

    tenant: bytes
    namespace: str
    id: bytes

    @classmethod
    def of(cls, tenant: str | None, namespace: str, session_id: str) -> "Address":
        return cls((tenant or "").encode(), namespace, session_id.encode())


@dataclass(slots=True)
class Log:
    """A row of the table of sessions."""

    number: int
    id: str
    version: int
    epoch: int
    created_at: float
    updated_at: float
    expires_at: float
    first_seq: int
    last_seq: int
    count: int
    known_from: int
    metadata: bytes

    @property
    def base(self) -> int:
        """The position of seq 0."""
        return self.number << SEQ_BITS

    @property
    def end(self) -> int:
        """The first position above all of this session's."""
        return (self.number + 1) << SEQ_BITS

    def session(self) -> Session:
        return Session(
            id=self.id,
            version=self.version,
            epoch=self.epoch,
            first_seq=self.first_seq,
            last_seq=self.last_seq,
            count=self.count,
            created_at=self.created_at,
            updated_at=self.updated_at,
            expires_at=None if math.isinf(self.expires_at) else self.expires_at,
            metadata=_decoded(self.id, self.metadata),
        )


def _decoded(session_id: str, metadata: bytes) -> dict[str, Any]:
    if metadata == b"{}":  # the usual case
        return {}
    try:
        return codec.decode(metadata)
    except ValueError as error:
        raise CorruptData(f"the metadata of session {session_id!r} is damaged; delete the session") from error


def _log(row: tuple[Any, ...]) -> Log:
    number, raw_id, *values = row
    session_id = raw_id.decode(errors="backslashreplace")
    if values[4] is None:  # expires_at
        values[4] = math.inf
    if [type(value) for value in values] != _TYPES:
        raise CorruptData(f"the bookkeeping of session {session_id!r} is damaged; delete the session")
    return Log(number, session_id, *values)


class Snapshot:
    """One instant of the database, at the time *now*."""

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self.execute = connection.cursor().execute  # one cursor: rows are read before the next statement
        self.now = now

    def find(self, address: Address) -> Log | None:
        """Return the session, or None if there is none or it has expired.

        Raises:
            CorruptData: its row cannot be decoded.
        """
        row = self.execute(
            f"SELECT {_COLUMNS} FROM sessions WHERE tenant = ? AND namespace = ? AND id = ?", address
        ).fetchone()
        log = None if row is None else _log(row)
        if log is not None:
            _decoded(log.id, log.metadata)  # before anything is written: what cannot be answered is not stored either
        return None if log is None or log.expires_at <= self.now else log

    def read(self, address: Address, after: int, before: int | None, last: int | None, epoch: int | None) -> History:
        """See `SessionStore.read`."""
        log = self.find(address)
        return History(None) if log is None else self.history(log, after, before, last, epoch)

    def history(self, log: Log, after: int, before: int | None, last: int | None, epoch: int | None) -> History:
        """Return the session with its items of a window, as `SessionStore.read` words it."""
        items, corrupt = self.items(log, after, before, last, epoch)
        return History(log.session(), items, corrupt)

    def items(
        self, log: Log, after: int, before: int | None, last: int | None, epoch: int | None
    ) -> tuple[tuple[Item, ...], tuple[int, ...]]:
        """Return the items of a window, and the seqs of the damaged ones in it."""
        if epoch is not None and (epoch != log.epoch or after > log.last_seq):
            after = 0
        above = log.base + min(after, SEQ_MAX)
        below = log.end if before is None else log.base + min(before, SEQ_MAX)
        if last == 0 or after >= log.last_seq:
            return (), ()
        items: list[Item] = []
        corrupt: list[int] = []
        for seq, row in self._rows(log, above, below, newest_first=last is not None):
            try:
                items.append(_item(seq, row))
            except ValueError:
                corrupt.append(seq)
            if len(items) == last:
                break
        if last is not None:
            items.reverse()
            corrupt.reverse()
        if corrupt:
            logger.warning("session %r: %d damaged items left out, seqs %s", log.id, len(corrupt), corrupt[:10])
        return tuple(items), tuple(corrupt)

    def _rows(self, log: Log, above: int, below: int, *, newest_first: bool) -> Iterator[tuple[int, tuple[Any, ...]]]:
        order = "DESC" if newest_first else "ASC"
        rows = self.execute(
            "SELECT position, CAST(id AS BLOB), created_at, CAST(body AS BLOB) FROM items "
            f"WHERE position > ? AND position < ? AND body IS NOT NULL ORDER BY position {order}",
            (above, below),
        )
        return ((position - log.base, row) for position, *row in rows)

    def listing(self, space: Address, prefix: bytes, below: int | None) -> list[tuple[int, int]]:
        """Return (version, number) of a page of the sessions beside *space*, newest activity first.

        Those with a prefix all come at once: they are found by their names, not by their activity.
        """
        if prefix:
            return self.execute(
                "SELECT version, number FROM sessions WHERE tenant = ? AND namespace = ? AND id >= ? AND id < ? "
                "AND +version < ? ORDER BY +version DESC",  # with "+" it goes by the names' index
                (*space[:2], prefix, prefix + b"\xff", below or 1 << 62),  # UTF-8 has no byte 0xff
            ).fetchall()
        return self.execute(
            "SELECT version, number FROM sessions WHERE tenant = ? AND namespace = ? AND version < ? "
            "ORDER BY version DESC LIMIT ?",
            (*space[:2], below or 1 << 62, PAGE),
        ).fetchall()

    def listed(self, space: Address, number: int) -> Session | None:
        """Return the session of this number, or None if it is gone. A damaged one is passed over with a WARNING."""
        row = self.execute(
            f"SELECT {_COLUMNS} FROM sessions WHERE number = ? AND tenant = ? AND namespace = ?", (number, *space[:2])
        ).fetchone()
        try:
            log = None if row is None else _log(row)
            return None if log is None or log.expires_at <= self.now else log.session()
        except CorruptData as error:
            logger.warning("listing: %s", error)
            return None

    def version(self, address: Address, session_id: str) -> int:
        """Return the session's version, or raise `SessionNotFound`."""
        log = self.find(address)
        if log is None:
            raise SessionNotFound(session_id)
        return log.version


def _item(seq: int, row: tuple[Any, ...]) -> Item:
    item_id, created_at, body = row
    if not (isinstance(item_id, bytes) and isinstance(created_at, float)):
        raise ValueError("a column has the wrong type")  # noqa: TRY004  # damage of what is stored
    return Item(id=item_id.decode(), seq=seq, created_at=created_at, data=codec.decode(body))
