"""What a broken network does to an append: nothing that anybody can see, or an error that says what to do."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from tests.faults import FaultProxy
from tests.servers import RedisServer
from webai_api import Item, OutcomeUnknown, StoreUnavailable
from webai_api.protocol import SessionStore
from webai_api.stores.redis import RedisStore
from webai_api.stores.redis.connect import Connections


@pytest.fixture
async def proxy(empty_redis: RedisServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(empty_redis.port) as proxy:
        yield proxy


@pytest.fixture
async def store(proxy: FaultProxy) -> AsyncIterator[RedisStore]:
    """A store that reaches Redis through the proxy only."""
    async with aclosing(RedisStore.from_url(f"redis://127.0.0.1:{proxy.port}/0")) as store:
        yield store


@pytest.fixture
async def direct(empty_redis: RedisServer) -> AsyncIterator[SessionStore]:
    """A store that sees what is really there."""
    async with aclosing(RedisStore.from_url(empty_redis.url)) as store:
        yield store


def said(session: int, number: int) -> Item:
    return Item(id=f"{session}-{number}", data={"role": "user", "content": f"message {number} of {session}"})


async def held(store: SessionStore, session: int) -> list[str]:
    return [item.id for item in (await store.read(f"s{session}")).items]


async def test_lost_replies_lose_and_double_nothing_without_a_retry_by_the_caller(
    proxy: FaultProxy, store: SessionStore, direct: SessionStore
) -> None:
    proxy.lose = 0.1

    async def write(session: int) -> None:
        for number in range(40):
            await store.append(f"s{session}", [said(session, number)], ttl=600)

    await asyncio.gather(*(write(session) for session in range(20)))
    assert proxy.lost > 40
    for session in range(20):
        assert await held(direct, session) == [f"{session}-{number}" for number in range(40)]


async def test_lost_replies_lose_and_double_nothing_when_the_caller_repeats_what_it_does_not_know(
    proxy: FaultProxy, store: SessionStore, direct: SessionStore
) -> None:
    impatient = store.with_options(deadline=0.05)
    proxy.lose = 0.6
    unknown = 0

    async def write(session: int) -> None:
        nonlocal unknown
        for number in range(10):
            while True:
                try:
                    await impatient.append(f"s{session}", [said(session, number)], ttl=600)
                except OutcomeUnknown:
                    unknown += 1
                except StoreUnavailable:
                    pass
                else:
                    break

    await asyncio.gather(*(write(session) for session in range(10)))
    assert unknown > 10
    for session in range(10):
        assert await held(direct, session) == [f"{session}-{number}" for number in range(10)]


async def test_an_append_sent_again_after_many_others_is_still_stored_once(
    proxy: FaultProxy, store: RedisStore, direct: SessionStore
) -> None:
    """On a busy session, more than the window of ids may come between two tries of one call."""
    await store.append("s0", [said(0, 0)], ttl=600)
    proxy.lose = 0.03

    async def write(writer: int) -> None:
        for number in range(25):
            await store.append("s0", [said(writer, 2 * number), said(writer, 2 * number + 1)], ttl=600)

    await asyncio.gather(*(write(writer) for writer in range(1, 41)))
    assert proxy.lost > 10
    ids = await held(direct, 0)
    assert len(ids) == len(set(ids)) == 1 + 40 * 50
    assert all(ids.index(f"{w}-{n + 1}") == ids.index(f"{w}-{n}") + 1 for w in range(1, 41) for n in range(0, 50, 2))


async def test_an_append_cut_after_any_byte_is_stored_exactly_once(
    proxy: FaultProxy, store: RedisStore, direct: SessionStore
) -> None:
    await store.append("s0", [said(0, 0)], ttl=600)
    await asyncio.gather(*store._index._chores)  # what follows a first append must not count as the second one's
    proxy.reset()
    await store.append("s0", [said(0, 1)], ttl=600)
    sizes = {"cut_request": proxy.requested, "cut_reply": proxy.replied}
    assert min(sizes.values()) > 50
    number = 2
    for fault, size in sizes.items():
        for cut in range(1, size + 1):
            proxy.reset()
            setattr(proxy, fault, cut)
            await store.append("s0", [said(0, number)], ttl=600)
            assert getattr(proxy, fault) is None  # it was cut
            number += 1
    assert await held(direct, 0) == [f"0-{n}" for n in range(number)]


async def test_a_popped_item_has_one_owner_though_replies_are_lost(proxy: FaultProxy, store: SessionStore) -> None:
    await store.append("s0", [said(0, number) for number in range(60)], ttl=600)
    proxy.lose = 0.1
    owned: list[str] = []

    async def pop() -> None:
        while items := (await store.read("s0", last=1)).items:
            owned.extend((await store.remove("s0", [items[0].id])).ids)

    await asyncio.gather(*(pop() for _ in range(4)))
    assert proxy.lost > 5
    assert sorted(owned) == sorted(f"0-{number}" for number in range(60))


async def test_a_deletion_sent_again_spares_what_was_appended_since(
    proxy: FaultProxy, store: SessionStore, direct: SessionStore
) -> None:
    await store.delete("s0")  # so that the server knows the script, and the first reply lost is the deletion's
    for attempt in range(30):
        await direct.append("s0", [said(0, 1000 + attempt)], ttl=600)
        proxy.reset()
        proxy.lose = 1.0
        deletion = asyncio.create_task(store.delete("s0"))
        await proxy.has_lost.wait()
        await direct.append("s0", [said(0, attempt)], ttl=600)  # after the first try, before the second
        proxy.lose = 0.0
        assert await deletion is True
        assert await held(direct, 0) == [f"0-{attempt}"]
        await direct.delete("s0")


async def test_a_held_reply_ends_in_an_unknown_outcome_within_the_deadline(
    proxy: FaultProxy, store: SessionStore, direct: SessionStore
) -> None:
    await store.append("s0", [said(0, 0)], ttl=600)
    proxy.delay = 3.0
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(OutcomeUnknown):
        await store.with_options(deadline=0.5).append("s0", [said(0, 1)], ttl=600)
    with pytest.raises(StoreUnavailable):
        await store.with_options(deadline=0.5).read("s0")
    assert loop.time() - began < 2.5
    proxy.delay = 0.0
    await store.append("s0", [said(0, 1)], ttl=600)
    assert await held(direct, 0) == ["0-0", "0-1"]


async def storm(store: SessionStore, *, seed: int) -> int:
    """Cancel a third of many concurrent calls; return how many answers were another session's."""
    chance = random.Random(seed)
    foreign = 0

    async def one(session: int) -> None:
        nonlocal foreign
        for _ in range(40):
            call = asyncio.create_task(store.read(f"s{session}"))
            if chance.random() < 0.33:
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                call.cancel()
            try:
                history = await call
            except asyncio.CancelledError:
                continue
            answered = {item.id.split("-")[0] for item in history.items}
            foreign += history.session is None or answered != {str(session)}

    await asyncio.gather(*(one(session) for session in range(40)))
    return foreign


async def begin_storm(store: SessionStore) -> None:
    for session in range(40):
        await store.append(f"s{session}", [said(session, 0)], ttl=600)
        await store.read(f"s{session}")


async def test_a_cancelled_call_never_leaves_its_reply_to_another(direct: SessionStore) -> None:
    await begin_storm(direct)
    assert sum([await storm(direct, seed=seed) for seed in range(3)]) == 0


async def test_a_cancelled_call_ends_as_cancelled(direct: SessionStore) -> None:
    """Not a matter of course: see `_heed` in stores/redis/connect.py."""
    await direct.append("s0", [said(0, 0)], ttl=600)
    chance, returned = random.Random(7), 0

    async def one() -> None:
        nonlocal returned
        for _ in range(50):
            call = asyncio.create_task(direct.read("s0"))
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
            if call.cancel():
                await asyncio.wait({call})
                returned += not call.cancelled()

    await asyncio.gather(*(one() for _ in range(20)))
    assert returned == 0


async def test_the_storm_of_cancelled_calls_sees_the_leak_it_looks_for(
    empty_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leaking(self: Connections, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The exchange as it must not be: an interrupted caller gives its connection back."""
        pool = await self._pool()
        async with pool.room:
            connection: AbstractConnection = pool.idle.pop() if pool.idle else self._class(**self._options)
            try:
                if not connection.is_connected:
                    await self._connect(connection)
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                return [await answer(connection) for _ in commands]
            finally:
                pool.idle.append(connection)

    async def answer(connection: AbstractConnection) -> object:
        try:
            return await connection.read_response(disconnect_on_error=False)
        except ResponseError as error:
            return error

    foreign = seed = 0
    while not foreign and seed < 20:  # chance decides how soon
        seed += 1
        async with aclosing(RedisStore.from_url(empty_redis.url)) as store:
            await begin_storm(store)
            with monkeypatch.context() as patch:
                patch.setattr(Connections, "exchange", leaking)
                foreign += await storm(store, seed=seed)
    assert foreign > 0
