"""The guide's code beside ours: each reads what the other wrote, and its appends are taken over."""

import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

import pytest
from redis import Redis

from tests.servers import RedisServer
from webai_api import Conflict, CorruptData, HistoryLost, Item, SessionManager
from webai_api.stores.redis import RedisStore
from webai_api.stores.redis.keys import session_keys
from webai_api.testing.vocabulary import contents, ids, listed, numbered, present, said, seqs
from webai_api.types import StoreOptions

KEY, LOG, HASH = session_keys(StoreOptions(), "s")


@pytest.fixture
async def store(empty_redis: RedisServer) -> AsyncIterator[RedisStore]:
    async with aclosing(RedisStore.from_url(empty_redis.url)) as store:
        yield store


@pytest.fixture
def raw(empty_redis: RedisServer) -> Iterator[Any]:
    with closing(Redis.from_url(empty_redis.url)) as client:
        yield client


def guide_pushes(raw: Any, *contents: str) -> None:
    for content in contents:
        raw.rpush(KEY, json.dumps({"role": "user", "content": content, "metadata": {}}))


def guide_stores(raw: Any, *contents: str, ttl: int = 3600) -> None:
    """Do what the guide's `store_message` does."""
    for content in contents:
        guide_pushes(raw, content)
        raw.expire(KEY, ttl)


def guide_history(raw: Any) -> list[dict[str, Any]]:
    """Do what the guide's `get_history` does."""
    return [json.loads(entry) for entry in raw.lrange(KEY, 0, -1)]


async def test_the_guides_code_reads_what_we_wrote(store: RedisStore, raw: Any) -> None:
    manager = SessionManager(store)
    await manager.store_message("s", "user", "Grüße 🎉 \u2028", {"source": "web", "n": 2**60, "x": 0.1})
    await manager.store_message("s", "assistant", "Hello!")
    found = [{key: entry[key] for key in ("role", "content", "metadata")} for entry in guide_history(raw)]
    assert found == [
        {"role": "user", "content": "Grüße 🎉 \u2028", "metadata": {"source": "web", "n": 2**60, "x": 0.1}},
        {"role": "assistant", "content": "Hello!", "metadata": {}},
    ]
    assert raw.type(KEY) == b"list"


async def test_a_callers_own_id_and_tilde_keys_come_back(store: RedisStore, raw: Any) -> None:
    payload = {"id": 7, "~at": "mine", "~id": None, "~~": 1, "role": "user", "content": "x"}
    await store.append("s", [Item(id="ours", data=payload)])
    await store.append("s", [Item(id="other", data={"id": "text"})])
    (entry, _) = guide_history(raw)
    assert (entry["id"], entry["content"]) == ("ours", "x")
    assert [item.data for item in (await store.read("s")).items] == [payload, {"id": "text"}]
    assert await contents(store, "s") == ["ours", "other"]


async def test_we_read_what_the_guides_code_wrote(store: RedisStore, raw: Any) -> None:
    guide_stores(raw, "one", "two")
    history = await SessionManager(store).get_history("s")
    assert history == [{"role": "user", "content": text, "metadata": {}} for text in ("one", "two")]
    read = await store.read("s")
    session = present(read)
    assert seqs(read) == [1, 2]
    assert [item.created_at for item in read.items] == [None, None]
    assert (session.first_seq, session.last_seq, session.count) == (1, 2, 2)
    assert session.expires_at is not None
    assert abs(session.expires_at - time.time() - 3600) < 60


async def test_what_was_taken_over_stays_as_it_is(store: RedisStore, raw: Any) -> None:
    guide_stores(raw, "one", "two")
    first = await store.read("s")
    again = await store.read("s")
    assert again == first
    assert (await store.append("s", [])).session == first.session
    assert ids(first) == [f"~{int(raw.hget(HASH, 'b') or 0)}.{seq}" for seq in (1, 2)]


async def test_entries_between_ours_are_numbered_and_the_version_moves(store: RedisStore, raw: Any) -> None:
    version, epoch = 0, None
    for turn in range(3):
        ours = present(await store.append("s", [said("a"), said("b")], ttl=3600))
        guide_stores(raw, f"guide {turn}")
        session = present(await store.read("s"))
        assert version < ours.version < session.version
        assert epoch in (None, session.epoch)
        assert (session.count, session.last_seq) == (3 * turn + 3, 3 * turn + 3)
        version, epoch = session.version, session.epoch
    history = await store.read("s")
    assert seqs(history) == list(range(1, 10))
    assert [item.data["content"] for item in history.items if item.created_at is None] == [
        f"guide {n}" for n in range(3)
    ]


async def test_every_verb_takes_entries_over_and_gives_them_all_expiry(store: RedisStore, raw: Any) -> None:
    async def conflict() -> None:
        with pytest.raises(Conflict):
            await store.append("s", [said("c")], expected=1)

    async def unmatched_removal() -> None:
        with pytest.raises(Conflict):
            await store.remove("s", ["i0"], expected=1)

    async def unmatched_deletion() -> None:
        with pytest.raises(Conflict):
            await store.delete("s", expected=1)

    calls = [
        lambda: store.append("s", [said("x", "x")]),
        lambda: store.append("s", numbered(2)),  # a repeat
        lambda: store.append("s", []),
        lambda: store.append("s", [], metadata={"a": 1}),
        lambda: store.remove("s", ["i0"]),
        lambda: store.remove("s", ["nobody"]),
        lambda: store.read("s"),
        conflict,
        unmatched_removal,
        unmatched_deletion,
    ]
    for call in calls:
        await store.append("s", numbered(2))  # without expiry
        guide_stores(raw, "guide", ttl=500)
        await call()
        left = [raw.pttl(key) for key in (KEY, LOG, HASH)]
        assert all(490_000 < milliseconds <= 500_002 for milliseconds in left), left
        assert int(raw.hget(HASH, "n") or 0) == raw.llen(KEY)
        await store.delete("s")


async def test_the_version_told_by_a_conflict_can_be_expected(store: RedisStore, raw: Any) -> None:
    version = present(await store.append("s", numbered(1))).version
    guide_stores(raw, "guide")
    with pytest.raises(Conflict) as caught:
        await store.append("s", [said("mine", "mine")], expected=version, after=1)
    assert [item.data["content"] for item in caught.value.missed.items] == ["guide"]
    await store.append("s", [said("mine", "mine")], expected=caught.value.actual)
    guide_stores(raw, "guide again")
    with pytest.raises(Conflict) as caught:
        await store.remove("s", ["mine"], expected=version)
    assert await store.remove("s", ["mine"], expected=caught.value.actual)
    guide_stores(raw, "and again")
    with pytest.raises(Conflict) as caught:
        await store.delete("s", expected=version)
    assert await store.delete("s", expected=caught.value.actual)


async def test_the_guides_entries_have_ids_by_which_they_can_be_removed(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(2))
    guide_stores(raw, *(f"guide {n}" for n in range(5)))
    raw.rpush(KEY, json.dumps({"id": "their own", "role": "user", "content": "with an id"}))
    await store.append("s", [said("last", "last")])
    before = await store.read("s")
    assert [item.data.get("id") for item in before.items][7] == "their own"
    middle = before.items[4].id
    assert (await store.remove("s", [middle, before.items[7].id])).ids == (middle, before.items[7].id)
    after = await store.read("s")
    assert after.items == tuple(item for n, item in enumerate(before.items) if n not in (4, 7))
    assert not await store.remove("s", [middle])
    assert (await store.remove("s", [item.id for item in after.items])).ids == tuple(ids(after))
    assert present(await store.read("s")).count == 0


async def test_the_id_of_an_earlier_session_removes_nothing_of_this_one(store: RedisStore, raw: Any) -> None:
    guide_stores(raw, "one")
    (old,) = ids(await store.read("s"))
    await store.delete("s")
    guide_stores(raw, "two")
    assert not await store.remove("s", [old])
    assert present(await store.read("s")).count == 1


async def test_keep_counts_the_guides_entries(store: RedisStore, raw: Any) -> None:
    guide_stores(raw, *"abcdef")
    await store.append("s", [said("ours", "ours")], keep=3)
    history = await store.read("s")
    assert [item.data["content"] for item in history.items] == ["e", "f", "ours"]
    assert seqs(history) == [5, 6, 7]


async def test_a_retry_is_a_repeat_whatever_the_guide_appended_between(store: RedisStore, raw: Any) -> None:
    turn = [said("q", "q"), said("a", "a")]
    await store.append("s", turn)
    guide_stores(raw, "guide")
    repeat = await store.append("s", turn, after=0)
    assert [item.data["content"] for item in repeat.items] == ["guide"]
    assert present(repeat).count == 3


async def test_a_session_of_the_guide_is_listed_once_it_was_read(store: RedisStore, raw: Any) -> None:
    guide_stores(raw, "one")
    assert await listed(store.sessions()) == []
    await store.read("s")
    assert await listed(store.sessions()) == ["s"]
    assert all(raw.pttl(key) > 0 for key in raw.keys("*"))  # that of the index, too


@pytest.mark.parametrize("ours_first", [False, True], ids=["a new session", "a session of ours"])
async def test_a_read_between_the_guides_push_and_its_expiry_leaves_nothing_for_good(
    store: RedisStore, raw: Any, ours_first: bool
) -> None:
    if ours_first:  # emptied, so that the push makes a new list
        await store.append("s", [said("a", "a")], ttl=100)
        await store.remove("s", ["a"])
    guide_pushes(raw, "one")
    session = present(await store.read("s"))
    assert session.expires_at is None
    assert raw.pttl(KEY) == -1  # not ours to give
    assert 0 < raw.pttl(HASH) <= 3_600_000
    assert raw.exists(LOG) == ours_first
    assert 0 <= raw.pttl(LOG) <= 3_600_000 or not ours_first
    raw.expire(KEY, 7200)
    settled = present(await store.read("s"))
    assert settled.version == session.version
    assert settled.expires_at is not None
    assert all(7_190_000 < raw.pttl(key) <= 7_200_002 for key in raw.keys("*session:s*"))


async def test_a_list_without_expiry_keeps_none_and_its_session_its_version(store: RedisStore, raw: Any) -> None:
    guide_pushes(raw, "one")
    session = present(await store.read("s"))
    for _ in range(3):
        raw.pexpire(HASH, 1000)  # as if it had waited most of its hour
        assert present(await store.read("s")) == session
        assert raw.pttl(HASH) > 3_500_000
    await store.append("s", [said("ours")])
    assert raw.pttl(KEY) == -1
    await store.append("s", [said("ours")], ttl=float("inf"))
    assert [raw.pttl(key) for key in (KEY, LOG, HASH)] == [-1, -1, -1]


async def test_the_guide_renewing_the_expiry_renews_it_for_all_keys(store: RedisStore, raw: Any) -> None:
    version = present(await store.append("s", numbered(2), ttl=10)).version
    raw.expire(KEY, 1000)
    session = present(await store.read("s"))
    assert session.version == version
    assert all(990_000 < raw.pttl(key) <= 1_000_002 for key in (KEY, LOG, HASH))


# Damage


async def test_corrupt_entries_are_left_out_reported_and_logged(
    store: RedisStore, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await store.append("s", numbered(6))
    for index, entry in ((1, b"{ not JSON"), (3, b"\xff\xfe\x00"), (4, b"[1, 2]")):
        raw.lset(KEY, index, entry)
    with caplog.at_level(logging.WARNING, "webai_api"):
        history = await store.read("s")
    assert ids(history) == ["i0", "i2", "i5"]
    assert history.corrupt == (2, 4, 5)
    assert present(history).count == 6
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "'s' has 3 entries" in record.getMessage()
    assert "not JSON" not in record.getMessage()


@pytest.mark.parametrize("last", range(5))
async def test_last_counts_good_entries(store: RedisStore, raw: Any, last: int) -> None:
    await store.append("s", numbered(30))
    for index in range(4, 29):
        raw.lset(KEY, index, "?" * 5000)
    good = ["i0", "i1", "i2", "i3", "i29"]
    assert ids(await store.read("s", last=last)) == good[len(good) - last :]
    assert ids(await store.read("s", last=9)) == good


async def test_appends_and_removals_work_beside_corrupt_entries(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(4))
    raw.lset(KEY, 2, "?")
    assert (await store.remove("s", ["i1"])).ids == ("i1",)
    await store.append("s", [said("next", "next")])
    history = await store.read("s")
    assert ids(history) == ["i0", "i3", "next"]
    assert seqs(history) == [1, 4, 5]
    assert history.corrupt == (3,)


@pytest.mark.parametrize("left", [0, 1, 2])
async def test_a_shortened_list_is_lost_history_until_it_is_deleted(store: RedisStore, raw: Any, left: int) -> None:
    await store.append("s", numbered(3), ttl=1000)
    raw.ltrim(KEY, 0, left - 1) if left else raw.delete(KEY)
    for call in (
        store.read("s"),
        store.append("s", [said("x", "x")]),
        store.append("s", numbered(3)),
        store.append("s", []),
        store.remove("s", ["i0"]),
    ):
        with pytest.raises(HistoryLost) as caught:
            await call
        assert (caught.value.promised, caught.value.found) == (3, left)
        assert raw.llen(KEY) == left
    assert await listed(store.sessions()) == []
    assert await store.delete("s") is True
    assert (await store.read("s")).session is None
    await store.append("s", [said("anew", "anew")])
    assert await contents(store, "s") == ["anew"]


async def test_a_session_emptied_by_removal_is_not_lost(store: RedisStore, raw: Any) -> None:
    await store.append("s", numbered(2))
    await store.remove("s", ["i0", "i1"])
    assert not raw.exists(KEY)
    session = present(await store.read("s"))
    assert (session.count, session.first_seq, session.last_seq) == (0, 3, 2)
    await store.append("s", [said("x", "x")])
    assert seqs(await store.read("s")) == [3]


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in "vebsnux" for value in ("", "x", "nan", "-1", "1.5", "1e300", None)]
    + [("r", None), ("r", "x"), ("r", "1-900"), ("s", "2"), ("m", "{")],
)
async def test_damaged_bookkeeping_is_corrupt_data_until_it_is_deleted(
    store: RedisStore, raw: Any, field: str, value: str | None
) -> None:
    await store.append("s", numbered(3))
    if value is None:
        raw.hdel(HASH, field)
    else:
        raw.hset(HASH, field, value)
    before = raw.lrange(KEY, 0, -1)
    for call in (
        store.read("s"),
        store.remove("s", ["nobody"]),
        store.append("s", numbered(3)),
        store.append("s", [said("x")]),
    ):
        with pytest.raises(CorruptData, match="'s'"):
            await call
    assert raw.lrange(KEY, 0, -1) == before
    assert await store.delete("s") is True
    await store.append("s", [said("anew", "anew")])
    assert await contents(store, "s") == ["anew"]


@pytest.mark.parametrize("key", [KEY, LOG, HASH])
async def test_another_type_at_a_key_is_corrupt_data_before_anything_is_written(
    store: RedisStore, raw: Any, key: str
) -> None:
    await store.append("s", numbered(3))
    others = [other for other in (KEY, LOG, HASH) if other != key]
    raw.delete(key)
    raw.set(key, "text")
    before = [raw.dump(other) for other in others]
    for call in (
        store.read("s"),
        store.append("s", [said("x")]),
        store.append("s", [], metadata={"a": 1}),
        store.remove("s", ["i0"]),
        store.delete("s", expected=1),
    ):
        with pytest.raises(CorruptData):
            await call
    assert [raw.dump(other) for other in others] == before
    assert raw.get(key) == b"text"
    assert await store.delete("s") is True
    assert await store.delete("s") is False
    await store.append("s", [said("anew", "anew")])
    assert await contents(store, "s") == ["anew"]


async def test_one_damaged_session_does_not_hide_the_others_from_a_listing(store: RedisStore, raw: Any) -> None:
    for name in ("a", "b", "c", "d"):
        await store.append(name, numbered(1))
    raw.hset(session_keys(StoreOptions(), "b")[2], "v", "x")
    raw.delete(session_keys(StoreOptions(), "c")[0])
    raw.set(session_keys(StoreOptions(), "c")[0], "text")
    assert sorted(await listed(store.sessions())) == ["a", "d"]
