"""`SQLiteStore`: checks and encodes the arguments, then hands each verb to one of two threads."""

import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from webai_api import codec
from webai_api.errors import InvalidInput, InvalidType, StoreError
from webai_api.limits import DEFAULT_LIMITS, Limits, check_window, check_write
from webai_api.options import OptionsView
from webai_api.stores.sqlite.log import PAGE, Address, Snapshot
from webai_api.stores.sqlite.verbs import Append, NewItem
from webai_api.stores.sqlite.worker import Reader, Worker, Writer
from webai_api.types import History, Item, Removal, Session, StoreOptions

__all__ = ["SQLiteStore"]

# Connections that a fork carried along. Using or closing them would harm the parent's; they are kept, unused.
_inherited: list[Worker] = []


class _Engine:
    """The two threads of a store, shared by its views. They know nothing of it, so that they end when it is dropped."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.clock = clock
        self.closed = False
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._writer, self._reader = Writer(self.path, self.clock), Reader(self.path, self.clock)
        self._endings = [weakref.finalize(self, worker.close) for worker in (self._writer, self._reader)]
        for ending in self._endings:
            ending.atexit = False

    def _check(self) -> None:
        if self.closed:
            raise StoreError("this store is closed")
        if self._process != os.getpid():  # threads do not survive a fork
            _inherited.extend((self._writer, self._reader))
            for ending in self._endings:
                ending.detach()  # their locks may have been held at the fork
            self._start()

    @property
    def writer(self) -> Writer:
        self._check()
        return self._writer

    @property
    def reader(self) -> Reader:
        self._check()
        return self._reader

    async def close(self) -> None:
        self.closed = True
        if self._process != os.getpid():
            return
        self._reader.close()
        self._writer.close()
        await self._reader.ended()
        await self._writer.ended()


class SQLiteStore(OptionsView):
    """Sessions in an SQLite file: what was acknowledged is on disk.

    Several processes of one machine may share the file (not over a network file system). Nothing is opened before
    the first call; missing folders and the file are created then, for this user only.

    Args:
        path: the file. It belongs to this store alone: another program's database is refused.
        clock: gives the time in Unix seconds.
    """

    durabilities = ("fsync",)

    def __init__(
        self, path: str | Path, *, limits: Limits = DEFAULT_LIMITS, clock: Callable[[], float] = time.time
    ) -> None:
        self.limits = limits
        self._engine = _Engine(_checked(path), clock)
        self._options = StoreOptions()

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self._engine.path)!r})"

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
        call = Append(
            session_id=session_id,
            address=address,
            items=[
                NewItem(item.id, codec.encode_item(item.data, self.limits), _signed(codec.fingerprint(item.data)))
                for item in items
            ],
            expected=expected,
            after=after,
            epoch=epoch,
            ttl=ttl,
            keep=keep,
            metadata=None if metadata is None else codec.encode_metadata(metadata, self.limits),
        )
        size = sum(len(item.body) for item in call.items)
        return await self._engine.writer.run(lambda t: t.append(call), seconds=self._options.deadline, size=size)

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
        return await self._engine.reader.run(
            lambda t: t.read(address, after, before, last, epoch), seconds=self._options.deadline
        )

    async def remove(
        self, session_id: str, item_ids: Sequence[str], *, expected: int | None = None, op_id: str | None = None
    ) -> Removal:
        """See `SessionStore.remove`."""
        address = self._address(session_id)
        check_write(expected)
        ids = tuple(self.limits.check_ids(item_ids, op_id))
        return await self._engine.writer.run(
            lambda t: t.remove(address, session_id, ids, expected, op_id), seconds=self._options.deadline
        )

    async def delete(self, session_id: str, *, expected: int | None = None, op_id: str | None = None) -> bool:
        """See `SessionStore.delete`."""
        address = self._address(session_id)
        check_write(expected)
        self.limits.check_ids((), op_id)
        return await self._engine.writer.run(
            lambda t: t.delete(address, session_id, expected, op_id), seconds=self._options.deadline
        )

    async def sessions(self, *, prefix: str = "", after: str | None = None) -> AsyncIterator[Session]:
        """See `SessionStore.sessions`. Beyond the first 512, a session with new activity meanwhile may be missed."""
        reader, seconds = self._engine.reader, self._options.deadline
        space = Address.of(self._options.tenant, self._options.namespace, "")
        start = self.limits.check_prefix(prefix).encode()
        below: int | None = None
        if after is not None:
            last = self._address(after)
            below = await reader.run(lambda t: t.version(last, after), seconds=seconds)
        while True:
            page = await reader.run(partial(Snapshot.listing, space=space, prefix=start, below=below), seconds=seconds)
            for _, number in page:
                # Looked up once more, so that it is there when it is yielded.
                found = await reader.run(partial(Snapshot.listed, space=space, number=number), seconds=seconds)
                if found is not None:
                    yield found
            if prefix or len(page) < PAGE:
                return
            below = page[-1][0]

    async def aclose(self) -> None:
        """Write what is queued, then close the file. Views share it; closing twice is harmless."""
        await self._engine.close()

    def _address(self, session_id: str) -> Address:
        checked = self.limits.check_id(session_id)
        return Address.of(self._options.tenant, self._options.namespace, checked)


def _signed(number: int) -> int:
    """Return 64 bits as the signed number that SQLite holds."""
    return number - (1 << 64) if number >> 63 else number


def _checked(path: object) -> Path:
    if not isinstance(path, str | Path):
        raise InvalidType(f"path must be a str or a Path, not {type(path).__name__}")
    if str(path) in ("", ".", ":memory:") or "\0" in str(path):
        raise InvalidInput("path must name a file; MemoryStore keeps sessions in memory")
    return Path(path).expanduser().absolute()  # a later chdir must not lead elsewhere
