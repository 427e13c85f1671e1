"""Turns of one session one after the other, across tasks and across instances."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.server.harness import (
    FakeUpstream,
    Running,
    assistant,
    hangs,
    running,
    says,
    server_settings,
    user,
    wait_until,
)
from tests.servers import RedisServer
from webai_api.protocol import SessionStore
from webai_api.server import lease
from webai_api.server.background import Background
from webai_api.stores.memory import MemoryStore
from webai_api.urls import open_store


async def assert_turns_are_whole(server: Running, session: str, turns: int) -> None:
    """Every question is followed by its own answer."""
    stored = await server.stored(session)
    assert len(stored) == 2 * turns
    for question, answer in zip(stored[::2], stored[1::2], strict=True):
        assert question["role"] == "user"
        assert answer["role"] == "assistant"
        assert f'You said: "{question["content"]}"' in answer["content"]


async def test_concurrent_turns_of_one_session_never_interleave(store: SessionStore) -> None:
    async with running(server_settings(), store) as server:
        replies = await asyncio.gather(*(server.say(f"turn {i}", "s", stream=bool(i % 2)) for i in range(20)))
        assert [r.status for r in replies] == [200] * 20
        await assert_turns_are_whole(server, "s", 20)
        counts = sorted(int(r.text.partition("remember ")[2].split()[0]) for r in replies)
        assert counts == list(range(0, 40, 2))  # each saw all before it


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_instances_that_share_a_store_take_turns_too(kind: str, tmp_path: Path, empty_redis: RedisServer) -> None:
    url = empty_redis.url if kind == "redis" else f"sqlite:///{tmp_path}/shared.db"
    async with (
        aclosing(open_store(url)) as one,
        aclosing(open_store(url)) as two,
        running(server_settings(), one) as first,
        running(server_settings(), two) as second,
    ):
        replies = await asyncio.gather(*((first, second)[i % 2].say(f"turn {i}", "s") for i in range(12)))
        assert {r.status for r in replies} <= {200, 409}
        done = [r.status for r in replies].count(200)
        assert done >= 2
        await assert_turns_are_whole(first, "s", done)


@pytest.mark.parametrize("instances", [1, 2])
async def test_a_turn_waits_for_the_one_before_it(
    server: Running, upstream: FakeUpstream, memory: SessionStore, instances: int
) -> None:
    upstream.script.append(says("first", delay=0.3))
    async with running(server_settings(**upstream.environ), memory) as other:
        one = asyncio.create_task(server.say("one", "s", model="fake-1"))
        await wait_until(lambda: bool(upstream.received))
        two = await (other if instances == 2 else server).say("two", "s", model="fake-1")
        assert ((await one).status, two.status) == (200, 200)
        assert await server.stored("s") == [user("one"), assistant("first"), user("two"), assistant("pong")]


@pytest.mark.parametrize("instances", [1, 2])
async def test_after_two_seconds_it_is_a_409_that_clients_repeat(
    server: Running, upstream: FakeUpstream, memory: SessionStore, instances: int
) -> None:
    assert lease.WAIT_SECONDS == 2.0
    upstream.script.append(says("first", delay=2.6))
    async with running(server_settings(**upstream.environ), memory) as other:
        one = asyncio.create_task(server.say("one", "s", model="fake-1"))
        await wait_until(lambda: bool(upstream.received))
        began = asyncio.get_running_loop().time()
        two = await (other if instances == 2 else server).say("two", "s", model="fake-1")
        assert 1.9 < asyncio.get_running_loop().time() - began < 2.5
        assert (two.status, two.error["code"]) == (409, "conversation_locked")
        assert two.headers["Retry-After"]
        assert (await one).status == 200
        assert await server.stored("s") == [user("one"), assistant("first")]


async def test_turns_are_served_in_the_order_they_came(server: Running, upstream: FakeUpstream) -> None:
    upstream.script.extend(says(str(i), delay=0.05) for i in range(6))
    tasks = []
    for i in range(6):
        tasks.append(asyncio.create_task(server.say(f"turn {i}", "s", model="fake-1")))
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    assert [m["content"] for m in (await server.stored("s"))[::2]] == [f"turn {i}" for i in range(6)]


async def test_a_long_turn_keeps_its_lease(
    server: Running, upstream: FakeUpstream, memory: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.2)
    upstream.script.append(says("first", delay=1.0))
    async with running(server_settings(**upstream.environ), memory) as other:
        one = asyncio.create_task(server.say("one", "s", model="fake-1"))
        await asyncio.sleep(0.6)
        assert (await other.say("two", "s", model="fake-1")).status == 409
        assert (await one).status == 200
        await server.settle()
        assert await server.count("s", "lease") == 0


async def test_an_instance_that_died_blocks_a_session_no_longer_than_its_lease(
    server: Running, upstream: FakeUpstream, memory: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 60)
    upstream.script.append(hangs)
    dead = asyncio.create_task(server.say("one", "s", model="fake-1"))
    await wait_until(lambda: bool(upstream.received))
    async with running(server_settings(**upstream.environ), memory) as other:
        reply = await other.say("two", "s", model="fake-1")
        assert (reply.status, reply.text) == (200, "pong")
    dead.cancel()
    await asyncio.wait({dead})
    await server.settle()
    assert await server.stored("s") == [user("two"), assistant("pong")]


async def test_sessions_do_not_wait_for_one_another(server: Running, upstream: FakeUpstream) -> None:
    upstream.script.extend(says("pong", delay=0.3) for _ in range(10))
    async with asyncio.timeout(1.5):
        replies = await asyncio.gather(*(server.say("ping", f"s{i}", model="fake-1") for i in range(10)))
    assert [r.status for r in replies] == [200] * 10


async def test_a_lease_that_is_cut_off_while_it_is_taken_is_given_back() -> None:
    async with aclosing(MemoryStore()) as store:
        background = Background()
        turnstile = lease.Turnstile(background)
        held = await turnstile.enter(store, None, "s")
        waiting = asyncio.create_task(turnstile.enter(store, None, "s"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait({waiting})
        held.leave()
        await background.drain(1)
        (await turnstile.enter(store, None, "s")).leave()
        await background.drain(1)
        assert (await store.read("s")).session is None
        assert not turnstile._queues
