"""Idempotency-Key: the same request is answered again, not run again."""

import asyncio
from typing import Any

import pytest

from tests.server.harness import (
    FakeUpstream,
    Running,
    answers,
    assistant,
    frames,
    hangs,
    running,
    says,
    server_settings,
    streams,
    user,
    wait_until,
)
from webai_api.errors import StoreUnavailable
from webai_api.protocol import SessionStore
from webai_api.server import lease, turn
from webai_api.types import Item

ASK = {"model": "fake-1", "messages": [user("ping")]}
ONCE = {"X-Session-Id": "s", "Idempotency-Key": "k"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("session", [None, "s"])
async def test_the_same_request_gets_the_same_answer_and_runs_once(
    store: SessionStore, upstream: FakeUpstream, stream: bool, session: str | None
) -> None:
    async with running(server_settings(**upstream.environ), store) as server:
        headers = {"Idempotency-Key": "k", **({"X-Session-Id": session} if session else {})}
        first = await server.post({**ASK, "stream": stream}, headers=headers)
        again = await server.post({**ASK, "stream": stream}, headers=headers)
        assert (first.status, again.status) == (200, 200)
        assert again.body == first.body
        assert again.text == "pong"
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.headers.get("X-Session-Id") == session
        if session:
            version = (await store.read("s")).session.version  # type: ignore[union-attr]
            assert again.headers["X-Session-Version"] == str(version)
            assert await server.stored("s") == [user("ping"), assistant("pong")]
        assert len(upstream.received) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"messages": [user("other")]}, {"session_id": "t"}])
async def test_another_request_with_the_same_key_is_a_422(
    server: Running, upstream: FakeUpstream, change: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "k"}
    await server.post({**ASK, "session_id": "s"}, headers=key)
    reply = await server.post({**ASK, "session_id": "s", **change}, headers=key)
    assert (reply.status, reply.error["code"]) == (422, "idempotency_key_reused")
    assert len(upstream.received) == 1


async def test_the_session_is_part_of_the_request_wherever_it_is_named(server: Running) -> None:
    await server.post(ASK, headers=ONCE)
    reply = await server.post(ASK, headers={**ONCE, "X-Session-Id": "t"})
    assert reply.status == 422


async def test_while_the_first_request_runs_the_second_is_a_409(server: Running, upstream: FakeUpstream) -> None:
    upstream.script.append(says("pong", delay=0.3))
    first = asyncio.create_task(server.post(ASK, headers=ONCE))
    await wait_until(lambda: bool(upstream.received))
    second = await server.post(ASK, headers=ONCE)
    assert (second.status, second.error["code"]) == (409, "idempotency_in_flight")
    assert second.headers["Retry-After"]
    assert (await first).text == "pong"
    assert (await server.post(ASK, headers=ONCE)).text == "pong"
    assert len(upstream.received) == 1


@pytest.mark.parametrize(
    "behaviour",
    [answers({"error": {"message": "no"}}, status=400), answers({}, status=500), streams(frames("po")[:2])],
    ids=["400", "500", "truncated"],
)
async def test_a_request_that_failed_runs_again(server: Running, upstream: FakeUpstream, behaviour: Any) -> None:
    upstream.script.append(behaviour)
    body = {**ASK, "stream": True}
    await server.post(body, headers=ONCE)
    await server.settle()
    again = await server.post(body, headers=ONCE)
    assert (again.status, again.text) == (200, "pong")
    assert "Idempotent-Replayed" not in again.headers
    assert await server.count("s") == 2


async def test_a_request_whose_client_left_runs_again(server: Running, upstream: FakeUpstream) -> None:
    upstream.script.append(hangs)
    first = asyncio.create_task(server.post(ASK, headers=ONCE))
    await wait_until(lambda: bool(upstream.received))
    first.cancel()
    await asyncio.wait({first})
    await asyncio.wait_for(upstream.hung_up.wait(), 1)
    await server.settle()
    assert (await server.post(ASK, headers=ONCE)).text == "pong"


async def test_a_bad_request_does_not_use_up_its_key(server: Running) -> None:
    key = {"Idempotency-Key": "k"}
    await server.post({**ASK, "session_id": "s"}, headers={"Idempotency-Key": "0"})
    overlapping = {**ASK, "session_id": "s", "messages": [assistant("x"), user("y")]}
    assert (await server.post(overlapping, headers=key)).status == 400
    await server.settle()
    assert (await server.post({**ASK, "session_id": "t"}, headers=key)).status == 200


async def test_a_crash_blocks_the_key_no_longer_than_its_lease(
    server: Running, upstream: FakeUpstream, memory: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 60)  # a process that died renews nothing
    upstream.script.append(hangs)
    dead = asyncio.create_task(server.post(ASK, headers=ONCE))
    await wait_until(lambda: bool(upstream.received))
    async with running(server_settings(**upstream.environ), memory) as other:
        assert (await other.post(ASK, headers=ONCE)).status == 409
        await asyncio.sleep(0.5)
        assert (await other.post(ASK, headers=ONCE)).text == "pong"
        assert await other.stored("s") == [user("ping"), assistant("pong")]
    dead.cancel()
    await asyncio.wait({dead})


async def test_who_lost_the_key_while_asleep_commits_nothing(
    server: Running, upstream: FakeUpstream, memory: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 60)
    upstream.script.append(says("late", delay=0.8))
    sleeper = asyncio.create_task(server.post(ASK, headers=ONCE))
    await asyncio.sleep(0.3)
    async with running(server_settings(**upstream.environ), memory) as other:
        assert (await other.post(ASK, headers=ONCE)).text == "pong"
    late = await sleeper
    assert (late.status, late.error["code"]) == (409, "idempotency_in_flight")
    assert await server.stored("s") == [user("ping"), assistant("pong")]


async def crash_before_the_commit(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a request up to where the answer is kept, and let the turn's commit fail as if the process had died."""
    original = type(server.store).append

    async def append(view: Any, *args: Any, **kwargs: Any) -> Any:
        if view._options.namespace == "session":
            raise StoreUnavailable("died")
        return await original(view, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(turn, "COMMIT_SECONDS", 0.05)
        patched.setattr(type(server.store), "append", append)
        assert (await server.post(ASK, headers=ONCE)).status == 503
        await server.settle()
    assert await server.count("s") == 0


async def test_a_turn_whose_commit_was_cut_off_is_completed_by_the_repetition(
    server: Running, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crash_before_the_commit(server, monkeypatch)
    again = await server.post(ASK, headers=ONCE)
    assert (again.text, again.headers["Idempotent-Replayed"]) == ("pong", "true")
    assert await server.stored("s") == [user("ping"), assistant("pong")]
    assert len(upstream.received) == 1


async def test_a_turn_that_cannot_be_completed_any_more_runs_anew(
    server: Running, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crash_before_the_commit(server, monkeypatch)
    await server.say("meanwhile", "s", model="fake-1")
    reply = await server.post(ASK, headers=ONCE)
    assert (reply.status, reply.error["code"]) == (409, "conversation_locked")
    assert (await server.post(ASK, headers=ONCE)).status == 200
    assert [m["content"] for m in await server.stored("s")] == ["meanwhile", "pong", "ping", "pong"]


async def test_a_repetition_after_many_other_turns_stores_nothing_and_one_after_a_clear_revives_nothing(
    server: Running,
) -> None:
    first = await server.post(ASK, headers=ONCE)
    await server.store.append("s", [Item(data={**user(str(i)), "metadata": {}}) for i in range(100)])
    assert (await server.post(ASK, headers=ONCE)).body == first.body
    assert await server.count("s") == 102
    await server.store.delete("s")
    assert (await server.post(ASK, headers=ONCE)).body == first.body
    assert await server.count("s") == 0


async def test_a_long_answer_is_replayed_whole(server: Running, upstream: FakeUpstream) -> None:
    upstream.script.append(says("é" * 700_000))
    first = await server.post(ASK, headers={"Idempotency-Key": "k"})
    again = await server.post(ASK, headers={"Idempotency-Key": "k"})
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.body == first.body


async def test_two_keys_in_one_request_are_a_400(server: Running) -> None:
    reply = await server.post(ASK, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    assert reply.status == 400
