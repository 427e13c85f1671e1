"""The threads behind the store: calls that wait together share one transaction (group commit).

    event loops --calls--> queue --group--> BEGIN, run each, COMMIT --answers--> each caller's own loop

The writer takes calls from its queue only once it holds the file's write lock, so that waiting for another process is
still being queued. The reader is a second thread with a connection of its own: a read sees the last commit and never
waits for the next one.
"""

import asyncio
import copy
import logging
import random
import sqlite3
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from webai_api.errors import OutcomeUnknown, SessionError, StoreError, StoreUnavailable
from webai_api.stores.sqlite.calls import Answer, Call, CallQueue, Work, settle
from webai_api.stores.sqlite.database import Database, is_busy, is_in_doubt, translated
from webai_api.stores.sqlite.verbs import Transaction

__all__ = ["Reader", "Worker", "Writer"]

GROUP_CALLS, GROUP_BYTES = 512, 1 << 20  # per transaction, or one larger call alone
READS = 8  # per snapshot: answers go out together, none should wait for long, and each may be a whole session
PAUSE = 0.0002, 0.002  # seconds, at random, between tries for a lock that another process holds
TIDY_INTERVAL = 1.0  # seconds between looks at what has expired
TIDY_AGAIN = 0.02  # seconds until the next round when there is more to drop: callers come first
TIDY_FAILED = 60.0  # seconds until the next try after a failure
VACUUM_PAGES = 256  # free pages given back to the file system per round
CHECKPOINT_BYTES = 32 << 20  # written since the last checkpoint, roughly; the hot pages are then copied once for many
IDLE = 3600.0  # seconds between looks at nothing at all
CALL_BYTES = 6 << 12  # what one call adds to the write-ahead log beside its items: about six pages

T = TypeVar("T")
logger = logging.getLogger("webai_api")


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Let nothing out but errors that a caller may see: what leaves a thread's loop would leave callers waiting."""
    try:
        with translated(path):
            yield
    except SessionError:
        raise
    except Exception as error:
        logger.exception("sqlite: %s: internal error", path)
        raise StoreError(f"sqlite: {path}: internal error, see the log") from error


def _pause() -> None:
    """Give another process time to finish its transaction; at random, so that several do not wait in step."""
    time.sleep(random.uniform(*PAUSE))  # noqa: S311  # no secret


def _refusals(calls: Sequence[Call[Any]], error: StoreError) -> list[Answer]:
    """Return *error* as the answer of each call: a copy, since raising one adds to its traceback."""
    answers: list[Answer] = []
    for call in calls:
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        answers.append((call, None, own))
    return answers


class Worker(ABC):
    """A daemon thread with a database connection and a queue. The first call starts it and has it open the file."""

    writes = False

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.clock = clock
        self.queue = CallQueue()
        self._database: Database | None = None
        self._ended: Future[None] = Future()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    async def run(self, work: Work[T], *, seconds: float, size: int = 0) -> T:
        """Return what *work* gives in a transaction; for a writer, once that is on disk.

        Raises:
            StoreUnavailable: nothing happened.
            OutcomeUnknown: the transaction was under way at the deadline.
            StoreError: the file is unusable, or the store is closed.
        """
        call = Call(work, size, seconds)
        self.queue.put(call)
        if self._thread is None:
            self._start()
        timer = call.loop.call_later(seconds, self._expire, call, seconds)
        try:
            return await call.future
        finally:
            timer.cancel()
            self.queue.take_back(call)  # of a caller that was cancelled

    def close(self) -> None:
        """Let the thread end once it has served what is queued."""
        self.queue.close()

    async def ended(self) -> None:
        """Return once the thread has ended, or if it never began."""
        if self._thread is not None:
            await asyncio.shield(asyncio.wrap_future(self._ended))

    @abstractmethod
    def serve(self, database: Database) -> None:
        """Serve some of what is queued, if there is any. A busy error means: again, soon."""

    def idle_until(self) -> float:
        """Return the monotonic time at which `serve` is wanted without a call."""
        return time.monotonic() + IDLE

    @abstractmethod
    def finish(self, database: Database) -> None:
        """Do what belongs before the connection is closed."""

    def attempt(self, call: Call[Any], transaction: Transaction) -> Answer:
        """Run one call. Refusals are answers; SQLite's errors are not."""
        try:
            return call, call.work(transaction), None
        except SessionError as error:
            return call, None, error

    def insist(self, database: Database, statement: str, deadline: float) -> None:
        """Run a statement, waiting for other processes' locks until *deadline*, in monotonic time."""
        while True:
            try:
                database.connection.execute(statement)
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                _pause()
            else:
                return

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._ended.set_running_or_notify_cancel()  # so that a cancelled aclose cannot cancel it
                self._thread = threading.Thread(target=self._main, name=f"webai-api {type(self).__name__}", daemon=True)
                self._thread.start()

    def _expire(self, call: Call[Any], seconds: float) -> None:
        begun = not self.queue.take_back(call)
        if not call.future.done():
            text = f"sqlite: {self.path}: no answer within {seconds:g} s; is the file locked, or the disk slow?"
            call.future.set_exception(OutcomeUnknown(text) if begun and self.writes else StoreUnavailable(text))

    def _main(self) -> None:
        try:
            while self.queue.wait(self.idle_until() - time.monotonic() if self._database else IDLE):
                self._round()
        finally:
            self._disconnect()
            self._ended.set_result(None)

    def _round(self) -> None:
        waiting = len(self.queue)
        try:
            with _guarded(self.path):
                self._round_or_pause()
        except StoreError as error:
            self._disconnect()  # the next call opens the file anew: it may be better by then
            settle(_refusals(self.queue.take(waiting, sys.maxsize), error))

    def _round_or_pause(self) -> None:
        try:
            if self._database is not None and self._database.moved():
                logger.warning("sqlite: %s was moved or removed; opening it anew", self.path)
                self._disconnect()
            if self._database is None:
                if not len(self.queue):  # nothing is created for nobody
                    return
                self._database = Database(self.path, read_only=not self.writes)
            self.serve(self._database)
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
            self.queue.drop_late()
            _pause()

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                self.finish(database)
            with suppress(sqlite3.Error):
                database.connection.close()


class Reader(Worker):
    """Runs what only looks, in snapshots."""

    def serve(self, database: Database) -> None:
        # Taken before the snapshot begins: it then holds all that was acknowledged before any of these calls.
        group = self.queue.take(READS, READS)
        if not group:
            return
        try:
            with _guarded(self.path):
                answers = self._look(database, group)
        except StoreError as error:
            answers = _refusals(group, error)
        settle(answers)

    def finish(self, database: Database) -> None:
        """Nothing: a reader leaves no traces."""

    def attempt(self, call: Call[Any], transaction: Transaction) -> Answer:
        """Run one call. Whatever fails, fails for it alone."""
        try:
            with _guarded(self.path):
                return super().attempt(call, transaction)
        except StoreError as error:
            return call, None, error

    def _look(self, database: Database, group: Sequence[Call[Any]]) -> list[Answer]:
        database.connection.execute("BEGIN")
        try:
            self.insist(database, "SELECT version FROM counter", max(call.deadline for call in group))
            transaction = Transaction(database.connection, self.clock())
            return [self.attempt(call, transaction) for call in group]
        finally:
            if database.connection.in_transaction:
                database.connection.execute("ROLLBACK")


class Writer(Worker):
    """Runs what changes something, in groups: one commit, one fsync, for all that wait."""

    writes = True

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        super().__init__(path, clock)
        self._tidy_at = 0.0  # monotonic
        self._written = 0  # bytes since the last checkpoint, roughly

    def serve(self, database: Database) -> None:
        if len(self.queue):
            database.connection.execute("BEGIN IMMEDIATE")
            settle(self._group(database, self.queue.take(GROUP_CALLS, GROUP_BYTES)))
        if self._written >= CHECKPOINT_BYTES or time.monotonic() >= self._tidy_at:
            self._tidy(database)

    def idle_until(self) -> float:
        return self._tidy_at

    def finish(self, database: Database) -> None:
        if database.connection.in_transaction:
            database.connection.execute("ROLLBACK")
        if not database.moved():
            database.checkpoint("TRUNCATE")

    def _group(self, database: Database, group: Sequence[Call[Any]]) -> list[Answer]:
        """Run *group* in the transaction that has begun; if that fails, each call in one of its own."""
        self._written += sum(CALL_BYTES + call.size for call in group)
        try:
            with _guarded(self.path):
                return self._commit(database, group)
        except StoreError as error:
            with suppress(sqlite3.Error):
                self._roll_back(database)
            if len(group) == 1 or isinstance(error, OutcomeUnknown):
                return _refusals(group, error)
            return [self._alone(database, call) for call in group]

    def _alone(self, database: Database, call: Call[Any]) -> Answer:
        try:
            with _guarded(self.path):
                self._roll_back(database)
                self.insist(database, "BEGIN IMMEDIATE", call.deadline)
                return self._commit(database, [call])[0]
        except StoreError as error:
            with suppress(sqlite3.Error):
                self._roll_back(database)
            return call, None, error

    def _commit(self, database: Database, group: Sequence[Call[Any]]) -> list[Answer]:
        transaction = Transaction(database.connection, self.clock())
        answers = [self.attempt(call, transaction) for call in group]
        transaction.finish()
        try:
            database.connection.execute("COMMIT")
        except sqlite3.Error as error:
            if is_in_doubt(error):
                raise OutcomeUnknown(f"sqlite: {self.path}: the disk failed while committing") from error
            raise
        return answers

    def _roll_back(self, database: Database) -> None:
        if database.connection.in_transaction:  # some errors have rolled back already
            database.connection.execute("ROLLBACK")

    def _tidy(self, database: Database) -> None:
        """Copy the log, drop what has expired, give free pages back: a bounded part, and no call depends on it."""
        self._tidy_at = time.monotonic() + TIDY_INTERVAL
        try:
            with _guarded(self.path):
                if self._written >= CHECKPOINT_BYTES:
                    self._written = 0
                    database.checkpoint("FULL")
                if self._purge(database) or self._vacuum(database):
                    self._tidy_at = time.monotonic() + TIDY_AGAIN
        except StoreUnavailable:
            pass  # another process writes; next time
        except StoreError as error:
            self._tidy_at = time.monotonic() + TIDY_FAILED
            logger.warning("sqlite: the file was not tidied: %s", error)
        finally:
            with suppress(sqlite3.Error):
                self._roll_back(database)

    def _purge(self, database: Database) -> bool:
        transaction = Transaction(database.connection, self.clock())
        if not transaction.is_purge_due():
            return False
        database.connection.execute("BEGIN IMMEDIATE")
        more = transaction.purge()
        database.connection.execute("COMMIT")
        self._written += CALL_BYTES
        return more

    def _vacuum(self, database: Database) -> bool:
        (free,), (pages,) = (database.connection.execute(f"PRAGMA {name}").fetchone() for name in _PAGE_COUNTS)
        if free < 4 * VACUUM_PAGES or free < pages // 4:  # new items will use them
            return False
        # It frees a page a step and has no columns: `execute` would stop at the first one.
        database.connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        self._written += VACUUM_PAGES << 12
        return True


_PAGE_COUNTS = "freelist_count", "page_count"
