"""Bad input over HTTP: a 400-class error in OpenAI's envelope, nothing stored, nobody asked, no hang."""

import asyncio
import json
from typing import Any

import pytest

from tests.server.harness import CHAT, FakeUpstream, Running, running, server_settings, user
from webai_api.protocol import SessionStore
from webai_api.server import http

JSON = {"Content-Type": "application/json"}
HELLO = {"model": "fake-1", "messages": [user("hi")]}


def body_with(text: str) -> bytes:
    """A valid request with *text* as an extra field's value."""
    return b'{"model":"fake-1","messages":[{"role":"user","content":"hi"}],"x":' + text.encode() + b"}"


@pytest.mark.parametrize("session", [None, "s"])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"{}{}",
        b"\xef\xbb\xbf{}",
        body_with("NaN"),
        body_with("-Infinity"),
        body_with("1e999"),
        body_with("9" * 5000),
        body_with('{"a":1,"a":1}'),
        body_with('"\\ud800"'),
        body_with('"\\udc00\\ud800"'),
        body_with("[" * 70 + "]" * 70),
        body_with("[" * 100_000 + "]" * 100_000),
        body_with("'x'"),
        body_with("01"),
        body_with('"\n"'),
        b'{"model":"fake-1","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"fake-1","messages":[],"model":"demo"}',
    ],
    ids=lambda raw: repr(raw[:70])[-24:],
)
async def test_a_body_that_is_no_strict_json_object_is_a_400(
    server: Running, upstream: FakeUpstream, raw: bytes, session: str | None
) -> None:
    headers = {**JSON, **({"X-Session-Id": session} if session else {})}
    reply = await server.request("POST", CHAT, data=raw, headers=headers)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert len(reply.body) < 1000
    assert not upstream.received
    assert await server.count("s") == 0


@pytest.mark.parametrize("number", ["12345678901234567890123", "0.1", "1e-400", '"\\ud83d\\ude00\\u0000"'])
async def test_what_json_allows_passes_unchanged(server: Running, upstream: FakeUpstream, number: str) -> None:
    reply = await server.request("POST", CHAT, data=body_with(number), headers={**JSON, "X-Session-Id": "s"})
    assert reply.status == 200
    assert upstream.received[0]["x"] == json.loads(number)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": " "}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"model": "m" * 300}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [user("hi"), None]}, "messages[1]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": None, "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "owner", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x" * (1 << 20) + "x"}]}, "messages[0]"),
        ({"messages": [{**user("hi"), "metadata": 7}]}, "messages[0]"),
        ({"messages": [{**user("hi"), "metadata": {"a": "x" * (64 << 10)}}]}, "messages[0]"),
        ({"messages": [user("hi")] * 10_000}, "messages"),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("session", [None, "s"])
async def test_a_request_that_is_no_chat_is_a_400_that_names_the_field(
    server: Running, upstream: FakeUpstream, fields: dict[str, Any], param: str, session: str | None
) -> None:
    reply = await server.post({**HELLO, **fields}, headers={"X-Session-Id": session} if session else None)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert len(reply.body) < 1000
    assert not upstream.received
    assert await server.count("s") == 0


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({}, {"session_id": None}),
        ({}, {"session_id": 7}),
        ({}, {"session_id": True}),
        ({}, {"session_id": ["s"]}),
        ({}, {"session_id": ""}),
        ({}, {"conversation_id": " \t"}),
        ({}, {"conversation_id": "a\x00b"}),
        ({}, {"session_id": "a\nb"}),
        ({}, {"session_id": "a\u2028b"}),
        ({}, {"session_id": "x" * 513}),
        ({}, {"session_id": "é" * 257}),
        ({"X-Session-Id": ""}, {}),
        ({"X-Session-Id": "a%0D%0AX-Evil: 1"}, {}),
        ({"X-Session-Id": "%00"}, {}),
        ({"X-Session-Id": "%ff"}, {}),
        ({"X-Session-Id": "100%"}, {}),
        ({"X-Session-Id": "%zz"}, {}),
        ({"X-Session-Id": "\u00e9"}, {}),
        ({"X-Session-Id": "%20"}, {}),
        ({"X-Session-Id": "a", "X-Conversation-Id": "b"}, {}),
        ({"X-Session-Id": "a"}, {"session_id": "b"}),
        ({"X-Session-Id": "a"}, {"conversation_id": "A"}),
        ({}, {"session_id": "a", "conversation_id": "b"}),
        ({"X-Session-Id": "a", "Idempotency-Key": " "}, {}),
        ({"X-Session-Id": "a", "Idempotency-Key": "k" * 256}, {}),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_malformed_or_ambiguous_session_is_a_400(
    server: Running, upstream: FakeUpstream, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    reply = await server.post({**HELLO, **fields}, headers=headers)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert "X-Session-Id" not in reply.headers
    assert "X-Evil" not in reply.headers
    assert not upstream.received
    assert [s async for s in server.store.sessions()] == []


async def test_two_session_headers_are_refused_only_if_they_differ(server: Running) -> None:
    for second, status in (("a", 200), ("b", 400)):
        reply = await server.post(HELLO, headers=[("X-Session-Id", "a"), ("X-Session-Id", second)])
        assert reply.status == status


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "application/jsonx"],
)
async def test_any_other_content_type_is_a_415(server: Running, content_type: str | None) -> None:
    options: dict[str, Any] = {"headers": {"Content-Type": content_type}} if content_type else {}
    if content_type is None:
        options["skip_auto_headers"] = ["Content-Type"]
    reply = await server.request("POST", CHAT, data=json.dumps(HELLO).encode(), **options)
    assert reply.status == 415
    assert "application/json" in reply.error["message"]


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf8"']
)
async def test_json_in_utf_8_is_accepted_however_it_is_spelled(server: Running, content_type: str) -> None:
    reply = await server.request("POST", CHAT, data=json.dumps(HELLO).encode(), headers={"Content-Type": content_type})
    assert reply.status == 200


async def test_a_compressed_body_is_a_415(server: Running) -> None:
    reply = await server.request("POST", CHAT, data=b"x", headers={**JSON, "Content-Encoding": "gzip"})
    assert reply.status == 415


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413_and_the_connection_is_closed(
    upstream: FakeUpstream, memory: SessionStore, chunked: bool
) -> None:
    async with running(server_settings(WEBAI_MAX_BODY_BYTES="2000", **upstream.environ), memory) as server:

        async def pieces() -> Any:
            for _ in range(30):
                yield b" " * 100

        data = pieces() if chunked else b" " * 3000
        reply = await server.request("POST", CHAT, data=data, headers=JSON)
        assert (reply.status, reply.headers["Connection"]) == (413, "close")
        assert "2000" in reply.error["message"]
        assert not upstream.received


async def test_a_body_that_does_not_come_is_a_408(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode())
    writer.write(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    head = await asyncio.wait_for(reader.read(), 3)  # to the end: the connection is closed
    assert head.startswith(b"HTTP/1.1 408")
    writer.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("POST", "/v1/chat", 404, None),
        ("GET", "/v1/chat/completions/", 404, None),
        ("GET", CHAT, 405, "POST"),
        ("OPTIONS", CHAT, 405, "POST"),
        ("DELETE", "/v1/models", 405, "GET"),
        ("PUT", "/v1/models/demo", 405, "GET"),
        ("POST", "/livez", 405, "GET"),
    ],
)
async def test_an_unknown_path_or_method_is_an_error_in_the_same_envelope(
    server: Running, method: str, path: str, status: int, allow: str | None
) -> None:
    reply = await server.request(method, path)
    assert (reply.status, reply.headers.get("Allow")) == (status, allow)
    assert reply.error["type"] in ("not_found_error", "invalid_request_error")
    assert not any(name.lower().startswith("access-control") for name in reply.headers)


async def test_a_failure_of_ours_is_a_500_that_tells_nothing_but_the_request_id(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(server.store), "read", broken)
    reply = await server.post(HELLO, headers={"X-Session-Id": "s", "X-Client-Request-Id": "mine-1"})
    assert (reply.status, reply.error["type"]) == (500, "server_error")
    assert b"secret" not in reply.body
    assert reply.headers["x-request-id"] == "mine-1"
    assert "mine-1" in caplog.text


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", '"'])
async def test_a_request_id_that_could_harm_a_log_is_replaced(server: Running, given: str) -> None:
    reply = await server.get("/livez", headers={"X-Client-Request-Id": given})
    assert reply.headers["x-request-id"].startswith("req_")
    assert int(reply.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\x00\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_bad_framing_is_refused_and_the_connection_closed(server: Running, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(head)
    assert (await asyncio.wait_for(reader.read(), 3)).startswith(b"HTTP/1.1 400")
    writer.close()
