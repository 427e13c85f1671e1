"""Connections to Redis: the only module that knows where the server is and how to reach it.

A connection belongs to the event loop it was made on, and to one exchange at a time. Whoever is interrupted in an
exchange, for whatever reason, closes the connection: no reply can ever reach another caller.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit
from weakref import WeakKeyDictionary

from redis.asyncio import Connection, Redis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

from webai_api.errors import InvalidInput, StoreError

__all__ = ["Commands", "Connections", "NotSent", "connection_options"]

MAX_CONNECTIONS = 32  # per event loop; callers above it wait, which counts against their deadline
STALL_TIMEOUT = 1.0  # seconds without a byte after which a server is taken to be gone
URL_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})

_logger = logging.getLogger("webai_api")


class NotSent(Exception):
    """The server could not be reached, or refused the connection: nothing was sent, so nothing happened."""


class Commands(list[Sequence[Any]]):
    """Commands that travel together."""

    sent = False  # whether a byte of them may have left: until then, an interruption means that nothing happened


def connection_options(url: str) -> dict[str, Any]:
    """Return what redis-py's connection class takes, from a ``redis://`` or ``rediss://`` URL.

    Raises:
        InvalidInput: the URL is malformed or has options we do not take; never repeats its password.
    """
    try:
        parts = urlsplit(url)
        host, port, unknown = parts.hostname, parts.port, set(parse_qs(parts.query)) - URL_OPTIONS
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError:  # its text may hold a part of the password
        raise InvalidInput("the Redis URL is malformed: redis://[user:password@]host[:port][/database]") from None
    if parts.scheme == "rediss":
        options.setdefault("ssl_check_hostname", True)  # redis-py before 6 would not
    if not host or port == 0 or not re.fullmatch(r"(/[0-9]{0,6})?", parts.path) or parts.fragment:
        raise InvalidInput("a Redis URL is redis://[user:password@]host[:port][/database], the database a number")
    if unknown:
        # Not which: in a URL whose password is not percent-encoded, they may be a part of it.
        raise InvalidInput(f"the Redis URL has options that are not known; known: {', '.join(sorted(URL_OPTIONS))}")
    return options


class Connections:
    """Connections to one server, a small pool for each event loop."""

    def __init__(self, url: str) -> None:
        options = connection_options(url)
        self._url = url
        self._client: Redis | None = None
        self._class: type[AbstractConnection] = options.pop("connection_class", Connection)
        self._options = {
            **options,
            "protocol": 2,
            "socket_timeout": STALL_TIMEOUT,
            "socket_connect_timeout": STALL_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),  # redis-py 6 and later re-send writes by themselves; re-sending is ours
            "health_check_interval": 0,
        }
        self.host, self.port = options.get("host", "localhost"), options.get("port", 6379)
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()
        self._closed = False
        self._warned = False

    async def exchange(self, commands: Commands) -> list[Any]:
        """Send the commands in one write and return their replies, in order; error replies as exceptions in the list.

        Raises:
            NotSent: no connection could be made, or the server refused the credentials; the cause tells.
            RedisError, OSError: the connection broke; the commands may have been executed.
        """
        if self._closed:
            raise StoreError("this store is closed")
        pool = await self._pool()
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        async with pool.room:
            connection = pool.idle.pop() if pool.idle else self._class(**self._options)
            try:
                if not connection.is_connected:
                    await self._connect(connection)
                _heed(task, cancels)
                packed = connection.pack_commands(commands)
                commands.sent = True
                await connection.send_packed_command(packed, check_health=False)
                replies = [await _reply(connection) for _ in commands]
                _heed(task, cancels)
            except BaseException as error:
                await connection.disconnect(nowait=True)
                if isinstance(error, RedisError | OSError):
                    await pool.drop_idle()  # as stale as this one, probably; trying each would use up the deadline
                raise
            if pool.closed:
                await connection.disconnect(nowait=True)
            else:
                pool.idle.append(connection)
            return replies

    def client(self) -> Redis:
        """Return a redis-py client of the same server, always the same one; it has connections of its own."""
        if self._client is None:
            self._client = Redis.from_url(self._url, decode_responses=True)
        return self._client

    async def aclose(self) -> None:
        """Close the connections of this loop now, and those of other running loops as soon as they come to it."""
        self._closed = True
        if self._client is not None:
            await self._client.aclose()
        here = asyncio.get_running_loop()
        for loop, pool in list(self._pools.items()):
            if loop is here:
                await pool.guard.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(pool.guard.aclose(), loop)

    async def _connect(self, connection: AbstractConnection) -> None:
        try:
            try:
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py gives it no types
            except AuthenticationError as error:
                if "without any password configured" not in str(error):
                    raise
                if not self._warned:
                    _logger.warning("a Redis password is set, but the server at %s:%s has none", self.host, self.port)
                self._warned = True
                connection.password = None  # of this connection only: the server may be given one later
                await connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise NotSent(str(error)) from error

    async def _pool(self) -> "_Pool":
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = _Pool()
            await anext(pool.guard)
        return pool


class _Pool:
    """The connections of one event loop, the one used last on top."""

    def __init__(self) -> None:
        self.idle: list[AbstractConnection] = []
        self.room = asyncio.Semaphore(MAX_CONNECTIONS)
        self.closed = False
        self.guard = self._guard()

    async def _guard(self) -> AsyncGenerator[None, None]:
        # An asynchronous generator that was begun is closed by the loop's own shutdown (`asyncio.run` does that), so
        # a manager that outlives a loop leaves no open connection behind.
        try:
            yield
        finally:
            self.closed = True
            await self.drop_idle()

    async def drop_idle(self) -> None:
        while self.idle:
            await self.idle.pop().disconnect(nowait=True)


def _heed(task: "asyncio.Task[Any] | None", cancels: int) -> None:
    """Raise if the task was cancelled meanwhile: asyncio.wait_for of Python 3.11, which redis-py uses, swallows that.

    See https://github.com/python/cpython/issues/86296, mended in 3.12.
    """
    if task is not None and task.cancelling() > cancels:
        raise asyncio.CancelledError


async def _reply(connection: AbstractConnection) -> object:
    try:
        # By itself, redis-py closes the connection on LOADING and NOAUTH too, and loses the answers to the commands
        # behind them, which are refusals as certain. On everything else the caller closes it.
        return await connection.read_response(disconnect_on_error=False)
    except (ResponseError, BusyLoadingError, AuthenticationError) as error:  # an answer, and the connection is good
        return error
