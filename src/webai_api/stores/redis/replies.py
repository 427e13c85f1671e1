"""What the scripts answer, as values. The shape is written down at `reply` in ``session.lua``."""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from webai_api import codec
from webai_api.errors import CorruptData, HistoryLost
from webai_api.types import History, Item, Session

__all__ = ["DERIVED_ID", "history_of", "session_of"]

DERIVED_ID = re.compile(r"~([0-9]+\.[0-9]+)")  # birth and seq: the id of an entry that other code wrote without one

_logger = logging.getLogger("webai_api")


def session_of(session_id: str, reply: Sequence[Any]) -> Session | None:
    """Return the session in a script's answer, if it brought one.

    Raises:
        HistoryLost, CorruptData: the script found it so.
    """
    if reply[0] == b"lost":
        raise HistoryLost(session_id, promised=reply[1], found=reply[2])
    if reply[0] == b"damaged":
        raise CorruptData(
            f"the bookkeeping of session {session_id!r} cannot be decoded; clear the session to start afresh"
        )
    if len(reply) < 2:
        return None
    _, version, epoch, birth, last_seq, count, updated_ms, expires_ms, metadata, ranges, _, _ = reply
    try:
        described = codec.decode(metadata)
    except ValueError as error:
        raise CorruptData(f"the metadata of session {session_id!r} cannot be decoded") from error
    gaps = sum(end - start + 1 for start, end in _ranges(ranges))
    return Session(
        id=session_id,
        version=version,
        epoch=epoch,
        first_seq=last_seq - count - gaps + 1,
        last_seq=last_seq,
        count=count,
        created_at=birth // 1000 / 1000,
        updated_at=updated_ms / 1000,
        expires_at=expires_ms / 1000 if expires_ms else None,
        metadata=described,
    )


def history_of(session_id: str, reply: Sequence[Any], own: frozenset[str] = frozenset()) -> History:
    """Return the session and the items in a script's answer, less the caller's *own*."""
    session = session_of(session_id, reply)
    if session is None:
        return History(None)
    items, corrupt = [], []
    for seq, raw in zip(_seqs(session.first_seq, reply[10], reply[9]), reply[11], strict=False):
        try:
            item_id, created_at, data = codec.unpack(raw)
        except ValueError:
            corrupt.append(seq)
            continue
        if item_id is None:
            item_id = f"~{reply[3]}.{seq}"
        if item_id not in own:
            items.append(Item(id=item_id, seq=seq, created_at=created_at, data=data))
    if corrupt:
        _logger.warning(
            "session %r has %d entries that cannot be decoded, the first at %d", session_id, len(corrupt), corrupt[0]
        )
    return History(session, tuple(items), tuple(corrupt))


def _ranges(text: bytes) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in (part.split(b"-") for part in text.split(b",") if part)]


def _seqs(first: int, start: int, ranges: bytes) -> Iterator[int]:
    """Yield the seqs of the list's entries from index *start* on; *ranges* are the seqs that were removed."""
    seq, gaps = first + start, _ranges(ranges)
    while True:
        while gaps and seq >= gaps[0][0]:
            begin, end = gaps.pop(0)
            seq += end - begin + 1
        yield seq
        seq += 1
