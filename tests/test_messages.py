"""What a chat message may be, what is refused before anything is stored, and the shapes it is given on the way."""

import asyncio
import datetime
import logging
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers import RedisServer
from webai_api import SessionManager, chat_messages
from webai_api.errors import InvalidInput, SessionError
from webai_api.limits import DEFAULT_LIMITS
from webai_api.messages import KNOWN_ROLES, history_message, last_turns, stored_message
from webai_api.protocol import SessionStore
from webai_api.types import History, Item, Message

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(sorted(KNOWN_ROLES)),
        "content": st.text() | st.lists(st.fixed_dictionaries({"type": st.text()}, optional={"text": _json})),
    },
    optional={
        "metadata": st.none() | st.dictionaries(st.text(), _json, max_size=3),
        "id": _json,
        "~at": _json,
        "~id": _json,
        "name": st.text(),
    },
)


@pytest.fixture
def manager(store: SessionStore) -> SessionManager:
    return SessionManager(store)


def user(text: str) -> Message:
    return {"role": "user", "content": text, "metadata": {}}


async def said(manager: SessionManager, session_id: str = "s") -> list[Any]:
    return [message["content"] for message in await manager.get_history(session_id)]


@given(turn=st.lists(_messages, min_size=1, max_size=4))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_message_that_is_accepted_comes_back_as_it_was(
    turn: list[Message], redis_server: RedisServer, flush_redis: Callable[[], None], tmp_path: Path
) -> None:
    async def round_trip(url: str) -> None:
        async with SessionManager.from_url(url) as manager:
            await manager.clear_session("s")
            await manager.store_turn("s", turn)
            assert await manager.get_history("s") == [{**m, "metadata": m.get("metadata") or {}} for m in turn]

    flush_redis()
    for url in ("memory://", f"sqlite:///{tmp_path}/s.db", redis_server.url):
        asyncio.run(round_trip(url))


# Bad input


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


BAD_MESSAGES: list[tuple[str, tuple[Any, ...], type[Exception]]] = [
    ("id empty", ("", "user", "x"), ValueError),
    ("id blank", (" \t", "user", "x"), ValueError),
    ("id None", (None, "user", "x"), TypeError),
    ("id int", (7, "user", "x"), TypeError),
    ("id bytes", (b"s", "user", "x"), TypeError),
    ("id bool", (True, "user", "x"), TypeError),
    ("id long", ("x" * 513, "user", "x"), ValueError),
    ("id with NUL", ("a\0", "user", "x"), ValueError),
    ("id with newline", ("a\n", "user", "x"), ValueError),
    ("id with lone surrogate", ("\ud800", "user", "x"), ValueError),
    ("role None", ("s", None, "x"), TypeError),
    ("role int", ("s", 1, "x"), TypeError),
    ("role empty", ("s", "", "x"), ValueError),
    ("role blank", ("s", "  ", "x"), ValueError),
    ("role long", ("s", "r" * 65, "x"), ValueError),
    ("role with newline", ("s", "user\n", "x"), ValueError),
    ("role with lone surrogate", ("s", "\udfff", "x"), ValueError),
    ("no content of a user", ("s", "user", None), ValueError),
    ("no content of an assistant without tool calls", ("s", "assistant", None), ValueError),
    ("content bytes", ("s", "user", b"x"), TypeError),
    ("content int", ("s", "user", 1), TypeError),
    ("content dict", ("s", "user", {"type": "text"}), TypeError),
    ("content tuple", ("s", "user", ({"type": "text"},)), TypeError),
    ("part text", ("s", "user", ["x"]), TypeError),
    ("part without a type", ("s", "user", [{"text": "x"}]), TypeError),
    ("part with a type that is no text", ("s", "user", [{"type": 1}]), TypeError),
    ("content large", ("s", "user", "x" * ((1 << 20) + 1)), ValueError),
    ("content large in bytes", ("s", "user", "é" * (1 << 19) + "x"), ValueError),
    ("content large in parts", ("s", "user", [{"type": "text", "text": "x" * (1 << 19)}] * 3), ValueError),
    ("content huge", ("s", "user", "x" * 50_000_000), ValueError),
    ("other parts huge", ("s", "user", [{"type": "image_url", "url": "x" * (4 << 20)}]), ValueError),
    ("lone surrogate", ("s", "user", "\ud83d"), ValueError),
    ("lone surrogate in a part", ("s", "user", [{"type": "text", "text": "\ud83d"}]), ValueError),
    ("NaN", ("s", "user", "x", {"a": math.nan}), ValueError),
    ("infinity", ("s", "user", "x", {"a": [math.inf]}), ValueError),
    ("NaN in a part", ("s", "user", [{"type": "text", "n": math.nan}]), ValueError),
    ("huge integer", ("s", "user", "x", {"a": 10**5000}), ValueError),
    ("deep metadata", ("s", "user", "x", nested(65)), ValueError),
    ("very deep metadata", ("s", "user", "x", nested(100_000)), ValueError),
    ("set", ("s", "user", "x", {"a": {1}}), TypeError),
    ("datetime", ("s", "user", "x", {"a": datetime.datetime.now(datetime.UTC)}), TypeError),
    ("object", ("s", "user", "x", {"a": object()}), TypeError),
    ("keys that are no text", ("s", "user", "x", {"a": {1: 2}}), TypeError),
    ("metadata list", ("s", "user", "x", [1]), TypeError),
    ("metadata empty list", ("s", "user", "x", []), TypeError),
    ("metadata text", ("s", "user", "x", "m"), TypeError),
    ("metadata False", ("s", "user", "x", False), TypeError),
    ("metadata large", ("s", "user", "x", {"a": "x" * (64 << 10)}), ValueError),
]


@pytest.fixture
async def memory() -> AsyncIterator[SessionManager]:
    async with SessionManager.from_url("memory://") as manager:
        yield manager


@pytest.mark.parametrize(("arguments", "error"), [row[1:] for row in BAD_MESSAGES], ids=[r[0] for r in BAD_MESSAGES])
async def test_bad_input_is_refused_before_anything_is_stored(
    memory: SessionManager, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    await memory.store_message("s", "user", "before")
    before = (await memory.read("s")).session
    with pytest.raises(error) as caught:
        await memory.store_message(*arguments)
    assert isinstance(caught.value, InvalidInput)
    assert len(str(caught.value)) < 200
    assert (await memory.read("s")).session == before
    assert [session.id async for session in memory.sessions()] == ["s"]


@pytest.mark.parametrize("session_id", [None, 7, b"s", True, "", " ", "a\0", "x" * 513], ids=lambda v: f"{v!r:.8}")
async def test_every_verb_refuses_a_bad_id(manager: SessionManager, session_id: Any) -> None:
    for call in (
        manager.get_history(session_id),
        manager.read(session_id),
        manager.pop_message(session_id),
        manager.clear_session(session_id),
        manager.store_turn(session_id, [user("x")]),
        manager.store_message(session_id, "user", "x"),
    ):
        with pytest.raises(InvalidInput, match="session_id"):
            await call


@pytest.mark.parametrize(
    "session_id",
    [
        *("{a}", "%7B", "100%", "*", "a?b[c]", "x:log", "tenantB:1", "../../etc", "user@host", "session:1", "é"),
        *("e\u0301", "\U0001f642", "Ä", "ä", " a", "a b", "'; DROP TABLE items; --", "x" * 512),
    ],
    ids=lambda v: f"{v!a:.14}",
)
async def test_any_printable_text_names_a_session_of_its_own(manager: SessionManager, session_id: str) -> None:
    neighbours = ["a", "{", "x", "x:", "e", "session"]
    for neighbour in neighbours:
        await manager.store_message(neighbour, "user", neighbour)
    await manager.store_message(session_id, "user", "mine")
    assert await said(manager, session_id) == ["mine"]
    assert {s.id async for s in manager.sessions()} == {session_id, *neighbours}
    await manager.clear_session(session_id)
    assert [await said(manager, n) for n in neighbours] == [[n] for n in neighbours]


async def test_composed_and_decomposed_letters_are_two_sessions(manager: SessionManager) -> None:
    await manager.store_message("\u00e9", "user", "composed")
    assert await said(manager, "e\u0301") == []


async def test_an_unknown_role_is_stored_and_warned_of_once(
    memory: SessionManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webai_api.messages._warned", set())
    with caplog.at_level(logging.WARNING, "webai_api"):
        for _ in range(3):
            await memory.store_message("s", "critic", "Hm.")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "critic" in caplog.text
    assert len(await memory.get_history("s")) == 3


# The shapes of messages


@given(st.lists(st.dictionaries(st.text(), _json, max_size=4)))
def test_what_goes_to_a_model_has_no_keys_of_ours(messages: list[dict[str, Any]]) -> None:
    ours = {"metadata", "id", "created_at"}
    assert chat_messages(messages) == [{k: v for k, v in m.items() if k not in ours} for m in messages]
    history = History(None, tuple(Item(data=m) for m in messages))
    assert chat_messages(history) == chat_messages(messages)


@given(_messages)
def test_storing_a_message_twice_over_changes_it_no_more(message: Message) -> None:
    stored = stored_message(message, DEFAULT_LIMITS)
    assert stored_message(stored, DEFAULT_LIMITS) == stored == history_message(stored)


@given(_json, _json)
def test_whatever_is_no_message_is_refused_by_its_name(role: Any, content: Any) -> None:
    try:
        stored_message({"role": role, "content": content}, DEFAULT_LIMITS)
    except SessionError as error:
        refused = error
    else:
        return
    assert isinstance(refused, InvalidInput)
    assert str(refused).startswith(("role", "content", "each part"))


@given(st.lists(st.sampled_from(["user", "assistant", "tool", "system"]), max_size=12), st.integers(0, 14))
def test_a_window_holds_the_newest_whole_turns(roles: list[str], limit: int) -> None:
    messages: list[Message] = [{"role": role, "n": n} for n, role in enumerate(roles)]
    window = list(last_turns(messages, limit))
    assert window == messages[len(messages) - len(window) :]
    if len(messages) <= limit:
        assert window == messages
        return
    starts = [n for n, role in enumerate(roles) if role == "user"]
    if not starts:
        assert len(window) == limit
        return
    assert window[0]["role"] == "user"  # never the second half of a turn
    assert len(window) <= limit or window[0]["n"] == starts[-1]  # the newest turn is kept whole
    earlier = [n for n in starts if n < window[0]["n"]]
    assert not earlier or len(messages) - earlier[-1] > limit  # one more turn would not fit


def test_no_limit_is_every_turn() -> None:
    messages = [user("a"), user("b")]
    assert last_turns(messages, None) == messages
