"""Servers that are away, come back, refuse or never answer; and loops that come and go."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from typing import Any

import pytest
from hiredis import Reader
from redis import Redis

from tests.servers import RedisServer, free_port
from webai_api import AuthenticationFailed, OutcomeUnknown, StoreError, StoreUnavailable
from webai_api.stores.redis import RedisStore
from webai_api.testing.vocabulary import contents, numbered, said

DEADLINE = 0.25  # seconds
GRACE = 1.5  # what a loaded machine may need above it


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@asynccontextmanager
async def fake_server(reply: bytes) -> AsyncIterator[int]:
    """A server that answers every command with *reply*; gives its port."""

    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        parser = Reader()
        with suppress(OSError):
            while received := await reader.read(65536):
                parser.feed(received)
                while (command := parser.gets()) is not False:
                    writer.write(b"+OK\r\n" if command[0] == b"CLIENT" else reply)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*filter(None, serving))  # they end when the client has hung up


@asynccontextmanager
async def impatient(port: int) -> AsyncIterator[RedisStore]:
    async with aclosing(RedisStore.from_url(f"redis://127.0.0.1:{port}/0").with_options(deadline=DEADLINE)) as store:
        yield store


async def assert_unavailable(store: RedisStore, match: str = "in time") -> None:
    for call in (store.append("s", [said("x")], ttl=10), store.read("s"), store.remove("s", ["a"]), store.delete("s")):
        with within(DEADLINE + GRACE), pytest.raises(StoreUnavailable, match=match):
            await call


async def test_a_port_nobody_listens_on_is_unavailable_within_the_deadline() -> None:
    async with impatient(free_port()) as store:
        await assert_unavailable(store, r"127\.0\.0\.1:[0-9]+ cannot be reached")


async def test_a_host_that_swallows_connections_is_unavailable_within_the_deadline() -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for client in (first, second):  # the backlog is full now: the next SYN gets no answer
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        async with impatient(listener.getsockname()[1]) as store:
            await assert_unavailable(store)


async def test_a_server_that_hung_before_the_first_call_is_unavailable_within_the_deadline() -> None:
    async with fake_server(b"") as port, impatient(port) as store:
        await assert_unavailable(store)


@pytest.mark.parametrize("verb", ["append", "remove", "delete"])
async def test_a_server_that_hangs_leaves_a_write_unknown_and_a_read_unavailable(verb: str) -> None:
    with RedisServer() as server:
        async with impatient(server.port) as store:
            writes: dict[str, Callable[[], Awaitable[Any]]] = {
                "append": lambda: store.append("s", [said("x", "x")]),
                "remove": lambda: store.remove("s", ["a"]),
                "delete": lambda: store.delete("t"),
            }
            await store.append("s", numbered(1), ttl=100)  # connects: a write that had to would know it sent nothing
            await asyncio.gather(*store._index._chores)
            server.pause()
            with within(DEADLINE + GRACE), pytest.raises(OutcomeUnknown, match="same ids"):
                await writes[verb]()
            with within(DEADLINE + GRACE), pytest.raises(StoreUnavailable):
                await store.read("s")
            server.resume()
            patient = store.with_options(deadline=5)
            await patient.append("s", [said("x", "x")])
            assert await contents(patient, "s") == ["i0", "x"]


@pytest.mark.parametrize("word", ["LOADING", "CLUSTERDOWN", "BUSY", "READONLY"])
async def test_a_server_that_refuses_for_now_is_unavailable_within_the_deadline(word: str) -> None:
    async with fake_server(f"-{word} not now\r\n".encode()) as port, impatient(port) as store:
        await assert_unavailable(store)
        store._dispatcher._probed = True  # so that calls of two commands are refused, too
        await assert_unavailable(store)


async def test_a_server_that_wants_a_password_by_now_refuses_calls_of_two_commands() -> None:
    async with fake_server(b"-NOAUTH Authentication required.\r\n") as port, impatient(port) as store:
        store._dispatcher._probed = True
        for call in (store.append("s", [said("x")], ttl=10), store.read("s")):
            with within(DEADLINE), pytest.raises(AuthenticationFailed):
                await call


async def test_a_replica_refuses_with_unavailable_and_stores_nothing() -> None:
    replica = {"replicaof": f"127.0.0.1 {free_port()}", "replica-read-only": "yes", "replica-serve-stale-data": "yes"}
    with RedisServer(config=replica) as server, closing(Redis.from_url(server.url)) as raw:
        async with impatient(server.port) as store:
            await assert_unavailable(store)
            store._dispatcher._probed = True
            with pytest.raises(StoreUnavailable):
                await store.append("s", [said("x")], ttl=10)
        assert raw.dbsize() == 0


async def test_a_server_without_the_scripts_commands_says_which_version_is_needed() -> None:
    async with fake_server(b"-ERR unknown command 'ZMSCORE'\r\n") as port, impatient(port) as store:
        with pytest.raises(StoreError, match=r"6\.2"):
            await store.read("s")


async def test_what_was_acknowledged_is_there_after_a_restart_between_two_calls() -> None:
    with RedisServer(appendonly=True) as server:
        async with aclosing(RedisStore.from_url(server.url)) as store:
            # Many connections, each of which is dead after the restart: one call must not have to try them all.
            await asyncio.gather(*(store.append(f"s{n}", numbered(2), ttl=1000) for n in range(100)))
            versions = {n: (await store.read(f"s{n}")).session for n in range(0, 100, 9)}
            server.stop()
            server.start()
            with within(1 + GRACE):
                await store.append("s0", [said("x", "x")])
            assert await contents(store, "s0") == ["i0", "i1", "x"]
            for n in range(9, 100, 9):
                assert (await store.read(f"s{n}")).session == versions[n]


async def test_a_call_waits_for_a_server_that_comes_back_within_its_deadline() -> None:
    with RedisServer(appendonly=True) as server:
        async with aclosing(RedisStore.from_url(server.url)) as store:
            await store.append("s", numbered(1))
            server.kill()
            append = asyncio.create_task(store.append("s", [said("x", "x")]))
            await asyncio.sleep(0.2)
            assert not append.done()
            await asyncio.to_thread(server.start)
            await append
            assert await contents(store, "s") == ["i0", "x"]


async def test_more_calls_than_connections_wait_for_one(empty_redis: RedisServer) -> None:
    with closing(Redis.from_url(empty_redis.url)) as raw:
        async with aclosing(RedisStore.from_url(empty_redis.url)) as store:
            await asyncio.gather(*(store.append(f"s{n}", numbered(1), ttl=100) for n in range(500)))
            assert raw.info("clients")["connected_clients"] <= 40
        for _ in range(200):
            if raw.info("clients")["connected_clients"] == 1:
                break
            await asyncio.sleep(0.02)
        assert raw.info("clients")["connected_clients"] == 1


def test_one_store_works_in_two_loops_one_after_the_other(empty_redis: RedisServer) -> None:
    store = RedisStore.from_url(empty_redis.url)

    async def write(item_id: str) -> None:
        await asyncio.gather(*(store.append("s", [said("x", f"{item_id}{n}")]) for n in range(40)))

    asyncio.run(write("a"))
    asyncio.run(write("b"))

    async def look() -> None:
        assert len(await contents(store, "s")) == 80
        await store.aclose()

    asyncio.run(look())


def test_one_store_works_in_two_loops_at_once(empty_redis: RedisServer) -> None:
    store = RedisStore.from_url(empty_redis.url)

    async def write(item_id: str) -> None:
        for n in range(50):
            await store.append("s", [said("x", f"{item_id}{n}")])

    threads = [threading.Thread(target=lambda name=name: asyncio.run(write(name))) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def look() -> None:
        assert len(await contents(store, "s")) == 150
        await store.aclose()

    asyncio.run(look())


PROGRAM = """
import asyncio, sys
from webai_api import Item
from webai_api.stores.redis import RedisStore

store = RedisStore.from_url(sys.argv[1])

async def use():
    await asyncio.gather(*(store.append(f"s{n}", [Item(data={})], ttl=100) for n in range(100)))
    abandoned = asyncio.create_task(store.read("s1"))
    await asyncio.sleep(0)

asyncio.run(use())
asyncio.run(use())
print("done")
"""


def test_loops_that_end_leave_no_connection_open(empty_redis: RedisServer) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, empty_redis.url]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, env={**os.environ, "PYTHONPATH": path}
    )
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]  # a slow machine
    assert (done.returncode, done.stdout, complaints) == (0, "done\n", [])
