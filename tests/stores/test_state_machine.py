"""Every store answers as the memory store does, whatever is called."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.servers import RedisServer
from tests.stores.machine import Place, StoreMachine
from webai_api.protocol import SessionStore
from webai_api.stores.memory import MemoryStore
from webai_api.types import StoreOptions


def run(machine: type[StoreMachine]) -> None:
    """Run it. To shrink what fails takes minutes, longer than a test may: `HYPOTHESIS_PROFILE=long` does it."""
    if settings.get_current_profile_name() == "long":
        run_state_machine_as_test(machine)
    else:
        run_state_machine_as_test(machine, settings=settings(phases=[Phase.explicit, Phase.generate]))


class MemoryMachine(StoreMachine):
    make_store = MemoryStore


def test_the_memory_store_answers_as_another_of_its_kind() -> None:
    run(MemoryMachine)


def test_the_sqlite_store_answers_as_the_memory_store(tmp_path: Path) -> None:
    from webai_api.stores.sqlite import SQLiteStore

    numbers, path = count(), tmp_path / "none.db"

    def make() -> SessionStore:
        nonlocal path
        path = tmp_path / f"{next(numbers)}.db"
        return SQLiteStore(path)

    def harm(place: Place, session_id: str, seq: int, at: int) -> None:
        tenant, namespace = place
        named = ((tenant or "").encode(), namespace, session_id.encode())
        with closing(sqlite3.connect(path)) as connection, connection:
            found = "SELECT number FROM sessions WHERE tenant = ? AND namespace = ? AND id = ?"
            (number,) = connection.execute(found, named).fetchone()
            done = connection.execute("UPDATE items SET body = x'7bff' WHERE position = ?", ((number << 32) + seq,))
            assert done.rowcount == 1

    class SQLiteMachine(StoreMachine):
        make_store = staticmethod(make)
        damage = staticmethod(harm)

    run(SQLiteMachine)


def test_the_redis_store_answers_as_the_memory_store(
    redis_server: RedisServer, flush_redis: Callable[[], None]
) -> None:
    from redis import Redis

    from webai_api.stores.redis import RedisStore
    from webai_api.stores.redis.keys import session_keys

    def make() -> SessionStore:
        flush_redis()
        return RedisStore.from_url(redis_server.url)

    with closing(Redis.from_url(redis_server.url)) as client:

        def harm(place: Place, session_id: str, seq: int, at: int) -> None:
            tenant, namespace = place
            key = session_keys(StoreOptions(tenant=tenant, namespace=namespace), session_id)[0]
            client.lset(key, at, "{ not JSON")

        class RedisMachine(StoreMachine):
            make_store = staticmethod(make)
            damage = staticmethod(harm)

        run(RedisMachine)
