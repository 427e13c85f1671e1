"""What only the SQLite store has: a file, two threads, group commit, other processes."""

import asyncio
import gc
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path

import pytest

import webai_api
from webai_api.errors import CorruptData, InvalidInput, OutcomeUnknown, StoreError, StoreUnavailable
from webai_api.stores.sqlite import SQLiteStore
from webai_api.stores.sqlite.verbs import Append, Transaction
from webai_api.types import History, Item

SOURCES = str(Path(webai_api.__file__).parents[1])

CHILD = """
import asyncio, os, sys
from webai_api.stores.sqlite import SQLiteStore
from webai_api.types import Item

path, name = sys.argv[1:3]
store = SQLiteStore(path)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
"""


def child(code: str, path: Path, name: str = "child") -> "subprocess.Popen[str]":
    """Start a Python that runs *code* after CHILD, warnings being errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD + code, str(path), name],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )


def said(text: str, item_id: str | None = None) -> Item:
    data = {"role": "user", "content": text}
    return Item(data=data) if item_id is None else Item(id=item_id, data=data)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in a thread or a file
            await asyncio.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    async with aclosing(SQLiteStore(path)) as store:
        yield store


@contextmanager
def tool(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock, as another process would."""
    with tool(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def overwrite(path: Path, text: str) -> None:
    path.write_text(text)


def files(path: Path) -> dict[str, bytes]:
    """Return what is in the folder of *path*."""
    return {p.name: p.read_bytes() for p in path.parent.iterdir()}


def count(path: Path, table: str) -> int:
    with tool(path) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


class TestGroups:
    async def test_calls_that_wait_together_share_a_transaction(self, store: SQLiteStore) -> None:
        replies = await asyncio.gather(*(store.append(f"s{n}", [said("hi")]) for n in range(64)))
        instants = {reply.session.updated_at for reply in replies if reply.session}  # one for each transaction
        assert len(instants) <= 3

    async def test_versions_within_a_group_differ(self, store: SQLiteStore) -> None:
        replies = await asyncio.gather(*(store.append("s", [said("hi")]) for _ in range(64)))
        assert len({reply.session.version for reply in replies if reply.session}) == 64

    async def test_a_call_that_sqlite_refuses_does_not_fail_its_neighbours(
        self, store: SQLiteStore, path: Path
    ) -> None:
        await store.append("s", [])
        with tool(path) as connection:
            connection.execute(
                "CREATE TRIGGER t BEFORE INSERT ON items WHEN NEW.id = CAST('poison' AS BLOB) "
                "BEGIN SELECT raise(ABORT, 'no'); END"
            )
        with locked(path):
            calls = [asyncio.ensure_future(store.append("s", [said("hi", i)])) for i in ("a", "poison", "b")]
            await asyncio.sleep(0.05)
        first, poisoned, last = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(poisoned, StoreError)
        assert not isinstance(first, BaseException)
        assert not isinstance(last, BaseException)
        assert [i.id for i in (await store.read("s")).items] == ["a", "b"]

    async def test_calls_larger_than_a_group_go_alone(self, store: SQLiteStore) -> None:
        large = "x" * 900_000
        replies = await asyncio.gather(*(store.append(f"s{n}", [said(large), said(large)]) for n in range(4)))
        assert [reply.session.count for reply in replies if reply.session] == [2, 2, 2, 2]


class TestWaiting:
    async def test_a_read_does_not_wait_for_the_write_lock(self, store: SQLiteStore, path: Path) -> None:
        await store.append("s", [said("hi")])
        with locked(path):
            append = asyncio.ensure_future(store.append("s", [said("more")]))
            await asyncio.sleep(0.05)
            assert len((await store.read("s")).items) == 1
            assert not append.done()
        await append
        assert len((await store.read("s")).items) == 2

    async def test_a_call_still_queued_at_its_deadline_never_happens(self, store: SQLiteStore, path: Path) -> None:
        await store.append("s", [])
        with locked(path), pytest.raises(StoreUnavailable):
            await store.with_options(deadline=0.1).append("s", [said("late")])
        await store.append("s", [said("next")])
        assert [i.data["content"] for i in (await store.read("s")).items] == ["next"]

    async def test_a_call_under_way_at_its_deadline_has_an_unknown_outcome(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go, append, item = threading.Event(), Transaction.append, said("slow")

        def slow(transaction: Transaction, call: Append) -> History:
            go.wait(10)
            return append(transaction, call)

        await store.append("s", [])
        monkeypatch.setattr(Transaction, "append", slow)
        with pytest.raises(OutcomeUnknown):
            await store.with_options(deadline=0.05).append("s", [item])
        go.set()
        await store.append("s", [item])  # as the error advises
        assert [i.id for i in (await store.read("s")).items] == [item.id]

    async def test_a_cancelled_call_that_is_queued_never_happens(self, store: SQLiteStore, path: Path) -> None:
        await store.append("s", [])
        with locked(path):
            calls = [asyncio.ensure_future(store.append("s", [said(text)])) for text in ("a", "b", "c")]
            await asyncio.sleep(0.02)
            calls[1].cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*calls, return_exceptions=True)
        assert [i.data["content"] for i in (await store.read("s")).items] == ["a", "c"]

    async def test_the_file_can_be_opened_while_another_process_holds_the_write_lock(self, path: Path) -> None:
        async with aclosing(SQLiteStore(path)) as first:
            await first.append("s", [said("hi")])
            async with aclosing(SQLiteStore(path)) as second:
                with locked(path):
                    assert len((await second.read("s")).items) == 1


class TestProcesses:
    async def test_two_processes_lose_and_repeat_nothing(self, store: SQLiteStore, path: Path) -> None:
        code = """
async def main():
    async def caller(k):
        for n in range(20):
            reply = await store.with_options(deadline=30).append("s", [Item(id=f"{name}-{k}-{n}", data={})])
            say(reply.session.version)
    await asyncio.gather(*(caller(k) for k in range(10)))
    await store.aclose()
asyncio.run(main())
"""
        children = [child(code, path, name) for name in ("a", "b")]
        outputs = await asyncio.gather(*(asyncio.to_thread(c.communicate) for c in children))
        assert [c.returncode for c in children] == [0, 0]
        versions = [int(word) for output, _ in outputs for word in output.split()]
        assert len(versions) == len(set(versions)) == 400
        items = (await store.read("s")).items
        assert [i.seq for i in items] == list(range(1, 401))
        assert len({i.id for i in items}) == 400

    @pytest.mark.parametrize("last", [1, 250, 700])
    async def test_what_was_acknowledged_survives_kill_9(self, path: Path, last: int) -> None:
        code = """
import signal
told = 0
async def one(n):
    global told
    await store.with_options(deadline=60).append(f"s{n % 7}", [Item(id=f"m{n}", data={"content": "x" * 10_000})])
    say(f"m{n}")
    told += 1
    if told == int(name):  # the writer is at work on the next group
        os.kill(os.getpid(), signal.SIGKILL)
async def main():
    await asyncio.gather(*(one(n) for n in range(1000)))
asyncio.run(main())
"""
        process = child(code, path, str(last))
        output, _ = await asyncio.to_thread(process.communicate)
        assert process.returncode == -signal.SIGKILL
        acknowledged = output.split()
        assert len(acknowledged) == last
        async with aclosing(SQLiteStore(path)) as store:
            histories = [await store.read(f"s{n}") for n in range(7)]
        stored = [item.id for history in histories for item in history.items]
        assert len(stored) == len(set(stored))
        assert set(acknowledged) <= set(stored)
        for history in histories:
            assert [i.seq for i in history.items] == list(range(1, len(history.items) + 1))

    def test_an_open_store_does_not_keep_the_interpreter(self, path: Path) -> None:
        process = child("asyncio.run(store.append('s', [Item(data={})]))\nsay('done')", path)
        output, _ = process.communicate(timeout=20)
        assert (output, process.returncode) == ("done\n", 0)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_store_that_was_used_before_a_fork_works_in_both(self, path: Path) -> None:
        code = """
import warnings
warnings.simplefilter("ignore")  # newer Pythons warn of a fork while there are threads, which is the point here
asyncio.run(store.append("s", [Item(data={})]))
pid = os.fork()
asyncio.run(store.append("s", [Item(data={})]))
if pid == 0:
    asyncio.run(store.aclose())
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
asyncio.run(store.append("s", [Item(data={})]))
say(len(asyncio.run(store.read("s")).items))
asyncio.run(store.aclose())
"""
        process = child(code, path)
        output, _ = process.communicate(timeout=20)
        assert (output, process.returncode) == ("4\n", 0)


class TestLoops:
    def test_one_store_works_in_one_loop_after_another(self, path: Path) -> None:
        store = SQLiteStore(path)
        for n in range(3):
            asyncio.run(store.append("s", [said(str(n))]))
        assert len(asyncio.run(store.read("s")).items) == 3
        asyncio.run(store.aclose())

    def test_many_loops_at_once_share_a_store(self, path: Path) -> None:
        store = SQLiteStore(path)

        async def work(n: int) -> None:
            await asyncio.gather(*(store.append("s", [said(f"{n}-{k}")]) for k in range(20)))

        threads = [threading.Thread(target=asyncio.run, args=(work(n),)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = {i.data["content"] for i in asyncio.run(store.read("s")).items}
        assert texts == {f"{n}-{k}" for n in range(8) for k in range(20)}
        asyncio.run(store.aclose())

    def test_a_loop_that_ends_with_calls_under_way_harms_nobody(self, path: Path) -> None:
        store = SQLiteStore(path)

        async def leave() -> None:
            await store.append("s", [])
            with locked(path):
                task = asyncio.ensure_future(store.append("s", [said("abandoned")]))
                await asyncio.sleep(0.01)
                task.cancel()

        asyncio.run(leave())
        asyncio.run(store.append("s", [said("after")]))
        assert [i.data["content"] for i in asyncio.run(store.read("s")).items] == ["after"]
        asyncio.run(store.aclose())


class TestClosing:
    async def test_closing_writes_what_is_queued(self, path: Path) -> None:
        store = SQLiteStore(path)
        calls = [asyncio.ensure_future(store.append("s", [said(str(n))])) for n in range(100)]
        await asyncio.sleep(0)
        await store.aclose()
        await asyncio.gather(*calls)
        async with aclosing(SQLiteStore(path)) as again:
            assert len((await again.read("s")).items) == 100

    async def test_closing_leaves_one_file_and_is_final(self, store: SQLiteStore, path: Path) -> None:
        await store.append("s", [said("hi")])
        await store.read("s")
        await asyncio.gather(store.aclose(), store.aclose())
        await store.aclose()
        assert list(files(path)) == [path.name]
        for call in (store.append("s", []), store.read("s"), store.delete("s"), store.remove("s", [])):
            with pytest.raises(StoreError, match="closed"):
                await call

    async def test_a_store_that_is_never_used_creates_nothing(self, path: Path) -> None:
        await SQLiteStore(path / "deeper" / "sessions.db").aclose()
        assert files(path) == {}

    async def test_a_store_that_is_dropped_ends_its_threads(self, path: Path) -> None:
        before = set(threading.enumerate())
        store = SQLiteStore(path)
        await store.append("s", [])
        await store.read("s")
        assert len(set(threading.enumerate()) - before) == 2
        del store
        gc.collect()
        await until(lambda: not set(threading.enumerate()) - before)

    async def test_a_cancelled_close_still_closes(self, store: SQLiteStore) -> None:
        await store.append("s", [])
        task = asyncio.ensure_future(store.aclose())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.aclose()
        with pytest.raises(StoreError):
            await store.read("s")


class TestFile:
    async def test_folder_and_file_are_for_this_user_only(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "sessions.db"
        async with aclosing(SQLiteStore(path)) as store:
            await store.append("s", [])
            modes = {p.name: p.stat().st_mode & 0o777 for p in path.parent.iterdir()}
        assert modes == dict.fromkeys(("sessions.db", "sessions.db-wal", "sessions.db-shm"), 0o600)
        assert [(tmp_path / p).stat().st_mode & 0o777 for p in ("a", "a/b")] == [0o700, 0o700]

    async def test_a_newer_format_is_refused(self, store: SQLiteStore, path: Path) -> None:
        await store.append("s", [])
        await store.aclose()
        with tool(path) as connection:
            connection.execute("PRAGMA user_version = 99")
        async with aclosing(SQLiteStore(path)) as old:
            for call in (old.append("s", []), old.read("s")):
                with pytest.raises(StoreError, match="upgrade webai-api"):
                    await call

    async def test_another_programs_database_is_refused_and_left_alone(self, store: SQLiteStore, path: Path) -> None:
        with tool(path) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        with pytest.raises(StoreError, match="another program"):
            await store.append("s", [])
        with tool(path) as connection:
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]

    async def test_a_file_that_is_no_database_is_refused(self, store: SQLiteStore, path: Path) -> None:
        overwrite(path, "My diary, chapter one. " * 100)
        for call in (store.append("s", []), store.read("s")):
            with pytest.raises(CorruptData, match="not an SQLite database"):
                await call
        assert files(path)[path.name].startswith(b"My diary")

    async def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        async with aclosing(SQLiteStore(tmp_path)) as store:
            with pytest.raises(StoreError, match=r"cannot be opened"):
                await store.append("s", [])

    async def test_a_folder_that_cannot_be_created_is_named(self, path: Path) -> None:
        overwrite(path, "")
        async with aclosing(SQLiteStore(path / "sessions.db")) as store:
            with pytest.raises(StoreError, match=r"sessions\.db"):
                await store.append("s", [])

    @pytest.mark.parametrize("bad", ["", ".", ":memory:", "a\0b"])
    def test_a_path_that_names_no_file_is_refused(self, bad: str) -> None:
        with pytest.raises(InvalidInput):
            SQLiteStore(bad)

    async def test_a_read_only_file_can_be_read_and_says_so_to_writers(self, tmp_path: Path) -> None:
        path = tmp_path / "sessions.db"
        async with aclosing(SQLiteStore(path)) as store:
            await store.append("s", [said("hi")])
        code = """
async def main():
    if os.geteuid() == 0:
        os.setegid(65534); os.seteuid(65534)  # nobody; root may write anything
    say(len((await store.read("s")).items))
    try:
        await store.append("s", [])
    except Exception as error:
        say(type(error).__name__, "read-only" in str(error))
    await store.aclose()
asyncio.run(main())
"""
        path.chmod(0o444)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(folder.stat().st_mode | (0o777 if folder == tmp_path else 0o755))
        output, _ = await asyncio.to_thread(child(code, path).communicate)
        assert output == "1\nStoreError True\n"

    async def test_it_works_again_once_the_file_does(self, store: SQLiteStore, path: Path) -> None:
        overwrite(path, "no database " * 100)
        with pytest.raises(CorruptData):
            await store.append("s", [])
        for file in path.parent.iterdir():
            file.unlink()
        await store.append("s", [said("hi")])
        assert len((await store.read("s")).items) == 1

    async def test_a_file_that_was_removed_is_not_written_to_any_more(
        self, store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("s", [said("old")])
        await store.read("s")
        for file in path.parent.iterdir():
            file.unlink()
        await store.append("s", [said("new")])
        assert [i.data["content"] for i in (await store.read("s")).items] == ["new"]
        assert count(path, "items") == 1
        assert "moved or removed" in caplog.text

    async def test_an_idle_store_neither_creates_the_file_anew_nor_keeps_trying(
        self, store: SQLiteStore, path: Path
    ) -> None:
        await store.append("s", [])
        writer = store._engine.writer
        for file in path.parent.iterdir():
            file.unlink()
        await until(lambda: writer._database is None)
        assert files(path) == {}
        rounds, serve = 0, writer._round

        def counted() -> None:
            nonlocal rounds
            rounds += 1
            serve()

        writer._round = counted  # type: ignore[method-assign]  # to see how often it looks
        overwrite(path, "no database " * 100)
        with pytest.raises(CorruptData):
            await store.append("s", [])
        await asyncio.sleep(0.1)
        assert rounds == 1

    async def test_a_full_disk_is_unavailable_and_changes_nothing(self, store: SQLiteStore, path: Path) -> None:
        await store.append("s", [said("hi")])
        writer = store._engine.writer
        await writer.run(lambda t: t.execute("PRAGMA max_page_count = 1"), seconds=5)  # as small as the file is
        with pytest.raises(StoreUnavailable, match="full"):
            await store.append("s", [said("x" * 1_000_000)])
        assert len((await store.read("s")).items) == 1
        await writer.run(lambda t: t.execute("PRAGMA max_page_count = 1000000"), seconds=5)
        await store.append("s", [said("x" * 1_000_000)])
        assert len((await store.read("s")).items) == 2


class TestDamage:
    async def test_damaged_items_are_left_out_and_named(
        self, store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("s", [said(f"secret {n}", f"i{n}") for n in range(1, 7)])
        with tool(path) as connection:
            for seq, body in ((2, b'{"secret'), (4, b"[]"), (5, b"\xff\xfe")):
                connection.execute("UPDATE items SET body = ? WHERE position & 0xffffffff = ?", (body, seq))
        with caplog.at_level(logging.WARNING, "webai_api"):
            history = await store.read("s")
        assert [i.seq for i in history.items] == [1, 3, 6]
        assert history.corrupt == (2, 4, 5)
        assert "'s'" in caplog.text
        assert "secret" not in caplog.text
        newest = await store.read("s", last=2)
        assert ([i.seq for i in newest.items], newest.corrupt) == ([3, 6], (4, 5))
        assert newest.session is not None
        assert newest.session.count == 6
        assert (await store.append("s", [said("more")], after=4)).corrupt == (5,)
        assert (await store.remove("s", ["i2", "i4", "i5"])).ids == ("i2", "i4", "i5")
        assert (await store.read("s")).corrupt == ()

    @pytest.mark.parametrize("column", ["version = 'x'", "metadata = '{'", "last_seq = NULL", "metadata = X'FF'"])
    async def test_damaged_bookkeeping_can_only_be_deleted(
        self, store: SQLiteStore, path: Path, column: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("s", [said("hi", "i")])
        await store.append("t", [said("hi")])
        with tool(path) as connection:
            connection.execute("PRAGMA writable_schema = ON")  # NOT NULL is in the way of one case
            connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'INTEGER NOT NULL', 'INTEGER')")
        with tool(path) as connection:
            connection.execute(f"UPDATE sessions SET {column} WHERE id = CAST('s' AS BLOB)")
        for call in (store.read("s"), store.append("s", [said("x")]), store.remove("s", ["i"])):
            with pytest.raises(CorruptData, match="'s'"):
                await call
        with tool(path) as connection:
            assert connection.execute("SELECT count(*) FROM items").fetchone() == (2,)  # what raised stored nothing
        assert [s.id async for s in store.sessions()] == ["t"]
        assert await store.delete("s") is True
        assert (await store.read("s")).session is None
        assert (await store.append("s", [said("anew")], expected=0)).session is not None


class TestTime:
    async def test_versions_grow_though_the_clock_steps_back_and_the_store_restarts(self, path: Path) -> None:
        versions = []
        for now in (2e9, 1e9, 1e9):
            async with aclosing(SQLiteStore(path, clock=lambda now=now: now)) as store:  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                for _ in range(2):
                    session = (await store.append("s", [said("hi")])).session
                    assert session is not None
                    versions.append(session.version)
                    await store.delete("s")
        assert versions == sorted(set(versions))

    async def test_named_answers_survive_a_restart(self, path: Path) -> None:
        async with aclosing(SQLiteStore(path)) as store:
            await store.append("s", [said("hi", "i")], metadata={"a": [1, "é"]})
            await store.append("gone", [])
            removal = await store.remove("s", ["i"], op_id="r")
            assert await store.delete("gone", op_id="d")
        async with aclosing(SQLiteStore(path)) as store:
            assert await store.remove("s", ["i"], op_id="r") == removal
            assert await store.delete("gone", op_id="d") is True
            assert await store.delete("gone", op_id="e") is False

    async def test_what_has_expired_leaves_the_file_and_the_file_shrinks(self, path: Path) -> None:
        now = 1e9
        async with aclosing(SQLiteStore(path, clock=lambda: now)) as store:
            await store.append("stays", [said("hi")])
            for n in range(3):
                await store.append(f"s{n}", [said("x" * 4000) for _ in range(1500)], ttl=10)
            await store.remove("s1", [], op_id="r")
            await store.delete("none", op_id="d")
            now += 100
            assert [s.id async for s in store.sessions()] == ["stays"]
            await until(lambda: count(path, "items") == 1)
            await until(lambda: count(path, "removals") + count(path, "deletions") + count(path, "garbage") == 0)
            assert count(path, "sessions") == 1

            def pages() -> int:
                with tool(path) as connection:
                    return int(connection.execute("PRAGMA page_count").fetchone()[0])

            await until(lambda: pages() < 1500)

    async def test_a_large_session_that_was_deleted_never_shows_in_the_next_one(self, store: SQLiteStore) -> None:
        await store.append("s", [said(str(n), f"i{n}") for n in range(5000)])
        assert await store.delete("s")
        for n in range(3):  # while the old items wait to be dropped
            await store.append(f"s{n}", [said("new", "i0")])
            assert [i.data["content"] for i in (await store.read(f"s{n}")).items] == ["new"]


class TestCost:
    async def test_an_append_costs_the_same_however_long_the_session_is(self, store: SQLiteStore) -> None:
        ticks = 0

        def tick() -> int:
            nonlocal ticks
            ticks += 1
            return 0

        def watch(transaction: Transaction) -> None:
            cursor: sqlite3.Cursor = transaction.execute.__self__  # type: ignore[attr-defined]  # a bound method has it
            cursor.connection.set_progress_handler(tick, 1)  # called at every step of SQLite's virtual machine

        async def steps(session_id: str, length: int) -> int:
            await store.append(session_id, [said(str(n)) for n in range(length)])
            await store.append(session_id, [said("the next")])
            before = ticks
            await store.append(session_id, [said("and the next")], keep=length, after=length - 5)
            return ticks - before

        await store._engine.writer.run(watch, seconds=5)
        short, long = await steps("short", 200), await steps("long", 10_000)
        assert 0 < long < short + 200
