"""What only the Redis store has: scripts and their tokens, tombstones, exact numbers, the index."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

import pytest
from redis import Redis

from tests.servers import RedisServer
from webai_api import Conflict, Item, SessionNotFound
from webai_api.stores.redis import RedisStore
from webai_api.stores.redis import index as index_module
from webai_api.stores.redis.keys import bucket_of, index_key, session_keys
from webai_api.stores.redis.scripts import script
from webai_api.testing.vocabulary import contents, eventually, ids, listed, numbered, present, said, seqs
from webai_api.types import StoreOptions

KEY, LOG, HASH = session_keys(StoreOptions(), "s")
LATE = 2**53 - 1000  # a version near the largest that is exact


@pytest.fixture
async def store(empty_redis: RedisServer) -> AsyncIterator[RedisStore]:
    async with aclosing(RedisStore.from_url(empty_redis.url)) as store:
        yield store


@pytest.fixture
def raw(empty_redis: RedisServer) -> Iterator[Any]:
    with closing(Redis.from_url(empty_redis.url)) as client:
        yield client


def run(raw: Any, name: str, *args: Any) -> list[Any]:
    """Send a script as a re-send does: with arguments, and so a token, of one's own."""
    answer: list[Any] = raw.evalsha(raw.script_load(script(name).source), 3, KEY, LOG, HASH, *args)
    return answer


# Numbers


async def test_versions_are_microseconds_and_exact(store: RedisStore, raw: Any) -> None:
    session = present(await store.append("s", numbered(1)))
    assert abs(session.version / 1e6 - time.time()) < 60
    assert session.version == int(raw.hget(HASH, "v") or 0) == int(raw.hget(HASH, "b") or 0)
    for odd in (1_800_000_000_000_001, 4_503_599_627_370_497, LATE):
        raw.hset(HASH, "v", odd)
        version = present(await store.read("s")).version
        assert version == odd
        if odd > time.time() * 1e6 + 1e9:  # ahead of the clock: it moves by one
            for step in (1, 2, 3):
                version = present(await store.append("s", [said("x")], expected=version)).version
                assert version == odd + step == int(raw.hget(HASH, "v") or 0)
            with pytest.raises(Conflict) as caught:
                await store.append("s", [said("x")], expected=version - 1)
            assert caught.value.actual == version


async def test_versions_ahead_of_the_clock_rise_across_a_deletion(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(1))
    raw.hset(HASH, "v", LATE)
    await store.delete("s")
    assert int(raw.hget(HASH, "v") or 0) == LATE
    session = present(await store.append("s", numbered(1)))
    assert (session.version, session.epoch, session.last_seq) == (LATE + 1, LATE + 1, 1)


async def test_seqs_are_exact_where_the_log_packs_them(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(3))
    last = 2**32 - 100
    raw.hset(HASH, "s", last)
    turn = [said("q", "q"), said("a", "a")]
    version = present(await store.append("s", turn)).version
    assert present(await store.append("s", turn)).version == version
    assert seqs(await store.read("s")) == [last - 2, last - 1, last, last + 1, last + 2]
    assert (await store.remove("s", ["q"])).ids == ("q",)
    assert seqs(await store.read("s", after=last)) == [last + 2]


async def test_derived_ids_are_exact(store: RedisStore, raw: Any) -> None:
    raw.rpush(KEY, '{"role":"user","content":"theirs"}')
    await store.read("s")
    raw.hset(HASH, "b", 9_007_199_254_740_991)
    (item,) = (await store.read("s")).items
    assert item.id == "~9007199254740991.1"
    assert (await store.remove("s", [item.id])).ids == (item.id,)


async def test_more_than_64_gaps_are_numbered_anew_in_order(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(200))
    for count, last in ((64, 200), (65, 200 + 200 - 65)):
        wanted = [f"i{n}" for n in range(1, 2 * count, 2)]
        before = present(await store.read("s"))
        session = present(await store.remove("s", wanted))
        assert session.last_seq == last
        assert session.epoch > before.epoch
        assert len([r for r in (raw.hget(HASH, "r") or b"").split(b",") if r]) == (64 if count == 64 else 0)
    left = [f"i{n}" for n in range(200) if n % 2 == 0 or n > 129]
    assert await contents(store, "s") == left
    assert seqs(await store.read("s")) == list(range(201, 336))
    assert present(await store.append("s", numbered(200))).count == 135  # removed ones are still known
    await store.append("s", [said("next", "next")])
    assert seqs(await store.read("s", last=1)) == [336]


# Scripts and tokens


async def test_scripts_come_back_after_a_flush(store: RedisStore, raw: Any) -> None:
    for flush in range(3):
        raw.script_flush()
        await store.append("s", [said("x", f"{flush}")], ttl=1000)
        raw.script_flush()
        assert len((await store.read("s")).items) == flush + 1
    raw.script_flush()
    assert (await store.remove("s", ["0"])).ids == ("0",)
    raw.script_flush()
    assert await listed(store.sessions()) == ["s"]
    raw.script_flush()
    assert await store.delete("s")


async def test_a_deletion_sent_again_spares_what_was_appended_since(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(2))
    assert run(raw, "delete", "", "token") == [b"deleted", 1]
    await store.append("s", [said("since", "since")], ttl=1000)
    before = [raw.dump(key) for key in (KEY, LOG, HASH)]
    assert run(raw, "delete", "", "token") == [b"deleted", 1]
    assert [raw.dump(key) for key in (KEY, LOG, HASH)] == before
    assert await contents(store, "s") == ["since"]
    assert run(raw, "delete", "", "another") == [b"deleted", 1]
    assert (await store.read("s")).session is None


async def test_a_deletion_of_nothing_sent_again_gives_its_first_answer(store: RedisStore, raw: Any) -> None:
    assert run(raw, "delete", "", "token") == [b"deleted", 0]
    await store.append("s", numbered(1))
    assert run(raw, "delete", "", "token") == [b"deleted", 0]
    assert await contents(store, "s") == ["i0"]


async def test_a_deletion_of_a_foreign_value_sent_again_spares_what_was_appended_since(
    store: RedisStore, raw: Any
) -> None:
    raw.set(KEY, "text")
    assert run(raw, "delete", "", "token") == [b"deleted", 1]
    await store.append("s", numbered(1))
    assert run(raw, "delete", "", "token") == [b"deleted", 1]
    assert await contents(store, "s") == ["i0"]


async def test_an_expired_tombstone_leaves_no_key(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(1), ttl=1000)
    await store.delete("s")
    assert [key for key in raw.keys("*") if not key.startswith(b"sessions")] == [HASH.encode()]
    raw.pexpire(HASH, 1)  # what would happen in a minute

    async def gone() -> bool:
        return not raw.exists(KEY, LOG, HASH)

    await eventually(gone)


async def test_a_removal_and_a_deletion_of_one_name_are_two_operations(store: RedisStore) -> None:
    await store.append("s", numbered(1))
    assert not await store.remove("s", [], op_id="op")
    assert await store.delete("s", op_id="op") is True
    assert (await store.read("s")).session is None


async def test_a_removal_sent_again_gives_its_first_answer(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(4))
    args = ("", "token", 2, '{"id":"i1","~at":', "", '{"id":"i2","~at":', "")
    first = run(raw, "remove", *args)
    assert (first[0], first[-1]) == (b"ok", [1, 2])
    await store.append("s", [said("i9", "i9")])
    version = present(await store.read("s")).version
    again = run(raw, "remove", *args)
    assert again[-1] == [1, 2]
    assert again[1] == version
    assert await contents(store, "s") == ["i0", "i3", "i9"]


async def test_a_touch_sent_again_applies_once(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(3))
    version = present(await store.read("s")).version
    args = (version, "", "", "", 2, '{"by":"token"}', "token", "", 0)
    first = run(raw, "append", *args)
    assert first[0] == b"ok"
    await store.append("s", [said("since", "since")], metadata={"by": "another"})
    now = present(await store.read("s"))
    again = run(raw, "append", *args)  # whatever it expected
    assert (again[0], again[1]) == (b"repeat", now.version)
    assert present(await store.read("s")) == now
    assert await contents(store, "s") == ["i1", "i2", "since"]


async def test_operations_are_forgotten_once_they_are_old_and_16_others_came(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(1))
    old = "".join(f"old{n}=@{round(time.time() * 1000) - 20_000};" for n in range(30))
    raw.hset(HASH, "o", old)
    await store.append("s", [])
    kept = (raw.hget(HASH, "o") or b"").decode().split(";")[:-1]
    assert [token.partition("=")[0] for token in kept[:-1]] == [f"old{n}" for n in range(15, 30)]
    for _ in range(40):
        await store.append("s", [])
    assert (raw.hget(HASH, "o") or b"").count(b";") == 41  # young ones stay: they may be sent again


async def test_calls_of_many_tasks_on_one_session_are_units(store: RedisStore) -> None:
    await asyncio.gather(*(store.append("s", [said("q", f"q{n}"), said("a", f"a{n}")], ttl=100) for n in range(200)))
    found = await contents(store, "s")
    assert len(found) == 400
    assert all(found[i][1:] == found[i + 1][1:] for i in range(0, 400, 2))


async def test_a_url_chooses_the_database(empty_redis: RedisServer, store: RedisStore, raw: Any) -> None:
    async with aclosing(RedisStore.from_url(f"redis://127.0.0.1:{empty_redis.port}/5")) as fifth:
        await fifth.append("s", numbered(1), ttl=1000)
        assert (await store.read("s")).session is None
        assert raw.dbsize() == 0
        assert await listed(fifth.sessions()) == ["s"]
        assert await fifth.client.llen(KEY) == 1
    assert repr(fifth) == f"RedisStore(127.0.0.1:{empty_redis.port})"


# The index


def entries(raw: Any) -> set[str]:
    return {name.decode() for key in raw.keys("sessions:*") for name in raw.zrange(key, 0, -1)}


async def test_a_lost_index_comes_back_with_the_next_appends(
    empty_redis: RedisServer, store: RedisStore, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        await store.append(name, numbered(1), ttl=1000)
    raw.delete(*raw.keys("sessions:*"))
    assert await listed(store.sessions()) == []
    assert await contents(store, "a") == ["i0"]
    async with aclosing(RedisStore.from_url(empty_redis.url)) as other:
        await other.append("a", [said("x")], ttl=1000)
    assert await listed(store.sessions()) == ["a"]
    await store.append("b", [said("x")], ttl=1000)
    assert await listed(store.sessions()) == ["a"]  # it was noted a moment ago
    monkeypatch.setattr(index_module, "NOTE_INTERVAL", 0.0)
    await store.append("b", [said("x")], ttl=1000)
    assert await listed(store.sessions()) == ["b", "a"]


async def test_a_listing_goes_on_after_a_session_that_the_index_lost(store: RedisStore, raw: Any) -> None:
    for name in "abc":
        await store.append(name, numbered(1))
        await asyncio.sleep(0.003)
    raw.zrem(index_key(StoreOptions(), bucket_of("b")), "b")
    assert await listed(store.sessions(after="b")) == ["a"]
    with pytest.raises(SessionNotFound):
        await listed(store.sessions(after="nobody"))


async def test_a_session_made_again_is_listed_again_at_once(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(1), ttl=1000)
    await store.delete("s")
    raw.delete(*raw.keys("sessions:*"))
    await store.append("s", numbered(1), ttl=1000)
    assert await listed(store.sessions()) == ["s"]
    assert 1_000_000 < raw.pttl(index_key(StoreOptions(), bucket_of("s"))) <= 1_060_000


async def test_dead_ids_go_when_they_are_listed(store: RedisStore, raw: Any) -> None:
    long_ago = time.time() * 1000 - 60_000
    for n in range(300):
        raw.zadd(index_key(StoreOptions(), bucket_of(f"dead{n}")), {f"dead{n}": round(long_ago)})
    await store.append("alive", numbered(1), ttl=1000)
    assert await listed(store.sessions()) == ["alive"]
    assert entries(raw) == {"alive"}


async def test_dead_ids_go_though_nobody_lists(store: RedisStore, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "NOTE_INTERVAL", 0.0)
    bucket = index_key(StoreOptions(), bucket_of("alive"))
    dead = [f"dead{n}" for n in range(200) if bucket_of(f"dead{n}") == bucket_of("alive")]
    assert len(dead) > 10
    raw.zadd(bucket, dict.fromkeys(dead, round(time.time() * 1000 - 60_000)))

    async def clean() -> bool:
        await store.append("alive", [Item(data={})], ttl=1000)
        return bool(raw.zrange(bucket, 0, -1) == [b"alive"])

    await eventually(clean)


async def test_an_id_noted_a_moment_ago_is_not_taken_for_dead(store: RedisStore, raw: Any) -> None:
    raw.zadd(index_key(StoreOptions(), bucket_of("young")), {"young": round(time.time() * 1000)})
    assert await listed(store.sessions()) == []
    assert entries(raw) == {"young"}


async def test_an_id_that_was_active_since_it_was_found_dead_stays(raw: Any) -> None:
    bucket = index_key(StoreOptions(), 0)
    raw.zadd(bucket, {"s": 2000})
    raw.eval(script("unindex").source, 1, bucket, "s", "1000")
    assert entries(raw) == {"s"}
    raw.eval(script("unindex").source, 1, bucket, "s", "2000")
    assert entries(raw) == set()


async def test_an_index_that_cannot_be_written_does_not_fail_the_call(store: RedisStore, raw: Any) -> None:
    raw.set(index_key(StoreOptions(), bucket_of("s")), "text")
    await store.append("s", numbered(1), ttl=1000)
    assert await contents(store, "s") == ["i0"]
    await store.append("s", numbered(1), ttl=math.inf)


async def test_listing_orders_many_sessions_by_their_last_activity(store: RedisStore, raw: Any) -> None:
    names = [f"s{n:03}" for n in range(250)]
    for name in names:
        await store.append(name, [])
    for n, name in enumerate(names):
        raw.zadd(index_key(StoreOptions(), bucket_of(name)), {name: n // 120})  # pages of equal scores
    expected = sorted(names, key=lambda name: (names.index(name) // 120, name), reverse=True)
    assert await listed(store.sessions()) == expected
    assert await listed(store.sessions(after=expected[100])) == expected[101:]
    assert await listed(store.sessions(prefix="s1")) == [name for name in expected if name.startswith("s1")]


async def test_reading_ids_backwards_works_across_a_trim(store: RedisStore) -> None:
    await store.append("s", numbered(20))
    await store.remove("s", ["i12", "i13"])
    await store.append("s", [said("x", "x")], keep=10)
    history = await store.read("s")
    assert ids(history) == ["i9", "i10", "i11", *(f"i{n}" for n in range(14, 20)), "x"]
    assert ids(await store.read("s", before=present(history).last_seq, last=8)) == ids(history)[1:9]
