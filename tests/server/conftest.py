from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from tests.server.harness import FakeUpstream, Running, fake_upstream, running, server_settings
from webai_api.protocol import SessionStore
from webai_api.stores.memory import MemoryStore


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    """An upstream for the models ``fake-*``."""
    async with fake_upstream() as fake:
        yield fake


@pytest.fixture
async def memory() -> AsyncIterator[SessionStore]:
    async with aclosing(MemoryStore()) as store:
        yield store


@pytest.fixture
async def server(upstream: FakeUpstream, memory: SessionStore) -> AsyncIterator[Running]:
    """A server with the defaults, a memory store, `demo`, and the fake upstream."""
    async with running(server_settings(**upstream.environ), memory) as serving:
        yield serving
