"""Every store keeps every sentence of the protocol."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.servers import RedisServer
from webai_api.protocol import SessionStore
from webai_api.stores.memory import MemoryStore
from webai_api.testing import StoreConformance


class TestMemory(StoreConformance):
    @pytest.fixture
    async def store(self) -> AsyncIterator[SessionStore]:
        async with aclosing(MemoryStore()) as store:
            yield store


class TestSQLite(StoreConformance):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[SessionStore]:
        from webai_api.stores.sqlite import SQLiteStore

        async with aclosing(SQLiteStore(tmp_path / "sessions.db")) as store:
            yield store


class TestRedis(StoreConformance):
    @pytest.fixture
    async def store(self, empty_redis: RedisServer) -> AsyncIterator[SessionStore]:
        from webai_api.stores.redis import RedisStore

        async with aclosing(RedisStore.from_url(empty_redis.url)) as store:
            yield store
