"""What the server does with a session: one test a sentence of the contract."""

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from tests.server.harness import (
    FakeUpstream,
    Running,
    answers,
    assistant,
    completion,
    frame,
    frames,
    running,
    says,
    server_settings,
    streams,
    user,
)
from webai_api.protocol import SessionStore
from webai_api.server.wire import DONE
from webai_api.types import Item


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_sends_only_what_is_new_is_remembered(store: SessionStore, stream: bool) -> None:
    async with running(server_settings(), store) as server:
        assert (await server.say("My name is Ada.", "s", stream=stream)).status == 200
        assert (await server.say("What is my name?", "s", stream=stream)).text == "Your name is Ada."
        assert (await server.say("What is my name?", "other", stream=stream)).text.startswith("I do not know")
        assert [m["role"] for m in await server.stored("s")] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"X-Session-Id": "a/b"}, {}),
        ({"X-Conversation-Id": "a%2Fb"}, {}),
        ({}, {"session_id": "a/b"}),
        ({}, {"conversation_id": "a/b"}),
        ({"X-Session-Id": "a%2fb", "X-Conversation-Id": "a/b"}, {"session_id": "a/b", "conversation_id": "a/b"}),
    ],
)
async def test_a_session_is_named_by_header_or_body(
    server: Running, upstream: FakeUpstream, headers: dict[str, str], fields: dict[str, str]
) -> None:
    reply = await server.say("ping", headers=headers, **{"model": "fake-1", **fields})
    assert reply.status == 200
    assert reply.headers["X-Session-Id"] == "a%2Fb"
    assert await server.stored("a/b") == [user("ping"), assistant("pong")]
    assert set(upstream.received[0]) == {"model", "messages"}


@pytest.mark.parametrize("session", ["Ünïcødé 会話", "50% {off}", "x:log", "../../etc", "*?[", "a+b c"])
async def test_an_id_of_any_text_comes_back_percent_encoded(server: Running, session: str) -> None:
    encoded = quote(session, safe="")
    assert (await server.say("hello", encoded)).headers["X-Session-Id"] == encoded
    assert await server.count(session) == 2


async def test_ids_that_differ_only_in_unicode_form_are_two_sessions(server: Running) -> None:
    await server.say("I am composed", quote("\u00e9"))
    assert "0 earlier" in (await server.say("hello", quote("e\u0301"))).text


async def test_the_version_is_told_and_never_goes_down(server: Running) -> None:
    first = await server.say("one", "s")
    streamed = await server.say("two", "s", stream=True)
    third = await server.say("three", "s")
    assert streamed.headers["X-Session-Version"] == first.headers["X-Session-Version"]  # the one before the turn
    assert int(third.headers["X-Session-Version"]) > int(first.headers["X-Session-Version"])


async def test_system_and_developer_messages_go_first_and_are_not_stored(
    server: Running, upstream: FakeUpstream
) -> None:
    await server.say("one", "s", model="fake-1")
    reply = await server.send(
        [user("two"), {"role": "system", "content": "be brief"}, {"role": "developer", "content": "be kind"}],
        "s",
        model="fake-1",
    )
    assert reply.status == 200
    roles = [m["role"] for m in upstream.received[1]["messages"]]
    assert roles == ["system", "developer", "user", "assistant", "user"]
    assert [m["role"] for m in await server.stored("s")] == ["user", "assistant"] * 2
    await server.say("three", "s", model="fake-1")
    assert [m["role"] for m in upstream.received[2]["messages"]] == ["user", "assistant"] * 2 + ["user"]


async def test_instructions_that_a_library_stored_stand_in_where_a_request_has_none(
    server: Running, upstream: FakeUpstream
) -> None:
    stored = {"role": "system", "content": "stored", "metadata": {}}
    await server.store.append("s", [Item(data=stored), Item(data={**user("hi"), "metadata": {}})])
    await server.say("one", "s", model="fake-1")
    await server.send([{"role": "system", "content": "mine"}, user("two")], "s", model="fake-1")
    first, second = (r["messages"] for r in upstream.received)
    assert [m["content"] for m in first] == ["stored", "hi", "one"]
    assert [m["content"] for m in second] == ["mine", "hi", "one", "pong", "two"]


async def test_a_request_that_repeats_the_whole_history_brings_only_the_rest(
    server: Running, upstream: FakeUpstream
) -> None:
    await server.say("one", "s", model="fake-1")
    resent: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {**assistant("pong"), "refusal": None, "metadata": {"ui": 1}},
        user("two"),
    ]
    assert (await server.send(resent, "s", model="fake-1")).status == 200
    assert [m["content"] for m in upstream.received[1]["messages"]] == ["be brief", "one", "pong", "two"]
    assert await server.count("s") == 4


async def test_an_unanswered_question_that_is_sent_again_is_answered_once(server: Running) -> None:
    await server.store.append("s", [Item(data={**user("hi"), "metadata": {}})])
    assert (await server.say("hi", "s")).status == 200
    assert [m["role"] for m in await server.stored("s")] == ["user", "assistant"]


async def test_assistant_messages_are_accepted_as_the_beginning_of_an_empty_session(
    server: Running, upstream: FakeUpstream
) -> None:
    brought = [assistant("Welcome"), user("I am Ada"), assistant("Hello"), user("and now?")]
    assert (await server.send(brought, "s", model="fake-1")).status == 200
    assert await server.stored("s") == [*brought, assistant("pong")]


@pytest.mark.parametrize(
    "messages",
    [
        [user("one"), assistant("changed"), user("two")],
        [assistant("pong"), user("two")],
        [user("two"), assistant("made up")],
        [user("one"), user("two")],
        [user("one"), assistant("pong")],
        [{"role": "system", "content": "only this"}],
    ],
    ids=["edited", "the end of it", "an answer", "without the answers", "nothing new", "instructions only"],
)
async def test_what_overlaps_otherwise_is_refused_and_says_so(
    server: Running, upstream: FakeUpstream, messages: list[dict[str, Any]]
) -> None:
    await server.say("one", "s", model="fake-1")
    reply = await server.send(messages, "s", model="fake-1")
    assert reply.status == 400
    assert "conversation" in reply.error["message"]
    assert reply.error["param"] == "messages"
    assert await server.count("s") == 2
    assert len(upstream.received) == 1


async def test_more_than_one_choice_is_refused_with_a_session_only(server: Running) -> None:
    refused = await server.say("hi", "s", n=2)
    assert (refused.status, refused.error["param"]) == (400, "n")
    assert (await server.say("hi", "s", n=1)).status == 200
    assert len((await server.say("hi", n=2)).json["choices"]) == 2


async def test_the_history_limit_bounds_what_goes_upstream_in_whole_turns(
    upstream: FakeUpstream, memory: SessionStore
) -> None:
    async with running(server_settings(WEBAI_HISTORY_LIMIT="4", **upstream.environ), memory) as server:
        for text in ("one", "two", "three"):
            await server.say(text, "s", model="fake-1")
        assert [m["content"] for m in upstream.received[2]["messages"]] == ["two", "pong", "three"]
        assert await server.count("s") == 6


async def test_a_turn_that_is_longer_than_the_limit_goes_upstream_whole(
    upstream: FakeUpstream, memory: SessionStore
) -> None:
    async with running(server_settings(WEBAI_HISTORY_LIMIT="2", **upstream.environ), memory) as server:
        calls = [tool_call(str(i), "f", "{}") for i in range(3)]
        upstream.script.append(answers(completion({"content": None, "tool_calls": calls}, "tool_calls")))
        await server.say("go", "s", model="fake-1")
        results = [{"role": "tool", "tool_call_id": str(i), "content": "ok"} for i in range(3)]
        assert (await server.send(results, "s", model="fake-1")).status == 200
        assert [m["role"] for m in upstream.received[1]["messages"]] == ["user", "assistant"] + ["tool"] * 3


def tool_call(call_id: str, name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_are_part_of_the_turn(server: Running, upstream: FakeUpstream, stream: bool) -> None:
    signed = {"extra_content": {"google": {"thought_signature": "sig"}}}
    calls = [tool_call("call_1", "f", '{"a":1}', **signed), tool_call("call_2", "g", "{}")]
    pieces = [
        frame({"role": "assistant", "content": None}),
        frame({"tool_calls": [{"index": 0, **calls[0], "function": {"name": "f", "arguments": '{"a"'}}]}),
        frame({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
        frame({"tool_calls": [{"index": 1, **calls[1]}]}),
        frame({}, "tool_calls"),
        DONE,
    ]
    whole = answers(completion({"content": None, "tool_calls": calls}, "tool_calls"))
    upstream.script.append(streams(pieces) if stream else whole)
    await server.say("go", "s", model="fake-1", stream=stream)
    results = [{"role": "tool", "tool_call_id": c["id"], "content": "ok"} for c in calls]
    assert (await server.send(results, "s", model="fake-1", stream=stream)).text == "pong"
    sent = upstream.received[1]["messages"]
    assert sent == [user("go"), {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    again = await server.send(results, "s", model="fake-1")
    assert (again.status, again.error["code"]) == (400, "conversation_overlap")


async def test_only_what_a_model_is_shown_again_is_kept_of_an_answer(server: Running, upstream: FakeUpstream) -> None:
    message: Any = {"content": "hi", "refusal": None, "annotations": [], "audio": {"id": "audio_1", "data": "x" * 100}}
    upstream.script.append(answers(completion(message)))
    await server.say("one", "s", model="fake-1")
    await server.say("two", "s", model="fake-1")
    kept = upstream.received[1]["messages"][1]
    assert kept == {"role": "assistant", "content": "hi", "audio": {"id": "audio_1"}}


@pytest.mark.parametrize("session", [None, "s"])
async def test_metadata_id_and_created_at_of_messages_stay_here(
    server: Running, upstream: FakeUpstream, session: str | None
) -> None:
    message = {**user("hi"), "metadata": {"a": 1}, "id": "msg_1", "created_at": 5, "name": "ada"}
    assert (await server.send([message], session, model="fake-1", seed=7)).status == 200
    assert upstream.received[0]["messages"] == [{**user("hi"), "name": "ada"}]
    assert upstream.received[0]["seed"] == 7


async def test_a_turn_is_stored_as_the_library_stores_it(server: Running, upstream: FakeUpstream) -> None:
    await server.send([{**user("hi"), "metadata": {"a": 1}}], "s", model="fake-1")
    items = (await server.store.read("s")).items
    assert [dict(i.data) for i in items] == [
        {"role": "user", "content": "hi", "metadata": {"a": 1}},
        {"role": "assistant", "content": "pong", "metadata": {}},
    ]
    turn = items[0].id.partition(":")[0]
    assert [i.id for i in items] == [f"{turn}:0", f"{turn}:1"]


async def test_a_turn_renews_the_session(upstream: FakeUpstream, memory: SessionStore) -> None:
    async with running(server_settings(SESSION_TTL="1000"), memory) as server:
        await server.say("hi", "s")
        session = (await memory.read("s")).session
    assert session is not None
    assert session.expires_at is not None
    assert session.expires_at - session.updated_at == pytest.approx(1000, abs=5)


async def test_a_stream_says_done_only_after_the_commit(server: Running, upstream: FakeUpstream) -> None:
    upstream.script.append(streams(frames("po", "ng")))
    async with server.http.post(
        f"{server.url}/v1/chat/completions",
        json={"model": "fake-1", "stream": True, "messages": [user("ping")]},
        headers={"X-Session-Id": "s"},
    ) as response:
        async for line in response.content:
            if line == b"data: [DONE]\n":
                assert await server.stored("s") == [user("ping"), assistant("pong")]
                break
        else:
            pytest.fail("no [DONE]")


async def test_a_session_that_another_writer_changed_meanwhile_is_not_written(
    server: Running, upstream: FakeUpstream
) -> None:
    for stream in (False, True):
        upstream.script.append(says("pong", delay=0.2))
        turn = server.say("ping", f"s{stream}", model="fake-1", stream=stream)
        _, reply = await gather_after(0.1, server.store.append(f"s{stream}", [Item(data=user("x"))]), turn)
        assert await server.count(f"s{stream}") == 1
        if stream:
            assert "conversation_locked" in reply.events[-1]
            assert "[DONE]" not in reply.events
        else:
            assert (reply.status, reply.error["code"]) == (409, "conversation_locked")
            assert reply.headers["Retry-After"]


async def gather_after(delay: float, first: Any, second: Any) -> tuple[Any, Any]:
    async def later() -> Any:
        await asyncio.sleep(delay)
        return await first

    one, two = await asyncio.gather(later(), second)
    return one, two
