"""What a server refuses: a full memory, a command the account may not run, a password."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

import pytest
from redis import Redis

from tests.servers import RedisServer
from webai_api import AuthenticationFailed, InvalidInput, Item, StoreError, StoreUnavailable
from webai_api.stores.redis import RedisStore
from webai_api.stores.redis.keys import session_keys
from webai_api.testing.vocabulary import contents, listed, numbered, present, said
from webai_api.types import StoreOptions

KEY, LOG, HASH = session_keys(StoreOptions(), "s")

# The documented account: these keys, these commands, nothing else. SELECT only for a database other than 0.
COMMANDS = [
    *("eval", "evalsha", "time", "unlink", "exists", "pexpire", "pexpireat", "pttl", "persist"),
    *("rpush", "llen", "lrange", "lset", "lrem", "ltrim", "hset", "hmget", "hdel"),
    *("zadd", "zcard", "zmscore", "zscore", "zrange", "zrandmember", "zrem", "zremrangebyrank"),
]
ACL_RULE = ["on", ">secret", "~session*", "~{session*", "-@all", *(f"+{command}" for command in COMMANDS)]


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    """A server whose configuration and accounts these tests change."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def raw(own_server: RedisServer) -> Iterator[Any]:
    with closing(Redis.from_url(own_server.url)) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory", "0")
        client.execute_command("ACL", "SETUSER", "app", "reset")  # type: ignore[no-untyped-call]


@pytest.fixture
async def store(own_server: RedisServer, raw: Any) -> AsyncIterator[RedisStore]:
    async with aclosing(RedisStore.from_url(own_server.url)) as store:
        yield store


def dump(raw: Any) -> dict[bytes, bytes | None]:
    return {key: raw.dump(key) for key in raw.keys("*")}


# A full memory


async def test_a_full_memory_refuses_new_appends_loudly_and_stores_nothing(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(3), ttl=1000)
    before = dump(raw)
    raw.config_set("maxmemory", "1")
    for call in (
        store.append("s", [said("x" * 100_000)], ttl=1000),
        store.append("s", [said("x")], keep=1),
        store.append("s", [], metadata={"a": 1}),
        store.append("s", [], keep=1),
        store.append("new", [said("x")], ttl=1000),
        store.append("new", []),
    ):
        with pytest.raises(StoreUnavailable, match="memory is full"):
            await call
        assert dump(raw) == before
    raw.config_set("maxmemory", "0")
    await store.append("s", [said("x", "x")])
    assert await contents(store, "s") == ["i0", "i1", "i2", "x"]


@pytest.mark.parametrize("again", [False, True], ids=["the same process", "another process"])
async def test_all_but_new_appends_work_on_a_full_memory(
    own_server: RedisServer, store: RedisStore, raw: Any, again: bool
) -> None:
    version = present(await store.append("s", numbered(5), ttl=1000)).version
    raw.rpush(session_keys(StoreOptions(), "foreign")[0], '{"role":"user","content":"theirs"}')
    raw.config_set("maxmemory", "1")
    async with aclosing(RedisStore.from_url(own_server.url)) as other:
        used = other if again else store
        assert await contents(used, "s") == [f"i{n}" for n in range(5)]
        assert present(await used.append("s", numbered(5), ttl=2000)).version == version  # the retry of a stored append
        assert raw.pttl(KEY) > 1_990_000
        assert (await used.remove("s", ["i1", "i3"], op_id="op")).ids == ("i1", "i3")
        assert (await used.remove("s", ["i1", "i3"], op_id="op")).ids == ("i1", "i3")
        assert not await used.remove("s", ["nobody"])
        assert await contents(used, "s") == ["i0", "i2", "i4"]
        assert len((await used.read("foreign")).items) == 1  # adopted
        assert await used.delete("s") is True
        assert await used.delete("s") is False
        assert await used.delete("foreign", op_id="op") is True
        assert await listed(used.sessions()) == []


async def test_a_foreign_value_can_be_deleted_on_a_full_memory(store: RedisStore, raw: Any) -> None:
    raw.set(HASH, "text")
    raw.config_set("maxmemory", "1")
    assert await store.delete("s") is True
    assert raw.type(HASH) == b"hash"
    assert 0 < raw.pttl(HASH) <= 60_000


# Accounts


def account(raw: Any, server: RedisServer, rule: list[str]) -> RedisStore:
    raw.execute_command("ACL", "SETUSER", "app", "reset", "resetchannels", *rule)
    raw.script_flush()
    return RedisStore.from_url(f"redis://app:secret@127.0.0.1:{server.port}/0")


async def test_the_documented_account_may_do_all_that_is_needed(own_server: RedisServer, raw: Any) -> None:
    async with aclosing(account(raw, own_server, ACL_RULE)) as store:
        for view in (store, store.with_options(tenant="t:1"), store.with_options(namespace="lease")):
            await view.append("s", numbered(200), ttl=1000, keep=100, metadata={"a": 1})
            await view.append("s", [], ttl=float("inf"))
            await view.append("s", numbered(200))
            assert (await view.remove("s", [f"i{n}" for n in range(100, 200, 2)])).ids
            assert [session.id async for session in view.sessions()] == ["s"]
            assert [session.id async for session in view.sessions(after="s")] == []
            await view.delete("s")
            assert [session.id async for session in view.sessions()] == []


@pytest.mark.parametrize("command", COMMANDS)
async def test_an_account_that_lacks_a_command_is_refused_at_the_first_call(
    own_server: RedisServer, raw: Any, command: str
) -> None:
    async with aclosing(account(raw, own_server, [*ACL_RULE, f"-{command}"])) as store:
        for _ in range(2):
            with pytest.raises(AuthenticationFailed) as caught:
                await store.append("s", [said("x")], ttl=10)
            assert command in str(caught.value).lower()
            assert "secret" not in str(caught.value)
    assert raw.keys("*") == []


@pytest.mark.parametrize("patterns", [["~session*"], ["~{session*"], ["~other*"]])
async def test_an_account_that_lacks_the_keys_is_refused_at_the_first_call(
    own_server: RedisServer, raw: Any, patterns: list[str]
) -> None:
    rule = [part for part in ACL_RULE if not part.startswith("~")]
    async with aclosing(account(raw, own_server, [*rule, *patterns])) as store:
        with pytest.raises(AuthenticationFailed, match=r"(?i)key"):
            await store.append("s", [said("x")], ttl=10)
    assert raw.keys("*") == []


async def test_a_database_the_account_may_not_select_is_refused_at_once(own_server: RedisServer, raw: Any) -> None:
    account(raw, own_server, ACL_RULE)
    async with aclosing(RedisStore.from_url(f"redis://app:secret@127.0.0.1:{own_server.port}/1")) as store:
        with pytest.raises(AuthenticationFailed, match="select"):
            await store.append("s", [said("x")])


async def test_a_database_that_does_not_exist_is_refused_at_once(own_server: RedisServer) -> None:
    async with aclosing(RedisStore.from_url(f"redis://127.0.0.1:{own_server.port}/9999")) as store:
        with pytest.raises(StoreError, match="DB index") as caught:
            await store.append("s", [said("x")])
        assert not isinstance(caught.value, StoreUnavailable)


# Passwords


@pytest.mark.parametrize("credentials", [":wr0ng-s3cret@", "nobody:wr0ng-s3cret@", ""])
async def test_a_wrong_password_fails_without_a_retry_and_is_never_told(
    credentials: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(password="right") as server, closing(Redis.from_url(server.url)) as raw:
        store = RedisStore.from_url(f"redis://{credentials}127.0.0.1:{server.port}/0")
        async with aclosing(store):
            before = raw.info("stats")["total_connections_received"]
            for call in (store.append("s", [said("x")]), store.read("s"), store.delete("s")):
                with pytest.raises(AuthenticationFailed) as caught:
                    await call
                causes = [
                    caught.value,
                    caught.value.__cause__,
                    caught.value.__cause__ and caught.value.__cause__.__cause__,
                ]
                assert "wr0ng-s3cret" not in " ".join(f"{cause} {cause!r}" for cause in causes)
            assert raw.info("stats")["total_connections_received"] - before <= 3
            assert raw.keys("*") == []
            assert "wr0ng-s3cret" not in repr(store)
    assert "wr0ng-s3cret" not in caplog.text


async def test_the_right_password_works(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(password="p@ss:w/rd %é") as server:
        async with aclosing(RedisStore.from_url(server.url)) as store:
            await store.append("s", numbered(1))
            assert await contents(store, "s") == ["i0"]
    assert not caplog.records


async def test_a_password_the_server_does_not_have_works_and_is_warned_about_once(
    own_server: RedisServer, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "webai_api"):
        async with aclosing(RedisStore.from_url(f"redis://:unneeded@127.0.0.1:{own_server.port}/1")) as store:
            await store.append("s", numbered(1))
            raw.client_kill_filter(_type="normal", skipme=True)
            assert await contents(store, "s") == ["i0"]
    (record,) = caplog.records
    assert "password is set" in record.getMessage()
    assert "unneeded" not in caplog.text


async def test_a_password_the_server_gets_later_is_used_then() -> None:
    with RedisServer() as server, closing(Redis.from_url(server.url)) as raw:
        async with aclosing(RedisStore.from_url(f"redis://:later@127.0.0.1:{server.port}/0")) as store:
            await store.append("s", numbered(1))
            raw.config_set("requirepass", "later")
            raw.auth("later")
            raw.client_kill_filter(_type="normal", skipme=True)
            assert await contents(store, "s") == ["i0"]


@pytest.mark.parametrize("url", ["redis://:pa/s3cret@host/0", "redis://:pa#s3cret@host", "redis://:p@host:s3cret"])
def test_a_malformed_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        RedisStore.from_url(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


async def test_a_call_as_large_as_allowed_passes(store: RedisStore, raw: Any) -> None:
    items = [Item(id=f"i{n}", data={"n": n}) for n in range(10_000)]
    await store.append("s", items, ttl=1000)
    await store.append("s", items, ttl=1000)
    assert raw.llen(KEY) == 10_000
    removed = await store.remove("s", [item.id for item in items[::2]], op_id="half")
    assert len(removed.ids) == 5000
    assert (await store.remove("s", [item.id for item in items[::2]], op_id="half")).ids == removed.ids
    assert [item.data["n"] for item in (await store.read("s")).items] == list(range(1, 10_000, 2))
    big = Item(id="big", data={"text": "x" * (4 << 20 >> 1)})
    await store.append("s", [big])
    assert (await store.read("s", last=1)).items[0].data == big.data
