"""Keys, tenants, hosts, and what needs none of them."""

from collections.abc import AsyncIterator

import pytest

from tests.server.harness import CHAT, FakeUpstream, Running, running, server_settings, user
from webai_api.errors import StoreUnavailable
from webai_api.protocol import SessionStore

ASK = {"model": "demo", "messages": [user("hi")], "session_id": "s"}


@pytest.fixture
async def guarded(memory: SessionStore) -> AsyncIterator[Running]:
    keys = "acme:first-key,acme:second-key,other:third:with:colons"
    async with running(server_settings(WEBAI_API_KEYS=keys), memory) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", ["first-key", "second-key", "third:with:colons"])
async def test_each_key_opens(guarded: Running, key: str) -> None:
    assert (await guarded.post(ASK, headers=bearer(key))).status == 200
    assert (await guarded.post(ASK, headers={"authorization": f"bearer {key}"})).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(""),
        bearer("first-key2"),
        bearer("FIRST-KEY"),
        bearer("schlüssel"),
        bearer("\u4f1a"),
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": ""},
        {"X-Api-Key": "first-key"},
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/nothing/here"])
async def test_without_a_valid_key_everything_is_the_same_401(
    guarded: Running, headers: dict[str, str], path: str
) -> None:
    reply = await guarded.request("GET", path, headers=headers)
    assert (reply.status, reply.error["type"], reply.error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert b"first-key" not in reply.body


async def test_two_authorization_headers_are_a_400(guarded: Running) -> None:
    key = ("Authorization", "Bearer first-key")
    assert (await guarded.post(ASK, headers=[key, key])).status == 400


async def test_without_keys_any_authorization_is_ignored(server: Running) -> None:
    for headers in ([], [("Authorization", "nonsense")], [("Authorization", "a"), ("Authorization", "b")]):
        assert (await server.post(ASK, headers=headers)).status == 200


async def test_a_tenants_sessions_are_its_own(guarded: Running) -> None:
    async def say(text: str, key: str, **headers: str) -> str:
        reply = await guarded.say(text, "s", headers={**bearer(key), **headers})
        assert reply.status == 200
        return reply.text

    once = {"Idempotency-Key": "k"}
    await say("My name is Ada.", "first-key", **once)
    assert await say("What is my name?", "second-key") == "Your name is Ada."
    assert (await say("What is my name?", "third:with:colons", **once)).startswith(
        "I do not know your name. I remember 0"
    )
    assert len(await guarded.stored("s", tenant="acme")) == 4
    assert len(await guarded.stored("s", tenant="other")) == 2
    assert await guarded.stored("s") == []


async def test_a_turn_of_one_tenant_does_not_lock_another_out(guarded: Running) -> None:
    turnstile = guarded.app.services.turnstile
    held = await turnstile.enter(guarded.app.services.views("acme").leases, "acme", "s")
    assert (await guarded.post(ASK, headers=bearer("third:with:colons"))).status == 200
    held.leave()
    await guarded.settle()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:6969", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:6969", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:6969", 403),
        ("[::2]", 403),
        ("", 403),
    ],
)
async def test_without_keys_only_loopbacks_own_names_are_answered(server: Running, host: str, status: int) -> None:
    for path in ("/livez", "/v1/models"):
        reply = await server.get(path, headers={"Host": host})
        assert reply.status == status


async def test_with_keys_any_host_name_will_do(guarded: Running) -> None:
    reply = await guarded.get("/v1/models", headers={"Host": "chat.example", **bearer("first-key")})
    assert reply.status == 200


async def test_health_needs_no_key(guarded: Running) -> None:
    for path in ("/livez", "/healthz", "/readyz"):
        for method in ("GET", "HEAD"):
            assert (await guarded.request(method, path)).status == 200


async def test_only_readiness_asks_the_store(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*args: object, **kwargs: object) -> None:
        raise StoreUnavailable("redis://secret@host")

    monkeypatch.setattr(type(server.store), "read", down)
    monkeypatch.setattr(type(server.store), "append", down)
    ready = await server.get("/readyz")
    assert (ready.status, ready.error["code"]) == (503, "store_unavailable")
    assert b"secret" not in ready.body
    for path in ("/livez", "/healthz", "/v1/models"):
        assert (await server.get(path)).status == 200
    assert (await server.say("hi")).status == 200  # and a chat without a session needs no store


async def test_logs_hold_no_content_and_no_keys(
    guarded: Running, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await guarded.say("private words", "private-session", headers=bearer("first-key"))
    await guarded.post(ASK, headers=bearer("wrong-key"))
    for secret in ("private", "first-key", "wrong-key"):
        assert secret not in caplog.text
