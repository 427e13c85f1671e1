"""Which upstream is asked, with what, and what becomes of its answers."""

import json
from typing import Any

import aiohttp
import pytest

from tests.server.harness import (
    CHAT,
    DONE,
    FakeUpstream,
    Running,
    answers,
    completion,
    fake_upstream,
    frames,
    running,
    sends,
    server_settings,
    streams,
    user,
)
from webai_api.protocol import SessionStore
from webai_api.server.upstream.http import Client
from webai_api.server.upstream.registry import Registry

ASK = {"model": "fake-1", "messages": [user("ping")]}


async def test_without_a_session_the_request_goes_through_byte_for_byte(
    server: Running, upstream: FakeUpstream
) -> None:
    raw = b'{ "model" : "fake-1",\n "messages":[{"role":"user","content":"h\\u00e9"}],"temperature":1.0,"metadata":{} }'
    await server.request("POST", CHAT, data=raw, headers={"Content-Type": "application/json"})
    assert upstream.raw == [raw]


async def test_without_a_session_the_answer_comes_through_byte_for_byte(
    server: Running, upstream: FakeUpstream
) -> None:
    whole = b'{ "choices": [], "odd" : 1.0 }'
    upstream.script.append(sends(whole))
    assert (await server.post(ASK)).body == whole
    stream = b": comment\r\n\r\n" + b"".join(frames("a", "b")) + b"event: x\ndata: y"
    upstream.script.append(streams([stream[i : i + 5] for i in range(0, len(stream), 5)]))
    reply = await server.post({**ASK, "stream": True})
    assert reply.body == stream
    assert reply.headers["Content-Type"] == "text/event-stream"


async def test_a_session_costs_the_request_only_the_fields_that_are_ours(
    server: Running, upstream: FakeUpstream
) -> None:
    extra = {"temperature": 0.5, "metadata": {"a": "b"}, "store": True, "user": "u", "tools": []}
    await server.post({**ASK, **extra, "session_id": "s"})
    assert upstream.received == [{**ASK, **extra}]


async def test_nothing_of_the_client_goes_upstream_but_the_body(server: Running, upstream: FakeUpstream) -> None:
    theirs = {
        "Authorization": "Bearer client-key",
        "Cookie": "a=b",
        "OpenAI-Organization": "org",
        "X-Forwarded-For": "1.2.3.4",
        "X-Session-Id": "s",
        "Idempotency-Key": "k",
    }
    await server.post(ASK, headers=theirs)
    sent = upstream.headers[0]
    assert sent["Authorization"] == "Bearer sk-upstream-secret"
    for name in theirs:
        assert name == "Authorization" or name not in sent


async def test_of_an_upstreams_headers_only_harmless_ones_come_back(server: Running, upstream: FakeUpstream) -> None:
    headers = {
        "x-ratelimit-remaining-requests": "7",
        "openai-version": "2020-10-01",
        "Set-Cookie": "a=b",
        "openai-organization": "org",
        "x-request-id": "theirs",
        "cf-ray": "x",
        "Server": "their server",
    }
    upstream.script.append(answers(completion({"content": "pong"}), headers=headers))
    reply = await server.post(ASK)
    assert reply.headers["x-ratelimit-remaining-requests"] == "7"
    assert reply.headers["openai-version"] == "2020-10-01"
    assert reply.headers["x-request-id"].startswith("req_")
    for name in ("Set-Cookie", "openai-organization", "cf-ray", "Server"):
        assert name not in reply.headers


@pytest.mark.parametrize("session", [None, "s"])
@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, {"error": {"message": "Bad key sk-abc"}}, (502, "server_error", "upstream_credentials_rejected")),
        (403, {}, (502, "server_error", "upstream_credentials_rejected")),
        (500, {"error": {"message": "boom at https://internal/x"}}, (502, "server_error", "upstream_error")),
        (503, {}, (502, "server_error", "upstream_error")),
        (504, {}, (504, "server_error", "upstream_timeout")),
        (302, {}, (502, "server_error", "upstream_error")),
        (429, {"error": {"message": "slow down"}}, (429, "rate_limit_error", "rate_limit_exceeded")),
        (
            429,
            {"error": {"message": "no money", "type": "insufficient_quota", "code": "insufficient_quota"}},
            (429, "insufficient_quota", "insufficient_quota"),
        ),
        (400, {"error": {"message": "bad seed", "param": "seed"}}, (400, "invalid_request_error", None)),
        (400, [{"error": {"code": 400, "message": "Unknown name"}}], (400, "invalid_request_error", "400")),
        (404, {"error": {"message": "none", "code": "model_not_found"}}, (404, "not_found_error", "model_not_found")),
        (422, "just text", (422, "invalid_request_error", None)),
    ],
)
async def test_an_upstreams_error_is_told_in_openais_envelope_and_nothing_is_stored(
    server: Running,
    upstream: FakeUpstream,
    session: str | None,
    status: int,
    body: Any,
    told: tuple[int, str, str | None],
) -> None:
    upstream.script.append(answers(body, status=status, headers={"Location": "http://127.0.0.1:1/"}))
    reply = await server.say("ping", session, model="fake-1", stream=True)
    assert (reply.status, reply.error["type"], reply.error["code"]) == told
    assert ("Retry-After" in reply.headers) == (status == 429)
    assert b"sk-" not in reply.body
    assert b"http" not in reply.body
    assert await server.count("s") == 0
    assert (await server.say("ping", session, model="fake-1")).status == 200


async def test_what_an_upstream_says_of_keys_and_addresses_is_blotted_out(
    server: Running, upstream: FakeUpstream
) -> None:
    words = "sk-upstream-secret AIzaSyXYZ Bearer abc http://10.0.0.1:8000/v1 sk-other fine"
    upstream.script.append(answers({"error": {"message": words}}, status=400))
    assert (await server.post(ASK)).error["message"] == "*** *** *** *** *** fine"


async def test_an_upstream_that_is_not_there_is_a_502(memory: SessionStore) -> None:
    environ = {"WEBAI_UPSTREAM_GONE_URL": "http://127.0.0.1:1/v1", "WEBAI_UPSTREAM_GONE_MODELS": "gone"}
    async with running(server_settings(**environ), memory) as server:
        reply = await server.say("hi", "s", model="gone")
        assert (reply.status, reply.error["code"]) == (502, "upstream_unreachable")
        assert b"127.0.0.1" not in reply.body
        assert (await server.get("/v1/models")).status == 200


async def test_the_guides_model_works_with_a_key_and_names_the_variable_without(
    upstream: FakeUpstream, memory: SessionStore
) -> None:
    ask = {"model": "gemini-2.0-flash", "messages": [user("ping")], "store": True, "metadata": {"a": "b"}}
    async with running(server_settings(), memory) as server:
        reply = await server.post(ask)
        assert reply.status == 400
        assert "GEMINI_API_KEY" in reply.error["message"]
    environ = {"GEMINI_API_KEY": "AIza-key", "GEMINI_BASE_URL": upstream.url}
    async with running(server_settings(**environ), memory) as server:
        assert (await server.post(ask, headers={"X-Session-Id": "s"})).text == "pong"
    assert upstream.headers[0]["Authorization"] == "Bearer AIza-key"
    assert set(upstream.received[0]) == {"model", "messages"}  # Gemini refuses `store` and `metadata`


@pytest.mark.parametrize("model", ["nope", "demo2", "../../admin", "Demo"])
async def test_an_unknown_model_is_a_404(server: Running, model: str) -> None:
    reply = await server.say("hi", "s", model=model)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


async def test_the_most_specific_glob_wins_and_everything_else_goes_to_the_star() -> None:
    environ = {
        "WEBAI_UPSTREAM_A_URL": "http://a",
        "WEBAI_UPSTREAM_A_MODELS": "gpt-4*, exact",
        "WEBAI_UPSTREAM_B_URL": "http://b",
        "WEBAI_UPSTREAM_B_MODELS": "exac?,gpt-4o*,org/*",
        "WEBAI_UPSTREAM_Z_URL": "http://z",
        "OLLAMA_BASE_URL": "http://ollama",
        "OPENAI_API_KEY": "sk-x",
    }
    registry = Registry(server_settings(**environ).upstreams, Client())
    found = {
        m: registry.find(m).name for m in ("gpt-4", "gpt-4o-mini", "gpt-5", "exact", "exac1", "org/m:7b", "x", "demo")
    }
    assert found == {
        "gpt-4": "a",
        "gpt-4o-mini": "b",
        "gpt-5": "openai",
        "exact": "a",
        "exac1": "b",
        "org/m:7b": "b",
        "x": "z",
        "demo": "demo",
    }


async def test_models_lists_demo_the_named_ones_and_what_upstreams_say_they_have(
    server: Running, upstream: FakeUpstream, memory: SessionStore
) -> None:
    upstream.models = ["fake-1", "fake-org/two", "models/fake-three", "not-routed-here"]
    listed = (await server.get("/v1/models")).json
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["demo", "fake-1", "fake-org/two", "fake-three"]
    assert {m["owned_by"] for m in listed["data"]} == {"webai-api", "fake"}
    for path, status in (
        ("demo", 200),
        ("fake-org/two", 200),
        ("fake-org%2Ftwo", 200),
        ("fake-unlisted", 200),
        ("nope", 404),
        ("gemini-2.0-flash", 400),
    ):
        reply = await server.get(f"/v1/models/{path}")
        assert reply.status == status, path
        if status == 200:
            assert reply.json["object"] == "model"
        else:
            assert reply.error["code"]


async def test_an_answer_that_comes_whole_though_a_stream_was_asked_for_is_kept_too(
    server: Running, upstream: FakeUpstream
) -> None:
    upstream.script.append(answers(completion({"content": "whole"})))
    reply = await server.say("ping", "s", model="fake-1", stream=True)
    assert reply.text == "whole"
    assert await server.count("s") == 2


async def test_connections_to_an_upstream_are_used_again(server: Running, upstream: FakeUpstream) -> None:
    for stream in (True, False) * 5:
        for session in (None, "s"):
            assert (await server.say("ping", session, model="fake-1", stream=stream)).text == "pong"
    connector = server.app.services.client.session.connector
    assert isinstance(connector, aiohttp.TCPConnector)
    assert sum(len(idle) for idle in connector._conns.values()) == 1


async def test_a_proxy_in_the_environment_is_not_used(memory: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with fake_upstream() as upstream, running(server_settings(**upstream.environ), memory) as server:
        assert (await server.post(ASK)).text == "pong"


async def test_usage_that_the_client_asked_for_comes_through(server: Running, upstream: FakeUpstream) -> None:
    usage = b'data: {"id":"x","choices":[],"usage":{"total_tokens":5}}\n\n'
    upstream.script.append(streams([*frames("pong")[:-1], usage, DONE]))
    reply = await server.say("ping", "s", model="fake-1", stream=True, stream_options={"include_usage": True})
    assert json.loads(reply.events[-2])["usage"] == {"total_tokens": 5}
    assert await server.count("s") == 2
