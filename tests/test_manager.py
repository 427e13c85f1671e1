"""`SessionManager` over every store."""

import asyncio
import gc
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from webai_api import SessionManager
from webai_api.errors import Conflict, DuplicateId, IdReused, InvalidInput, InvalidType, StoreError
from webai_api.limits import TTL_MAX, Limits
from webai_api.protocol import SessionStore
from webai_api.settings import DEFAULT_TTL
from webai_api.types import History, Message

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}


@pytest.fixture
def manager(store: SessionStore) -> SessionManager:
    return SessionManager(store)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("empty_redis")
        return server.url
    return {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/sessions.db"}[request.param]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that configures nothing, and memory that no other test has written to."""
    for name in ("SESSION_STORE", "SESSION_TTL", "REDIS_ENABLED", "REDIS_URL", "REDIS_TTL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webai_api.manager._shared_memory", None)
    return monkeypatch


def user(text: str) -> Message:
    return {"role": "user", "content": text, "metadata": {}}


async def said(manager: SessionManager, session_id: str = "s", limit: int | None = None) -> list[Any]:
    return [message["content"] for message in await manager.get_history(session_id, limit)]


# store_message


async def test_what_was_stored_comes_back_in_order(manager: SessionManager) -> None:
    await manager.store_message("s", "user", "Hello!")
    await manager.store_message("s", "assistant", "Hi there!", {"model": "demo"})
    assert await manager.get_history("s") == [
        {"role": "user", "content": "Hello!", "metadata": {}},
        {"role": "assistant", "content": "Hi there!", "metadata": {"model": "demo"}},
    ]


async def test_storing_returns_the_session_after_it(manager: SessionManager) -> None:
    first = await manager.store_message("s", "user", "one")
    second = await manager.store_message("s", "user", "two")
    assert (first.id, first.count, second.count) == ("s", 1, 2)
    assert second.version > first.version
    assert (await manager.read("s")).session == second


async def test_a_message_with_an_id_is_stored_once_however_often_it_is_sent(manager: SessionManager) -> None:
    first = await manager.store_message("s", "user", "hi", message_id="m1")
    again = await manager.store_message("s", "user", "hi", message_id="m1")
    assert again.version == first.version
    assert await said(manager) == ["hi"]
    with pytest.raises(IdReused):
        await manager.store_message("s", "user", "something else", message_id="m1")
    assert await said(manager) == ["hi"]


async def test_equal_messages_without_an_id_are_both_stored(manager: SessionManager) -> None:
    await manager.store_message("s", "user", "yes")
    await manager.store_message("s", "user", "yes")
    assert await said(manager) == ["yes", "yes"]


async def test_what_a_caller_does_to_its_copy_changes_nothing(manager: SessionManager) -> None:
    metadata: dict[str, Any] = {"tags": ["a"]}
    await manager.store_message("s", "user", "hi", metadata)
    metadata["tags"].append("b")
    (message,) = await manager.get_history("s")
    message["metadata"]["tags"].append("c")
    assert (await manager.get_history("s"))[0]["metadata"] == {"tags": ["a"]}


# store_turn


async def test_a_turn_is_stored_adjacent_under_concurrency(manager: SessionManager) -> None:
    turns = [[user(f"{n}?"), {"role": "assistant", "content": f"{n}!"}] for n in range(20)]
    await asyncio.gather(*(manager.store_turn("s", turn) for turn in turns))
    found = await said(manager)
    assert sorted(found[::2]) == sorted(f"{n}?" for n in range(20))
    assert [question[:-1] for question in found[::2]] == [answer[:-1] for answer in found[1::2]]


async def test_a_turn_with_one_bad_message_stores_nothing(manager: SessionManager) -> None:
    with pytest.raises(InvalidInput):
        await manager.store_turn("s", [user("good"), {"role": "user", "content": None}])
    history = await manager.read("s")
    assert history.session is None


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], InvalidInput),
        ((), InvalidInput),
        ({"role": "user", "content": "x"}, InvalidType),
        ("text", InvalidType),
        (b"text", InvalidType),
        (None, InvalidType),
        (7, InvalidType),
        ((m for m in [user("x")]), InvalidType),
        ([None], InvalidType),
        (["text"], InvalidType),
        ([[]], InvalidType),
        ([{}], InvalidType),
        ([{"content": "no role"}], InvalidType),
        ([{"role": "user"}], InvalidInput),
        ([{**user("x"), "metadata": [1]}], InvalidType),
        ([{"role": "user", "content": "x", 7: "a key that is no text"}], InvalidType),
        ([{**user("x"), "extra": {1, 2}}], InvalidType),
        ([{**user("x"), "extra": math.nan}], InvalidInput),
    ],
    ids=lambda value: f"{value!r:.30}",
)
async def test_a_turn_must_be_a_list_of_messages(messages: Any, error: type[Exception]) -> None:
    async with SessionManager.from_url("memory://") as manager:
        with pytest.raises(error):
            await manager.store_turn("s", messages)
        assert (await manager.read("s")).session is None


async def test_a_turn_with_an_id_is_stored_once(manager: SessionManager) -> None:
    turn = [user("2+2?"), {"role": "assistant", "content": "4"}]
    first = await manager.store_turn("s", turn, turn_id="t1", expected=0)
    again = await manager.store_turn("s", turn, turn_id="t1", expected=0)  # though the session exists by now
    assert again.version == first.version
    assert await said(manager) == ["2+2?", "4"]


async def test_a_turn_id_with_other_messages_is_refused(manager: SessionManager) -> None:
    await manager.store_turn("s", [user("a"), user("b")], turn_id="t1")
    with pytest.raises(IdReused):
        await manager.store_turn("s", [user("a"), user("c")], turn_id="t1")
    with pytest.raises(DuplicateId):
        await manager.store_turn("s", [user("a"), user("b"), user("c")], turn_id="t1")
    assert await said(manager) == ["a", "b"]


async def test_turns_begun_on_an_outdated_history_are_refused_with_what_was_missed(manager: SessionManager) -> None:
    begun = await manager.store_message("s", "user", "one")
    now = await manager.store_message("s", "user", "two")
    with pytest.raises(Conflict) as caught:
        await manager.store_turn("s", [user("three")], expected=begun.version)
    assert (caught.value.expected, caught.value.actual) == (begun.version, now.version)
    assert await said(manager) == ["one", "two"]
    await manager.store_turn("s", [user("three")], expected=caught.value.actual)
    assert await said(manager) == ["one", "two", "three"]


async def test_of_several_turns_on_one_version_one_is_stored(manager: SessionManager) -> None:
    version = (await manager.store_message("s", "user", "begin")).version
    answers = await asyncio.gather(
        *(manager.store_turn("s", [user(str(n))], expected=version) for n in range(8)), return_exceptions=True
    )
    assert sum(isinstance(answer, Conflict) for answer in answers) == 7
    assert len(await said(manager)) == 2


async def test_expected_0_means_that_the_session_must_not_exist(manager: SessionManager) -> None:
    await manager.store_turn("s", [user("first")], expected=0)
    with pytest.raises(Conflict):
        await manager.store_turn("s", [user("second")], expected=0)


@pytest.mark.parametrize("turn_id", ["", " ", "a\nb", "x" * 513, True, 7, b"t"], ids=lambda v: f"{v!r:.12}")
async def test_a_turn_id_is_checked_as_every_id(turn_id: Any) -> None:
    async with SessionManager.from_url("memory://") as manager:
        with pytest.raises(InvalidInput, match="turn_id"):
            await manager.store_turn("s", [user("x")], turn_id=turn_id)


async def test_a_turn_id_that_is_too_long_for_its_messages_is_refused_by_name() -> None:
    async with SessionManager.from_url("memory://") as manager:
        with pytest.raises(InvalidInput, match="turn_id must have at most 510 bytes"):
            await manager.store_turn("s", [user("x")], turn_id="x" * 511)
        await manager.store_turn("s", [user("x")], turn_id="x" * 510)


# Everything the chat format can hold


MESSAGES: dict[str, Message] = {
    "parts": {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "file", "file": {"file_id": "file-1"}},
        ],
    },
    "no parts": {"role": "user", "content": []},
    "tool calls": {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
    "tool calls with text": {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    "tool answer": {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "call_1"},
    "tool answer in parts": {"role": "tool", "content": [{"type": "text", "text": "21"}], "tool_call_id": "call_1"},
    "function call": {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
    "function answer": {"role": "function", "name": "f", "content": "1"},
    "name": {"role": "user", "content": "hi", "name": "Ada"},
    "refusal": {"role": "assistant", "content": None, "refusal": "I cannot help with that."},
    "refusal beside nothing": {"role": "assistant", "content": "Yes", "refusal": None},
    "refusal part": {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    "audio": {"role": "assistant", "content": None, "audio": {"id": "audio_1"}},
    "annotations": {"role": "assistant", "content": "See", "annotations": [{"type": "url_citation", "url": "u"}]},
    "system": {"role": "system", "content": "Be brief."},
    "developer": {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
    "unknown keys": {"role": "user", "content": "hi", "x_custom": {"deep": [1, None, True, 2.5]}, "another": "y"},
    "own id": {"role": "user", "content": "hi", "id": "msg_own", "created_at": 12.5, "~at": 1, "~id": "z", "seq": 9},
    "empty text": {"role": "user", "content": ""},
    "NUL": {"role": "user", "content": "a\0b"},
    "text of many kinds": {"role": "user", "content": "\u00e9 e\u0301 \U0001f642\u200d \u202e \u2028 \x1b[31m \\ \" '"},
    "large integers": {"role": "user", "content": "n", "n": [2**53 + 1, -(2**63), 10**100]},
    "numbers": {"role": "user", "content": "n", "n": [0, -0.0, 1e-7, 1.5, 1e308]},
    "empty values": {"role": "user", "content": "n", "a": {}, "b": [], "c": None, "": ""},
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_whatever_the_chat_format_holds_comes_back(manager: SessionManager, name: str) -> None:
    message = MESSAGES[name]
    await manager.store_turn("s", [message])
    assert await manager.get_history("s") == [{**message, "metadata": {}}]
    (stored,) = await manager.get_history("s")
    assert list(stored)[:3] == ["role", "content", "metadata"]


async def test_a_whole_conversation_with_metadata_comes_back_in_one_piece(manager: SessionManager) -> None:
    turn = [{**message, "metadata": {"n": n}} for n, message in enumerate(MESSAGES.values())]
    await manager.store_turn("s", turn)
    assert await manager.get_history("s") == turn


# get_history


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 5), (0, 0), (1, 1), (3, 3), (5, 5), (6, 5), (1_000_000, 5), (1_000_001, 5), (2**63, 5), (10**400, 5)],
    ids=lambda v: f"{v!s:.12}",
)
async def test_a_limit_gives_the_newest(manager: SessionManager, limit: int | None, expected: int) -> None:
    await manager.store_turn("s", [user(str(n)) for n in range(5)])
    assert await said(manager, "s", limit) == [str(n) for n in range(5)][5 - expected :]


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        *((value, InvalidInput) for value in (-1, -(10**30))),
        *((value, InvalidType) for value in (True, False, 1.0, math.inf, "1", b"1", [1])),
    ],
    ids=lambda v: f"{v!r:.12}",
)
async def test_what_is_no_limit_is_refused(manager: SessionManager, limit: Any, error: type[Exception]) -> None:
    await manager.store_message("s", "user", "hi")
    with pytest.raises(error, match="limit"):
        await manager.get_history("s", limit)
    with pytest.raises(ValueError, match="limit"):
        await manager.get_history("missing", limit)


async def test_a_session_that_does_not_exist_is_empty(manager: SessionManager) -> None:
    assert await manager.get_history("missing") == []
    assert await manager.get_history("missing", 3) == []
    assert await manager.read("missing") == History(None)


async def test_read_gives_ids_numbers_and_windows(manager: SessionManager) -> None:
    await manager.store_turn("s", [user(str(n)) for n in range(6)], turn_id="t")
    history = await manager.read("s", after=1, before=6, last=2)
    assert [(item.seq, item.data["content"]) for item in history.items] == [(4, "3"), (5, "4")]
    assert [item.id for item in history.items] == ["t:3", "t:4"]
    assert all(item.created_at and abs(item.created_at - time.time()) < 60 for item in history.items)


# pop_message, clear_session, sessions


async def test_pop_takes_the_newest_until_nothing_is_left(manager: SessionManager) -> None:
    await manager.store_turn("s", [user("one"), {**user("two"), "name": "Ada"}])
    assert await manager.pop_message("s") == {**user("two"), "name": "Ada"}
    assert await said(manager) == ["one"]
    assert await manager.pop_message("s") == user("one")
    assert await manager.pop_message("s") is None
    assert await manager.pop_message("missing") is None


async def test_each_message_is_popped_by_exactly_one_of_many(manager: SessionManager) -> None:
    await manager.store_turn("s", [user(str(n)) for n in range(10)])
    popped = await asyncio.gather(*(manager.pop_message("s") for _ in range(14)))
    taken = [message["content"] for message in popped if message is not None]
    assert sorted(taken, key=int) == [str(n) for n in range(10)]
    assert await said(manager) == []


async def test_clearing_tells_whether_there_was_a_session(manager: SessionManager) -> None:
    first = await manager.store_message("s", "user", "hi")
    await manager.store_message("other", "user", "hi")
    assert await manager.clear_session("s")
    assert not await manager.clear_session("s")
    assert await manager.get_history("s") == []
    assert (await manager.store_message("s", "user", "hi")).version > first.version
    assert await said(manager, "other") == ["hi"]


async def test_sessions_are_listed_by_prefix_and_page(manager: SessionManager) -> None:
    for name in ("a1", "a2", "b1"):
        await manager.store_message(name, "user", "hi")
    assert {session.id async for session in manager.sessions()} == {"a1", "a2", "b1"}
    found = [session.id async for session in manager.sessions(prefix="a")]
    assert sorted(found) == ["a1", "a2"]
    assert [s.id async for s in manager.sessions(prefix="a", after=found[0])] == found[1:]


# Options


async def test_a_session_lives_thirty_days_after_its_last_message_unless_told_otherwise(store: SessionStore) -> None:
    for ttl, expected in ((DEFAULT_TTL, 30 * 86400.0), (90, 90.0), (0.5, 0.5), (TTL_MAX, TTL_MAX)):
        manager = SessionManager(store, ttl=ttl)
        session = await manager.store_message(f"s{ttl}", "user", "hi")
        assert session.expires_at is not None
        assert session.expires_at - session.updated_at == pytest.approx(expected, abs=0.1)
    assert SessionManager(store).ttl == 30 * 86400


@pytest.mark.parametrize("ttl", [None, math.inf])
async def test_without_a_ttl_a_session_lives_for_ever(store: SessionStore, ttl: float | None) -> None:
    await SessionManager(store, ttl=60).store_message("s", "user", "hi")
    session = await SessionManager(store, ttl=ttl).store_message("s", "user", "hi")
    assert session.expires_at is None


async def test_every_message_renews_the_expiry_and_reading_does_not(store: SessionStore) -> None:
    manager = SessionManager(store, ttl=50)
    first = await manager.store_message("s", "user", "hi")
    await asyncio.sleep(0.02)
    await manager.get_history("s")
    read = (await manager.read("s")).session
    second = await manager.store_message("s", "user", "hi")
    assert read is not None
    assert read.expires_at == first.expires_at
    assert second.expires_at is not None
    assert first.expires_at is not None
    assert second.expires_at > first.expires_at


async def test_an_expired_session_is_gone(store: SessionStore) -> None:
    manager = SessionManager(store, ttl=0.05)
    await manager.store_message("s", "user", "hi")
    await asyncio.sleep(0.1)
    assert await manager.get_history("s") == []
    assert not await manager.clear_session("s")


@pytest.mark.parametrize("ttl", [0, -1, math.nan, -math.inf, TTL_MAX + 1, True, "60"], ids=repr)
def test_a_ttl_that_cannot_be_is_refused_at_once(ttl: Any) -> None:
    with pytest.raises(InvalidInput, match="ttl"):
        SessionManager.from_url("memory://", ttl=ttl)


async def test_keep_leaves_the_newest(store: SessionStore) -> None:
    manager = SessionManager(store, keep=3)
    counts = [(await manager.store_message("s", "user", str(n))).count for n in range(5)]
    assert await said(manager) == ["2", "3", "4"]
    assert counts == [1, 2, 3, 3, 3]


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, "3"], ids=repr)
def test_a_keep_that_cannot_be_is_refused_at_once(keep: Any) -> None:
    with pytest.raises(InvalidInput, match="keep"):
        SessionManager.from_url("memory://", keep=keep)


async def test_tenants_do_not_see_one_another(store: SessionStore) -> None:
    a, b = (SessionManager(store.with_options(tenant=tenant)) for tenant in "ab")
    nobody = SessionManager(store)
    await a.store_message("s", "user", "a's")
    await b.store_message("s", "user", "b's")
    assert [await said(m) for m in (a, b, nobody)] == [["a's"], ["b's"], []]
    assert [session.id async for session in nobody.sessions()] == []
    await a.clear_session("s")
    assert await said(b) == ["b's"]


async def test_a_tenant_is_an_option_of_the_url(empty_redis: RedisServer) -> None:
    async with (
        SessionManager.from_url(empty_redis.url, tenant="a") as a,
        SessionManager.from_url(empty_redis.url, tenant="a") as again,
        SessionManager.from_url(empty_redis.url) as nobody,
    ):
        await a.store_message("s", "user", "a's")
        assert [await said(m) for m in (a, again, nobody)] == [["a's"], ["a's"], []]


@pytest.mark.parametrize("options", [{"tenant": ""}, {"tenant": "a\nb"}, {"deadline": 0}, {"deadline": -1}], ids=repr)
def test_an_option_that_cannot_be_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        SessionManager.from_url("memory://", **options)


async def test_limits_are_the_callers_to_choose(url: str) -> None:
    limits = Limits(id_bytes=64, content_bytes=8, metadata_bytes=16)
    name = "x" * 64
    async with SessionManager.from_url(url, limits=limits) as manager:
        await manager.store_message(name, "user", "12345678", {"a": "12345"})
        with pytest.raises(InvalidInput, match="at most 64 bytes"):
            await manager.store_message(f"{name}x", "user", "x")
        with pytest.raises(InvalidInput, match="content must have at most 8 bytes"):
            await manager.store_message(name, "user", "1234é678")
        with pytest.raises(InvalidInput, match="metadata must have at most 16 bytes"):
            await manager.store_message(name, "user", "x", {"a": "1234567890"})
        assert len(await manager.get_history(name)) == 1


# Ownership and loops


async def test_a_store_that_was_given_stays_open(store: SessionStore) -> None:
    async with SessionManager(store) as manager:
        await manager.store_message("s", "user", "hi")
    assert len((await store.read("s")).items) == 1


async def test_a_store_that_was_opened_is_closed(url: str) -> None:
    async with SessionManager.from_url(url) as manager:
        await manager.store_message("s", "user", "hi")
    with pytest.raises(StoreError):
        await manager.get_history("s")
    await manager.aclose()  # twice is harmless


async def test_managers_of_an_environment_without_a_store_share_memory(environment: pytest.MonkeyPatch) -> None:
    first, second = SessionManager.from_env(), SessionManager.from_env()
    await first.store_message("s", "user", "hi")
    await first.aclose()
    assert await said(second) == ["hi"]
    assert second.ttl == DEFAULT_TTL


async def test_the_environment_names_the_store_and_the_expiry(
    environment: pytest.MonkeyPatch, tmp_path: Path, empty_redis: RedisServer
) -> None:
    environment.setenv("SESSION_STORE", f"sqlite:///{tmp_path}/env.db")
    environment.setenv("SESSION_TTL", "90  # seconds")
    async with SessionManager.from_env() as manager:
        await manager.store_message("s", "user", "hi")
        assert manager.ttl == 90
    assert (tmp_path / "env.db").exists()
    async with SessionManager.from_env({"REDIS_ENABLED": "1", "REDIS_URL": empty_redis.url}) as manager:
        await manager.store_message("s", "user", "hi")
        assert manager.ttl == 3600


def test_a_manager_made_outside_any_loop_serves_one_loop_after_the_other(url: str) -> None:
    manager = SessionManager.from_url(url)

    async def talk(text: str) -> list[Any]:
        await manager.store_message("s", "user", text)
        return await said(manager)

    assert asyncio.run(talk("one")) == ["one"]
    assert asyncio.run(talk("two")) == ["one", "two"]
    asyncio.run(manager.aclose())
    gc.collect()  # a connection left open by the first loop would warn here


def test_a_manager_made_at_import_time_needs_no_farewell(url: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, sys\n"
        "from webai_api import SessionManager\n"
        "manager = SessionManager.from_url(sys.argv[1])\n"
        "async def main():\n"
        "    await manager.store_message('s', 'user', 'hi')\n"
        "    print(len(await manager.get_history('s')))\n"
        "asyncio.run(main())\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", str(script), url],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("1\n2\n", "", 0)
