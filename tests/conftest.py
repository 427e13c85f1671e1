"""One `store` fixture over all stores, one Redis server for the whole run, and what the header says."""

import os
import platform
import socket
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.servers import RedisServer, redis_binary
from webai_api.protocol import SessionStore
from webai_api.urls import open_store

pytest.register_assert_rewrite("tests.stores.machine")

settings.register_profile(
    "default",
    deadline=None,  # a loaded machine is slow, not wrong
    max_examples=80,
    stateful_step_count=30,
    derandomize=True,  # the same examples every time; `HYPOTHESIS_PROFILE=long` looks for new ones
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile(
    "long", parent=settings.get_profile("default"), max_examples=800, stateful_step_count=60, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_report_header() -> list[str]:
    """Say what is tested with what."""
    try:
        server = subprocess.run([redis_binary(), "--version"], capture_output=True, text=True, check=True).stdout
        server = " ".join(server.split()[:3])
    except FileNotFoundError as error:
        server = f"NO SERVER ({error})"
    try:
        client = metadata.version("redis")
    except metadata.PackageNotFoundError:
        client = "none"
    return [f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {server}, redis-py {client}"]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for all tests of a run. It may hold what another test left: ask for `empty_redis`."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def flush_redis(redis_server: RedisServer) -> Callable[[], None]:
    """Empties the server of the run, in less than a millisecond; so ids need no tenant of their own."""

    def flush() -> None:
        with socket.create_connection(("127.0.0.1", redis_server.port), timeout=10) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(100) == b"+OK\r\n"

    return flush


@pytest.fixture
def empty_redis(redis_server: RedisServer, flush_redis: Callable[[], None]) -> RedisServer:
    """The server of the run, emptied."""
    flush_redis()
    return redis_server


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionStore]:
    """An empty store: the test runs once with each kind."""
    if request.param == "redis":
        url = request.getfixturevalue("empty_redis").url
    else:
        url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/sessions.db"}[request.param]
    async with aclosing(open_store(url)) as opened:
        yield opened
