"""Which keys there are: no two addresses share one, a session's keys share a slot, and no key outlives its session."""

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis import Redis
from redis.crc import key_slot

from tests.servers import RedisServer
from webai_api import Item
from webai_api.limits import DEFAULT_LIMITS
from webai_api.stores.redis import RedisStore
from webai_api.stores.redis.keys import BUCKETS, INDEX_BUCKETS, PROBE, bucket_of, index_key, session_keys
from webai_api.testing.vocabulary import eventually
from webai_api.types import StoreOptions

NASTY = st.text(alphabet="ab:@%{}~-é/ 25BD7h", min_size=1, max_size=12).filter(str.strip)
TENANTS = st.none() | NASTY | st.sampled_from(["a", "a:b", "a%3Ab", "session"])
NAMESPACES = st.sampled_from(["session", "lease", "h", "log", "a"])
ADDRESSES = st.tuples(
    TENANTS, NAMESPACES, NASTY | st.sampled_from(["a", "a}:h", "{session:a}:h", "a}:@lease", "%7B", "{"])
)
MINUTE_MS = 60_000

Address = tuple[str | None, str, str]


def keys_of(address: Address) -> tuple[str, str, str]:
    tenant, namespace, session_id = address
    return session_keys(StoreOptions(tenant=tenant, namespace=namespace), session_id)


@pytest.fixture
async def store(empty_redis: RedisServer) -> AsyncIterator[RedisStore]:
    async with aclosing(RedisStore.from_url(empty_redis.url)) as store:
        yield store


@pytest.fixture
def raw(empty_redis: RedisServer) -> Iterator[Any]:
    with closing(Redis.from_url(empty_redis.url)) as client:
        yield client


@given(ADDRESSES, ADDRESSES)
@example((None, "session", "a"), ("a", "session", "a"))
@example((None, "session", "a:b"), ("a", "session", "b"))
@example(("a", "session", "b:c"), ("a:b", "session", "c"))
@example((None, "lease", "a"), (None, "session", "{session:a}:@lease"))
def test_distinct_addresses_have_no_key_in_common(one: Address, other: Address) -> None:
    if one != other:
        assert not set(keys_of(one)) & set(keys_of(other))
    assert len(set(keys_of(one))) == 3


@given(ADDRESSES)
def test_the_keys_of_a_session_share_a_slot_with_the_guides_list(address: Address) -> None:
    listed = session_keys(StoreOptions(tenant=address[0]), address[2])[0]
    assert {key_slot(key.encode()) for key in keys_of(address)} == {key_slot(listed.encode())}


@given(st.text(min_size=1).filter(lambda text: not set(text) & set("%{}")))
def test_an_ordinary_id_has_the_guides_key(session_id: str) -> None:
    assert session_keys(StoreOptions(), session_id)[0] == f"session:{session_id}"


@given(ADDRESSES, TENANTS, NAMESPACES, st.sampled_from(BUCKETS))
def test_no_session_has_a_key_of_the_index_or_of_the_probe(
    address: Address, tenant: str | None, namespace: str, bucket: int
) -> None:
    others = {index_key(StoreOptions(tenant=tenant, namespace=namespace), bucket), *PROBE}
    assert not set(keys_of(address)) & others


@given(ADDRESSES, ADDRESSES)
def test_the_index_of_a_tenant_and_namespace_is_its_own(one: Address, other: Address) -> None:
    names = [{index_key(StoreOptions(tenant=t, namespace=n), b) for b in BUCKETS} for t, n, _ in (one, other)]
    assert len(names[0]) == INDEX_BUCKETS
    assert (names[0] == names[1]) is (one[:2] == other[:2])
    assert not set(PROBE) & names[0]


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        ((None, "session", "u:1"), ("session:u:1", "{session:u:1}:log", "{session:u:1}:h")),
        ((None, "session", "a{b}%"), ("session:a%7Bb%7D%25", "{session:a%7Bb%7D%25}:log", "{session:a%7Bb%7D%25}:h")),
        (("t:1", "session", "u:1"), ("session@t%3A1:u:1", "{session@t%3A1:u:1}:log", "{session@t%3A1:u:1}:h")),
        ((None, "lease", "u"), ("{session:u}:@lease", "{session:u}:@lease:log", "{session:u}:@lease:h")),
    ],
)
def test_key_names_are_what_the_documentation_says(address: Address, keys: tuple[str, str, str]) -> None:
    assert keys_of(address) == keys


async def test_a_session_has_these_keys_and_no_other(store: RedisStore, raw: Any) -> None:
    await store.append("s", [Item(data={})], ttl=100)
    expected = {*keys_of((None, "session", "s")), index_key(StoreOptions(), bucket_of("s"))}
    assert {key.decode() for key in raw.keys("*")} == expected


async def test_ids_as_long_as_they_may_be_work_in_every_place(store: RedisStore) -> None:
    longest = "{" * DEFAULT_LIMITS.id_bytes
    for tenant, namespace in product([None, longest], ["session", "lease"]):
        view = store.with_options(tenant=tenant, namespace=namespace)
        await view.append(longest, [Item(id=longest, data={"at": [tenant, namespace]})], ttl=100)
    for tenant, namespace in product([None, longest], ["session", "lease"]):
        history = await store.with_options(tenant=tenant, namespace=namespace).read(longest)
        assert [item.data for item in history.items] == [{"at": [tenant, namespace]}]


# How long keys live


def lifetimes(raw: Any, *, index: bool = False) -> dict[str, int]:
    """Return the PTTL in ms of every key of sessions (or of the index); -1 is none."""
    names = [key.decode() for key in raw.keys("*")]
    return {name: raw.pttl(name) for name in names if name.startswith("sessions") is index}


async def test_every_key_has_the_sessions_expiry(store: RedisStore, raw: Any) -> None:
    await store.append("s", [Item(id="a", data={}), Item(id="b", data={})], ttl=1000)
    assert len(lifetimes(raw)) == 3
    steps = [
        store.append("s", [Item(data={})]),
        store.append("s", [], metadata={"a": 1}, keep=2),
        store.append("s", [Item(id="c", data={})], keep=1),
        store.remove("s", ["c"]),
        store.append("s", [Item(id="c", data={})]),  # a repeat
        store.append("s", [Item(id="d", data={})]),
    ]
    for step in steps:
        await step
        assert all(999_000 - 9000 < left <= 1_000_000 for left in lifetimes(raw).values())
    session = (await store.append("s", [Item(data={})], ttl=5000)).session
    assert session is not None
    assert session.expires_at is not None
    assert min(lifetimes(raw).values()) > 4_990_000


async def test_all_keys_expire_in_the_same_millisecond(store: RedisStore, raw: Any) -> None:
    await store.append("s", [Item(data={})], ttl=1234.567)
    script = "local r = {} for i, k in ipairs(KEYS) do r[i] = redis.call('PTTL', k) end return r"
    left = raw.eval(script, 3, *keys_of((None, "session", "s")))
    assert max(left) - min(left) <= 1  # the clock may move within a script


async def test_nothing_is_left_when_a_session_has_expired(store: RedisStore, raw: Any) -> None:
    await store.append("s", [Item(data={})], ttl=0.03)
    await store.append("emptied", [Item(id="a", data={})], ttl=0.03)
    await store.remove("emptied", ["a"])
    await store.append("touched", [], ttl=0.03)

    async def gone() -> bool:
        return not lifetimes(raw)

    await eventually(gone)
    assert all(0 < left <= MINUTE_MS + 100 for left in lifetimes(raw, index=True).values())  # a minute longer


async def test_nothing_is_left_a_minute_after_a_deletion(store: RedisStore, raw: Any) -> None:
    await store.append("s", [Item(data={})])
    await store.append("t", [Item(data={})], ttl=10_000)
    for session_id in ("s", "t", "never there"):
        await store.delete(session_id)
    left = lifetimes(raw)
    assert set(left) == {keys_of((None, "session", name))[2] for name in ("s", "t", "never there")}
    assert all(0 < milliseconds <= MINUTE_MS for milliseconds in left.values())


async def test_the_expiry_of_a_deletion_is_not_that_of_the_next_session(store: RedisStore, raw: Any) -> None:
    await store.delete("s")
    await store.append("s", [Item(data={})])
    assert set(lifetimes(raw).values()) == {-1}
    await store.delete("s")
    await store.append("s", [])
    assert set(lifetimes(raw).values()) == {-1}
    await store.delete("s")
    await store.append("s", [Item(data={})], ttl=1000)
    assert min(lifetimes(raw).values()) > 990_000


async def test_an_infinite_ttl_takes_the_expiry_from_every_key(store: RedisStore, raw: Any) -> None:
    for items in ([], [Item(data={})], [Item(id="a", data={})]):
        await store.append("s", [Item(id="a", data={})], ttl=1000)
        await store.append("s", items, ttl=math.inf)
        assert set(lifetimes(raw).values()) == {-1}
        await store.delete("s")
    bucket = index_key(StoreOptions(), bucket_of("s"))
    assert raw.pttl(bucket) == -1  # it lists a session that never expires


async def test_the_index_lives_a_minute_longer_than_what_it_lists(store: RedisStore, raw: Any) -> None:
    bucket = index_key(StoreOptions(), bucket_of("s"))
    await store.append("s", [Item(data={})], ttl=100)
    assert 155_000 < raw.pttl(bucket) <= 160_000
    await store.append("s", [Item(data={})], ttl=10)  # not shorter: others may need it
    assert raw.pttl(bucket) > 155_000
    await store.append("s", [Item(data={})], ttl=1000)  # at once, though it was noted just now
    assert raw.pttl(bucket) > 1_055_000


async def test_an_append_that_leaves_the_expiry_leaves_that_of_the_index(
    empty_redis: RedisServer, store: RedisStore, raw: Any
) -> None:
    bucket = index_key(StoreOptions(), bucket_of("s"))
    await store.append("s", [Item(data={})], ttl=100)
    async with aclosing(RedisStore.from_url(empty_redis.url)) as other:
        await other.append("s", [Item(data={})])
    assert 0 < raw.pttl(bucket) <= 160_000
    await store.append("s", [Item(data={})], ttl=math.inf)
    assert raw.pttl(bucket) == -1


async def test_a_stale_log_is_emptied_and_gets_the_new_sessions_expiry(store: RedisStore, raw: Any) -> None:
    key, log, bookkeeping = keys_of((None, "session", "s"))
    for ttl, left in ((None, -1), (500.0, 500_000)):
        await store.append("s", [Item(id=f"i{n}", data={}) for n in range(40)], ttl=1000)
        raw.delete(key, bookkeeping)  # as an eviction may do
        session = (await store.append("s", [Item(id="i1", data={"other": "content"})], ttl=ttl)).session
        assert session is not None
        assert (session.last_seq, session.count) == (1, 1)
        assert raw.zcard(log) == 1
        assert left - 5000 < raw.pttl(log) <= left
        await store.delete("s")


async def test_the_log_stays_small_and_in_one_piece(store: RedisStore, raw: Any) -> None:
    log = keys_of((None, "session", "s"))[1]
    for size in [1] * 10 + [2] * 30 + [3] * 30 + [63, 64, 1]:
        await store.append("s", [Item(data={}) for _ in range(size)])
        assert raw.zcard(log) <= 64
    assert raw.object("encoding", log) in (b"listpack", b"ziplist")


async def test_a_large_call_is_remembered_whole_and_then_forgotten(store: RedisStore, raw: Any) -> None:
    log = keys_of((None, "session", "s"))[1]
    items = [Item(data={"n": n}) for n in range(10_000)]
    first = (await store.append("s", items, ttl=1000)).session
    again = (await store.append("s", items, ttl=1000)).session
    assert first is not None
    assert again is not None
    assert (again.version, again.count) == (first.version, 10_000)
    assert raw.zcard(log) == 10_000
    await store.append("s", [Item(data={})])
    assert raw.zcard(log) == 64
    assert [item.data["n"] for item in (await store.read("s", last=3, before=10_001)).items] == [9997, 9998, 9999]


async def test_the_probe_leaves_nothing_behind(store: RedisStore, raw: Any) -> None:
    await store.read("nobody")
    assert raw.keys("*") == []
