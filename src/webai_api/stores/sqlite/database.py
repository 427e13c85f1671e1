"""Opening a database file, and SQLite's errors in our words."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import resources
from pathlib import Path

from webai_api.errors import CorruptData, StoreError, StoreUnavailable

__all__ = ["APPLICATION_ID", "FORMAT", "Database", "is_busy", "is_in_doubt", "translated"]

APPLICATION_ID = 0x77656241  # "webA": tells our files from other programs'
FORMAT = 1  # of the tables; kept in user_version
BUSY_TIMEOUT = 100  # ms that SQLite waits for a lock by itself; the rest is the worker's, which knows deadlines
JOURNAL_LIMIT = 64 << 20  # bytes; a write-ahead log that a burst made larger is cut back to this
STATEMENTS = 128  # prepared statements kept per connection, more than the store has

# One at a time within the process: see _create.
_creating = threading.Lock()

_CAUSES: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreUnavailable, "is locked by another program; try again"),
    sqlite3.SQLITE_LOCKED: (StoreUnavailable, "is locked by another program; try again"),
    sqlite3.SQLITE_PROTOCOL: (StoreUnavailable, "is locked by another program; try again"),
    sqlite3.SQLITE_FULL: (StoreUnavailable, "cannot grow: the disk is full; free some space"),
    sqlite3.SQLITE_NOMEM: (StoreUnavailable, "needs more memory than there is"),
    sqlite3.SQLITE_NOTADB: (CorruptData, "is not an SQLite database; give another path, or restore it from a backup"),
    sqlite3.SQLITE_CORRUPT: (CorruptData, "is damaged; restore a backup, or try the sqlite3 tool's .recover"),
    sqlite3.SQLITE_READONLY: (StoreError, "is read-only; let this user write to the file and to its folder"),
    sqlite3.SQLITE_PERM: (StoreError, "may not be opened; let this user read and write the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: (StoreError, "cannot be opened; it must be a file in a folder this user may write to"),
    sqlite3.SQLITE_IOERR: (StoreError, "could not be read or written; look at the disk and the system's log"),
}


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another connection's lock is the cause, so that waiting helps."""
    return _primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_in_doubt(error: sqlite3.Error) -> bool:
    """Return whether a COMMIT that failed so may yet show after a crash: its end was written, but not surely."""
    return _primary(error) == sqlite3.SQLITE_IOERR


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite or the file system raises within into a StoreError that names the file and a remedy."""
    try:
        yield
    except sqlite3.Error as error:
        # Not SQLite's own sentence, which can quote what is stored.
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        kind, cause = _CAUSES.get(_primary(error), (StoreError, "failed"))
        raise kind(f"sqlite: {path} {cause} ({name})") from error
    except OSError as error:
        raise StoreError(f"sqlite: {path} cannot be opened: {error.strerror}; is its folder writable?") from error


class Database:
    """One connection to the store's file. It belongs to the thread that opened it.

    Opening creates what is missing: folders and file, for this user only, and the tables.

    Raises:
        sqlite3.Error, OSError: as they come; see `translated`.
        StoreError: another program's file, or a newer format.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        _create(path)
        self.path = path
        self.connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT / 1000, isolation_level=None, cached_statements=STATEMENTS
        )
        try:
            self._prepare()
            self._file = self._stat()
            if read_only:
                self.connection.execute("PRAGMA query_only = ON")
        except BaseException:
            self.connection.close()
            raise

    def moved(self) -> bool:
        """Return whether the path leads to another file by now, or to none: what is written here would be lost."""
        return self._stat() != self._file

    def checkpoint(self, mode: str) -> None:
        """Copy the write-ahead log into the database, as far as readers allow.

        SQLite 3.7.0 to 3.51.2 can corrupt a file when one process commits while another one checkpoints. Every mode
        but PASSIVE holds the write lock, which keeps the two apart; so SQLite's own, passive checkpoints are off.
        """
        self.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _prepare(self) -> None:
        run = self.connection.execute
        (application,) = run("PRAGMA application_id").fetchone()
        (tables,) = run("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (application or tables):
            raise StoreError(f"sqlite: {self.path} belongs to another program; give another path")
        if not tables:
            run("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table, or it has no effect
        if run("PRAGMA journal_mode").fetchone() != ("wal",):
            run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # acknowledged means on disk
        run("PRAGMA secure_delete = ON")  # deleted means deleted: no text stays in free pages
        run("PRAGMA fullfsync = ON")  # macOS: through the drive's own cache; elsewhere without effect
        run("PRAGMA wal_autocheckpoint = 0")  # see checkpoint
        run(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT}")
        if not self._format():
            self._create_tables()
        if (found := self._format()) > FORMAT:
            raise StoreError(
                f"sqlite: {self.path} was written by a newer webai-api (format {found}, this one knows {FORMAT}); "
                "upgrade webai-api, or give another path"
            )

    def _format(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def _create_tables(self) -> None:
        script = resources.files("webai_api.stores.sqlite").joinpath("schema.sql").read_text("utf-8")
        with closing(self.connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                if not self._format():  # another process may have been quicker
                    for statement in _statements(script):
                        cursor.execute(statement)
                    cursor.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    cursor.execute(f"PRAGMA user_version = {FORMAT}")
                cursor.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _create(path: Path) -> None:
    """Create file and folders where missing, readable for this user only. SQLite gives its side files the same mode."""
    # Never open a file that exists: closing it would drop the locks that SQLite holds on it elsewhere in this process.
    with _creating:
        if path.exists():
            return
        if path.is_symlink():  # what it points to would be made by SQLite, readable for everybody
            raise StoreError(f"sqlite: {path} is a link that leads nowhere; remove it, or make what it points to")
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError):  # another process was quicker
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
