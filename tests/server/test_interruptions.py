"""Upstreams that break, clients that go away: nothing half is kept, and nothing is left running."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.server.harness import (
    CHAT,
    DONE,
    FakeUpstream,
    Running,
    answers,
    assistant,
    completion,
    frame,
    frames,
    hangs,
    running,
    says,
    sends,
    server_settings,
    streams,
    user,
    wait_until,
)
from webai_api.errors import AuthenticationFailed, CorruptData, HistoryLost, OutcomeUnknown, StoreUnavailable
from webai_api.protocol import SessionStore
from webai_api.server import turn
from webai_api.server.upstream import http as upstream_http

ASK = {"model": "fake-1", "messages": [user("ping")]}


def call_piece(arguments: str) -> bytes:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return frame({"tool_calls": [call]})


@pytest.mark.parametrize(
    ("pieces", "then"),
    [
        (frames("po", "ng")[:2], "end"),
        (frames("po", "ng")[:2], "cut"),
        ([*frames("po", "ng")[:2], b'data: {"id": "half'], "cut"),
        ([*frames("po")[:2], b'data: {"error": {"message": "key sk-123 is bad", "code": 500}}\n\n', DONE], "end"),
        ([*frames("po")[:2], b"data: nonsense\n\n", *frames("ng")], "end"),
        ([*frames("po")[:2], b"data: [1]\n\n", *frames("ng")], "end"),
        ([call_piece('{"a'), frame({}, "length"), DONE], "end"),
        ([], "end"),
    ],
    ids=["ends early", "cut", "cut in an event", "error", "no json", "no chunk", "half a tool call", "empty"],
)
async def test_a_stream_that_breaks_off_is_an_error_event_without_done_and_nothing_is_stored(
    server: Running, upstream: FakeUpstream, pieces: Sequence[bytes], then: str
) -> None:
    upstream.script.append(streams(pieces, then=then))
    reply = await server.say("ping", "s", model="fake-1", stream=True)
    assert reply.status == 200
    assert "[DONE]" not in reply.events
    error = json.loads(reply.events[-1])["error"]
    assert error["type"] == "server_error"
    assert "sk-123" not in reply.body.decode()
    for event in reply.events:
        json.loads(event)
    assert await server.count("s") == 0
    assert (await server.say("ping", "s", model="fake-1")).text == "pong"  # and the session is free


@pytest.mark.parametrize("then", ["end", "cut"])
async def test_without_a_session_an_upstream_that_is_cut_is_an_error_event_too(
    server: Running, upstream: FakeUpstream, then: str
) -> None:
    upstream.script.append(streams([*frames("po")[:2], b'data: {"half'], then="cut"))
    reply = await server.say("ping", model="fake-1", stream=True)
    assert json.loads(reply.events[-1])["error"]["code"] == "upstream_truncated"


async def test_a_finish_reason_is_the_end_where_an_upstream_says_no_done(
    server: Running, upstream: FakeUpstream
) -> None:
    upstream.script.append(streams([b": ping\n\n", *frames("po", "ng")[:-1]]))
    reply = await server.say("ping", "s", model="fake-1", stream=True)
    assert reply.events[-1] == "[DONE]"
    assert await server.stored("s") == [user("ping"), assistant("pong")]


async def test_line_ends_and_pieces_of_any_kind_become_one_event_a_write(
    server: Running, upstream: FakeUpstream
) -> None:
    raw = b"".join(frames("po", "ng")).replace(b"\n", b"\r\n")
    upstream.script.append(streams([raw[i : i + 7] for i in range(0, len(raw), 7)]))
    reply = await server.say("ping", "s", model="fake-1", stream=True)
    assert b"\r" not in reply.body
    assert (reply.text, reply.events[-1]) == ("pong", "[DONE]")
    assert await server.stored("s") == [user("ping"), assistant("pong")]


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[]", b'{"choices":[]}', b'{"choices":[{"message":7}]}', b'{"choices":[{}]}']
)
async def test_an_answer_that_cannot_be_kept_is_a_502(server: Running, upstream: FakeUpstream, body: bytes) -> None:
    upstream.script.append(sends(body))
    reply = await server.say("ping", "s", model="fake-1")
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert await server.count("s") == 0


async def test_an_answer_larger_than_a_session_holds_is_a_502(server: Running, upstream: FakeUpstream) -> None:
    upstream.script.append(answers(completion({"content": "x" * ((1 << 20) + 1)})))
    reply = await server.say("ping", "s", model="fake-1")
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert await server.count("s") == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("session", [None, "s"])
async def test_a_client_that_goes_away_stops_the_upstream_and_leaves_nothing(
    server: Running, upstream: FakeUpstream, stream: bool, session: str | None
) -> None:
    behaviour = streams(frames("po")[:2], then="hang") if stream else hangs
    upstream.script.append(behaviour)
    await leave_early(server, session, stream=stream, upstream=upstream)
    async with asyncio.timeout(1):
        await upstream.hung_up.wait()
    await server.settle()
    assert await server.count("s") == 0
    assert await server.count("s", "lease") == 0
    reply = await server.say("ping", "s", model="fake-1")
    assert (reply.status, reply.text) == (200, "pong")


async def leave_early(
    server: Running, session: str | None, *, stream: bool, upstream: FakeUpstream, key: str | None = None
) -> None:
    """Ask, wait until the upstream has the question (and the client the first words), and hang up."""
    asked = len(upstream.received)
    headers = {"X-Session-Id": session} if session else {}
    if key:
        headers["Idempotency-Key"] = key

    async def ask() -> None:
        async with server.http.post(server.url + CHAT, json={**ASK, "stream": stream}, headers=headers) as response:
            async for _ in response.content:
                pass

    task = asyncio.create_task(ask())
    await wait_until(lambda: len(upstream.received) > asked)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize("stream", [False, True])
async def test_with_finish_the_answer_is_completed_and_stored(
    upstream: FakeUpstream, memory: SessionStore, stream: bool
) -> None:
    environ = {**upstream.environ, "WEBAI_ON_INTERRUPT": "finish"}
    async with running(server_settings(**environ), memory) as server:
        gate = asyncio.Event()
        upstream.script.append(streams(frames("po", "ng"), gate=gate) if stream else says("pong", delay=0.3))
        await leave_early(server, "s", stream=stream, upstream=upstream, key="k")
        assert await server.count("s") == 0
        gate.set()
        await server.settle()
        assert await server.stored("s") == [user("ping"), assistant("pong")]
        retry = await server.post({**ASK, "stream": stream}, headers={"X-Session-Id": "s", "Idempotency-Key": "k"})
        assert (retry.text, retry.headers["Idempotent-Replayed"]) == ("pong", "true")
        assert await server.count("s") == 2
        assert len(upstream.received) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_with_finish_a_retry_without_a_key_is_answered_from_the_store_once(
    upstream: FakeUpstream, memory: SessionStore, stream: bool
) -> None:
    environ = {**upstream.environ, "WEBAI_ON_INTERRUPT": "finish"}
    async with running(server_settings(**environ), memory) as server:
        upstream.script.append(says("first"))
        await server.post({**ASK, "stream": False}, headers={"X-Session-Id": "s"})
        gate = asyncio.Event()
        upstream.script.append(streams(frames("po", "ng"), gate=gate) if stream else says("pong", delay=0.3))
        await leave_early(server, "s", stream=stream, upstream=upstream)
        gate.set()
        await server.settle()
        retry = await server.post({**ASK, "stream": stream}, headers={"X-Session-Id": "s"})
        assert (retry.text, retry.headers["Idempotent-Replayed"]) == ("pong", "true")
        assert (await server.count("s"), len(upstream.received)) == (4, 2)
        await server.settle()
        upstream.script.append(streams(frames("new")) if stream else says("new"))
        again = await server.post({**ASK, "stream": stream}, headers={"X-Session-Id": "s"})
        assert (again.text, "Idempotent-Replayed" in again.headers) == ("new", False)
        assert await server.count("s") == 6


async def test_with_finish_another_request_is_a_new_turn(upstream: FakeUpstream, memory: SessionStore) -> None:
    environ = {**upstream.environ, "WEBAI_ON_INTERRUPT": "finish"}
    async with running(server_settings(**environ), memory) as server:
        upstream.script.append(says("pong", delay=0.3))
        await leave_early(server, "s", stream=False, upstream=upstream)
        await server.settle()
        upstream.script += [says("other"), says("pong again")]
        for question, answer in (("else", "other"), ("ping", "pong again")):
            body = {"model": "fake-1", "messages": [user(question)]}
            assert (await server.post(body, headers={"X-Session-Id": "s"})).text == answer
        assert await server.count("s") == 6


async def test_with_finish_a_client_that_goes_during_the_commit_gets_its_answer_again(
    upstream: FakeUpstream, memory: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    committing, gate = asyncio.Event(), asyncio.Event()
    original = type(memory).append

    async def slow(view: Any, *args: Any, **kwargs: Any) -> Any:
        if view._options.namespace == "session":
            committing.set()
            await gate.wait()
        return await original(view, *args, **kwargs)

    monkeypatch.setattr(type(memory), "append", slow)
    environ = {**upstream.environ, "WEBAI_ON_INTERRUPT": "finish"}
    async with running(server_settings(**environ), memory) as server:
        first = asyncio.create_task(server.say("ping", "s", model="fake-1"))
        await committing.wait()
        first.cancel()
        await asyncio.wait({first})
        await asyncio.sleep(0.05)
        gate.set()
        await server.settle()
        retry = await server.say("ping", "s", model="fake-1")
        assert (retry.text, retry.headers["Idempotent-Replayed"]) == ("pong", "true")
        assert await server.stored("s") == [user("ping"), assistant("pong")]


@pytest.mark.parametrize("verb", ["append", "delete"])
async def test_with_finish_a_store_that_cannot_keep_an_answer_for_a_retry_still_stores_the_turn(
    upstream: FakeUpstream, memory: SessionStore, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    failing = Failing(monkeypatch, memory, verb, "unseen")
    failing.error, failing.times = StoreUnavailable("down"), 100
    environ = {**upstream.environ, "WEBAI_ON_INTERRUPT": "finish"}
    async with running(server_settings(**environ), memory) as server:
        assert (await server.say("ping", "s", model="fake-1")).status == 200
        assert await server.stored("s") == [user("ping"), assistant("pong")]


async def test_a_thousand_clients_that_hang_up_leave_no_task_lease_or_connection(
    server: Running, upstream: FakeUpstream
) -> None:
    port = int(server.url.rpartition(":")[2])
    body = json.dumps({**ASK, "stream": True}).encode()
    before = len(asyncio.all_tasks())

    async def hang_up(i: int) -> None:
        upstream.script.append(streams(frames("po")[:2], then="hang"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nX-Session-Id: s{i}\r\n".encode())
        writer.write(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        if i % 2:
            await reader.readuntil(b"\n\n")
        writer.transport.abort()

    for start in range(0, 1000, 50):
        await asyncio.gather(*(hang_up(i) for i in range(start, start + 50)))
    await server.settle()
    await wait_until(lambda: len(asyncio.all_tasks()) <= before + 5, 10)
    leases = server.store.with_options(namespace="lease")
    assert [s async for s in leases.sessions()] == []
    assert [s async for s in server.store.sessions()] == []


class Failing:
    """Makes a verb of the store fail a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: SessionStore, verb: str, namespace: str) -> None:
        self.error: Exception | None = None
        self.times = 0
        self.after = False
        original = getattr(type(store), verb)

        async def failing(view: Any, *args: Any, **kwargs: Any) -> Any:
            if self.error is not None and self.times and view._options.namespace == namespace:
                self.times -= 1
                if self.after:
                    await original(view, *args, **kwargs)
                raise self.error
            return await original(view, *args, **kwargs)

        monkeypatch.setattr(type(store), verb, failing)


@pytest.mark.parametrize(
    ("verb", "error", "status", "code"),
    [
        ("append", StoreUnavailable("redis://user:password@host"), 503, "store_unavailable"),
        ("read", StoreUnavailable("redis://user:password@host"), 503, "store_unavailable"),
        ("read", HistoryLost("s", promised=3, found=1), 500, "history_lost"),
        ("read", CorruptData("session s"), 500, "corrupt_data"),
        ("read", AuthenticationFailed("user with password"), 500, "store_refused"),
    ],
)
async def test_a_store_that_fails_is_told_before_the_model_is_asked(
    server: Running,
    upstream: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    error: Exception,
    status: int,
    code: str,
) -> None:
    failing = Failing(monkeypatch, server.store, verb, "lease" if verb == "append" else "session")
    failing.error, failing.times = error, 100
    reply = await server.say("ping", "s", model="fake-1")
    assert (reply.status, reply.error["code"]) == (status, code)
    assert ("Retry-After" in reply.headers) == (status == 503)
    assert b"password" not in reply.body
    assert not upstream.received
    failing.times = 0
    assert (await server.say("ping", "s", model="fake-1")).status == 200


@pytest.mark.parametrize("after", [False, True])
async def test_a_commit_whose_outcome_is_unknown_is_repeated_and_stored_once(
    server: Running, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    failing = Failing(monkeypatch, server.store, "append", "session")
    failing.error, failing.times, failing.after = OutcomeUnknown("lost"), 2, after
    assert (await server.say("ping", "s", model="fake-1")).status == 200
    assert await server.stored("s") == [user("ping"), assistant("pong")]


async def test_a_commit_that_may_have_happened_is_never_said_not_to_have(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "COMMIT_SECONDS", 0.5)
    original, errors = type(server.store).append, [OutcomeUnknown("lost")]

    async def failing(view: Any, *args: Any, **kwargs: Any) -> Any:
        if view._options.namespace == "session":
            raise errors.pop() if errors else StoreUnavailable("down")
        return await original(view, *args, **kwargs)

    monkeypatch.setattr(type(server.store), "append", failing)
    reply = await server.say("ping", "s", model="fake-1")
    assert (reply.status, reply.error["code"]) == (503, "outcome_unknown")


async def test_a_lease_that_may_have_been_taken_is_given_back(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, server.store, "append", "lease")
    failing.error, failing.times, failing.after = OutcomeUnknown("lost"), 1, True
    reply = await server.say("ping", "s", model="fake-1")
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    await server.settle()
    assert (await server.say("ping", "s", model="fake-1")).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_commit_that_fails_is_an_error_and_never_done(
    server: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(turn, "COMMIT_SECONDS", 0.1)
    failing = Failing(monkeypatch, server.store, "append", "session")
    failing.error, failing.times = StoreUnavailable("down"), 100
    reply = await server.say("ping", "s", model="fake-1", stream=stream)
    if stream:
        assert "[DONE]" not in reply.events
        assert json.loads(reply.events[-1])["error"]["code"] == "store_unavailable"
    else:
        assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    assert await server.count("s") == 0


@pytest.mark.parametrize(
    ("limit", "stream"), [("first_byte", False), ("first_byte", True), ("idle", True), ("total", True)]
)
@pytest.mark.parametrize("session", [None, "s"])
async def test_an_upstream_that_takes_too_long_is_a_504_or_an_error_event(
    server: Running,
    upstream: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    stream: bool,
    session: str | None,
) -> None:
    monkeypatch.setattr(upstream_http.TIMEOUTS, limit, 0.15)
    upstream.script.append(hangs if limit == "first_byte" else streams(frames("po")[:2], then="hang"))
    reply = await server.say("ping", session, model="fake-1", stream=stream)
    if limit == "first_byte":
        assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
    else:
        assert json.loads(reply.events[-1])["error"]["code"] == "upstream_timeout"
    await asyncio.wait_for(upstream.hung_up.wait(), 1)
    assert await server.count("s") == 0
