"""The guide's contract: its examples word for word, its class's promises, and its own code beside ours."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

import webai_api
from app.logger import logger
from app.services.redis_session import RedisSessionManager
from tests.guide_class import GuideSessionManager
from tests.server.harness import FakeUpstream, ServerProcess, clean_environment, fake_upstream
from tests.servers import RedisServer, free_port
from webai_api import SessionManager
from webai_api.errors import InvalidInput, StoreError, StoreUnavailable
from webai_api.manager import environment_store
from webai_api.settings import StoreSettings

BASIC_SETUP = """
from app.services.redis_session import RedisSessionManager

# Initialize Redis session manager
session_manager = RedisSessionManager()

# Store conversation history
await session_manager.store_message(
    session_id="user-123",
    role="user",
    content="Hello!"
)

# Retrieve history
history = await session_manager.get_history("user-123")
"""

WITH_AGENTS = """
from langchain_openai import ChatOpenAI
from app.services.redis_session import RedisSessionManager

llm = ChatOpenAI(
    base_url="http://localhost:6969/v1",
    api_key="your-api-key",
    model="gemini-2.0-flash"
)

session_manager = RedisSessionManager()

# Get conversation history
history = await session_manager.get_history("agent-session-001")

# Add to messages
messages = history + [{"role": "user", "content": "New question"}]

# Get response
response = llm.invoke(messages)

# Store new message
await session_manager.store_message(
    session_id="agent-session-001",
    role="assistant",
    content=response.content
)
"""

TESTING = """
import asyncio
from app.services.redis_session import RedisSessionManager

async def test_redis():
    manager = RedisSessionManager()
    
    # Store messages
    await manager.store_message("test-001", "user", "Hello!")
    await manager.store_message("test-001", "assistant", "Hi there!")
    
    # Retrieve history
    history = await manager.get_history("test-001")
    print(history)
    
    # Clear session
    await manager.clear_session("test-001")

asyncio.run(test_redis())
"""  # noqa: W293  # word for word

GUIDES_FILE = """
# Redis Configuration (Optional)
REDIS_ENABLED=false
REDIS_HOST=localhost
REDIS_PORT=6379
REDIS_DB=0
REDIS_PASSWORD=
REDIS_TTL=3600  # Session TTL in seconds (1 hour)
"""

HELLO = {"role": "user", "content": "Hello!", "metadata": {}}
HI = {"role": "assistant", "content": "Hi there!", "metadata": {}}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is configured, no other test's sessions are in memory, and the working directory is empty."""
    for name in os.environ:
        if name.startswith(("REDIS_", "SESSION_", "WEBAI_MAX_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webai_api.manager._shared_memory", None)


@pytest.fixture
def enabled(empty_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """The environment names a Redis that is empty."""
    monkeypatch.setenv("REDIS_ENABLED", "true")
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(empty_redis.port))
    return empty_redis


@pytest.fixture(params=["memory", "redis"])
async def manager(request: pytest.FixtureRequest) -> AsyncIterator[RedisSessionManager]:
    """The guide's class, disabled and enabled."""
    if request.param == "redis":
        request.getfixturevalue("enabled")
    async with RedisSessionManager() as opened:
        assert opened.enabled == (request.param == "redis")
        yield opened


@pytest.fixture
async def guide(enabled: RedisServer) -> AsyncIterator[GuideSessionManager]:
    """The guide's own code, on the Redis that the environment names."""
    async with aclosing(GuideSessionManager(enabled.url)) as opened:
        yield opened


@pytest.fixture(params=["disabled", "enabled", "enabled by the file"])
def guides_environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """An environment for a script, in the ways a user may have it."""
    if request.param == "disabled":
        (tmp_path / ".env").write_text(GUIDES_FILE)
        return clean_environment()
    server: RedisServer = request.getfixturevalue("empty_redis")
    if request.param == "enabled":
        return clean_environment(REDIS_ENABLED="true", REDIS_PORT=str(server.port))
    (tmp_path / ".env").write_text(GUIDES_FILE.replace("false", "true").replace("6379", str(server.port)))
    return clean_environment()


def ran(script: str, environ: dict[str, str], folder: Path) -> str:
    """Run *script* in *folder* and return what it printed."""
    file = folder / "script.py"
    file.write_text(script)
    ended = subprocess.run(
        [sys.executable, str(file)], cwd=folder, env=environ, capture_output=True, text=True, timeout=50, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def in_a_function(code: str, result: str) -> str:
    """Return a script that runs *code* inside one async function and prints *result*."""
    body = textwrap.indent(f"{code}\nprint({result})\n", "    ")
    return f"import asyncio\n\nasync def main():\n{body}\nasyncio.run(main())\n"


# The examples, word for word


def test_basic_setup_runs(guides_environment: dict[str, str], tmp_path: Path) -> None:
    assert ran(in_a_function(BASIC_SETUP, "history"), guides_environment, tmp_path) == f"{[HELLO]}\n"


def test_testing_runs(guides_environment: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):  # it clears up behind itself
        assert ran(TESTING, guides_environment, tmp_path) == f"{[HELLO, HI]}\n"


@pytest.fixture(scope="module")
def agents_port() -> int:
    """6969, as in the guide, where it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 6969))
        except OSError:
            return free_port()
    return 6969


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as fake:
        yield fake


@pytest.fixture
def gemini(upstream: FakeUpstream, agents_port: int, tmp_path: Path) -> Iterator[ServerProcess]:
    """Our server, with a key for Gemini and a scripted service in Gemini's place."""
    with ServerProcess(tmp_path, port=agents_port, GEMINI_API_KEY="g-key", GEMINI_BASE_URL=upstream.url) as server:
        yield server


@pytest.mark.parametrize("guides_environment", ["disabled", "enabled"], indirect=True)
async def test_with_agents_runs(
    gemini: ServerProcess, upstream: FakeUpstream, guides_environment: dict[str, str], tmp_path: Path
) -> None:
    code = WITH_AGENTS.replace("localhost:6969", f"localhost:{gemini.port}")
    environ = {**guides_environment, "PYTHONWARNINGS": "default"}
    twice = f"{in_a_function(code, 'history, response.content')}asyncio.run(main())\n"
    printed = (await asyncio.to_thread(ran, twice, environ, tmp_path)).splitlines()
    answer = {"role": "assistant", "content": "pong", "metadata": {}}
    assert printed == ["[] pong", f"{[answer]} pong"]
    question = {"role": "user", "content": "New question"}
    assert [r["messages"] for r in upstream.received] == [
        [question],
        [{"role": "assistant", "content": "pong"}, question],
    ]
    assert upstream.received[0]["model"] == "gemini-2.0-flash"
    assert upstream.headers[0]["Authorization"] == "Bearer g-key"
    assert b"metadata" not in b"".join(upstream.raw)


async def test_a_stored_history_reaches_a_model_without_what_is_ours(
    gemini: ServerProcess, upstream: FakeUpstream, manager: RedisSessionManager
) -> None:
    await manager.store_message("s", "user", "My name is Ada.", {"ip": "private"})
    await manager.store_message("s", "assistant", "Hello Ada.", {"cost": 1})
    messages = [*await manager.get_history("s"), {"role": "user", "content": "Who am I?", "metadata": {}}]
    async with httpx.AsyncClient() as client:  # LangChain's own outlives the loop
        llm = ChatOpenAI(
            base_url=f"{gemini.url}/v1", api_key=SecretStr("x"), model="gemini-2.0-flash", http_async_client=client
        )
        assert (await llm.ainvoke(messages)).content == "pong"
    body = {
        "model": "gemini-2.0-flash",
        "messages": [{**message, "id": "i", "created_at": 1.5} for message in messages],
    }
    await asyncio.to_thread(post, gemini.port, body)
    plain = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "Who am I?"},
    ]
    assert [received["messages"] for received in upstream.received] == [plain, plain]
    assert b"private" not in b"".join(upstream.raw)


def post(port: int, body: Any) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        return json.loads(response.read())
    finally:
        connection.close()


# The class's promises


async def test_the_class_keeps_its_promises_enabled_and_disabled(manager: RedisSessionManager) -> None:
    assert await manager.get_history("s") == []
    assert await manager.store_message("s", "user", "Hello!") is True
    assert await manager.store_message("s", "assistant", "Hi there!", {"model": "m"}) is True
    assert await manager.get_history("s") == [HELLO, {**HI, "metadata": {"model": "m"}}]
    assert (
        await manager.get_history("s", 1)
        == await manager.get_history("s", limit=1)
        == [{**HI, "metadata": {"model": "m"}}]
    )
    assert await manager.get_history("s", limit=0) == []
    assert await manager.clear_session("s") is True
    assert await manager.clear_session("s") is True  # also if there is none
    assert await manager.get_history("s") == []
    assert (manager.last_error, manager.failures) == (None, 0)


async def test_a_message_with_an_id_is_stored_once(manager: RedisSessionManager) -> None:
    for _ in range(3):
        assert await manager.store_message("s", "user", "Hello!", message_id="m")
    assert await manager.get_history("s") == [HELLO]


async def test_the_attributes_are_the_published_ones(enabled: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RedisSessionManager() as manager:
        assert (manager.enabled, manager.ttl) == (True, 3600)
        await manager.store_message("s", "user", "Hello!")
        assert await manager.redis.llen("session:s") == 1  # a client of redis-py, for the caller's own commands
        assert 3590 < await manager.redis.ttl("session:s") <= 3600
    monkeypatch.setenv("REDIS_ENABLED", "false")
    monkeypatch.setenv("REDIS_TTL", "60")
    async with RedisSessionManager() as manager:
        assert (manager.enabled, manager.redis, manager.ttl) == (False, None, 60)


@pytest.mark.parametrize(
    ("name", "value"), [("REDIS_ENABLED", "maybe"), ("REDIS_TTL", "0"), ("REDIS_PORT", "0"), ("REDIS_DB", "-1")]
)
def test_what_cannot_be_understood_is_said_at_the_start(
    name: str, value: str, enabled: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=name):
        RedisSessionManager()


@pytest.mark.parametrize("strict", [False, True])
async def test_a_callers_mistake_always_raises(manager: RedisSessionManager, strict: bool) -> None:
    manager.strict = strict
    with pytest.raises(TypeError):
        await manager.store_message(None, "user", "x")  # type: ignore[arg-type]
    for call in (
        manager.store_message("", "user", "x"),
        manager.store_message("s", "", "x"),
        manager.store_message("s", "user", None),
        manager.store_message("s", "user", "x", {"bad": float("nan")}),
        manager.get_history("a\nb"),
        manager.get_history("s", -1),
        manager.clear_session(" "),
    ):
        with pytest.raises(InvalidInput):
            await call
    assert manager.last_error is None
    assert await manager.get_history("s") == []


def impatient(manager: RedisSessionManager) -> RedisSessionManager:
    """Return the manager with a deadline of its store that a test can wait for."""
    manager._manager.store = manager._manager.store.with_options(deadline=0.3)
    return manager


@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_a_redis_that_fails_gives_false_or_nothing_and_says_so(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(password="s3cret", appendonly=True) as server:
        monkeypatch.setenv("REDIS_ENABLED", "true")
        monkeypatch.setenv("REDIS_PORT", str(server.port))
        monkeypatch.setenv("REDIS_PASSWORD", "s3cret")
        async with impatient(RedisSessionManager()) as manager, impatient(RedisSessionManager(strict=True)) as strict:
            assert await manager.store_message("s", "user", "Hello!")
            assert await strict.get_history("s") == [HELLO]
            (server.kill if fault == "killed" else server.pause)()
            with caplog.at_level(logging.INFO, "webai_api"):
                for n, (call, given) in enumerate(
                    (
                        (manager.get_history("s"), []),
                        (manager.store_message("s", "user", "lost?", message_id="m"), False),
                        (manager.clear_session("other"), False),
                    ),
                    start=1,
                ):
                    caplog.clear()
                    before = manager.last_error
                    assert await call == given
                    assert [record.levelname for record in caplog.records] == ["ERROR"]
                    assert isinstance(manager.last_error, StoreError)
                    assert manager.last_error is not before
                    assert manager.failures == n
                    assert "s3cret" not in caplog.text + str(manager.last_error)
            for failing in (
                strict.get_history("s"),
                strict.store_message("s", "user", "lost?", message_id="m"),
                strict.clear_session("other"),
            ):
                with pytest.raises(StoreError):
                    await failing
            assert strict.failures == 3
            (server.start if fault == "killed" else server.resume)()
            monkeypatch.undo()
            manager._manager.store = strict._manager.store = manager._store  # patient again
            assert await manager.store_message("s", "user", "lost?", message_id="m")
            assert [m["content"] for m in await manager.get_history("s")] == ["Hello!", "lost?"]


async def test_a_wrong_password_is_no_empty_history(monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer(password="right") as server:
        monkeypatch.setenv("REDIS_ENABLED", "true")
        monkeypatch.setenv("REDIS_PORT", str(server.port))
        monkeypatch.setenv("REDIS_PASSWORD", "wr0ng")
        async with RedisSessionManager() as manager, RedisSessionManager(strict=True) as strict:
            assert await manager.get_history("s") == []
            assert type(manager.last_error).__name__ == "AuthenticationFailed"
            assert "wr0ng" not in str(manager.last_error)
            with pytest.raises(webai_api.AuthenticationFailed):
                await strict.get_history("s")


async def test_an_unreachable_redis_does_not_hinder_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_ENABLED", "true")
    monkeypatch.setenv("REDIS_PORT", str(free_port()))
    async with impatient(RedisSessionManager(strict=True)) as manager:
        with pytest.raises(StoreUnavailable):
            await manager.get_history("s")


# In memory


async def test_disabled_means_sessions_that_all_managers_of_the_process_share(monkeypatch: pytest.MonkeyPatch) -> None:
    first = RedisSessionManager()
    await first.store_message("s", "user", "Hello!")
    await first.aclose()
    monkeypatch.setenv("REDIS_TTL", "0.05")
    second = RedisSessionManager()
    assert await second.get_history("s") == [HELLO]
    assert await SessionManager.from_env().get_history("s") == [HELLO]
    await second.store_message("short", "user", "Hello!")
    await asyncio.sleep(0.1)
    assert await first.get_history("short") == []
    assert await first.get_history("s") == [HELLO]


def test_a_manager_made_at_import_time_serves_one_loop_after_the_other(
    guides_environment: dict[str, str], tmp_path: Path
) -> None:
    script = """
        import asyncio
        from app.services.redis_session import RedisSessionManager

        manager = RedisSessionManager()

        async def main():
            assert await manager.store_message("s", "user", "Hello!")
            print(len(await manager.get_history("s")), manager.last_error)

        asyncio.run(main())
        asyncio.run(main())
    """
    assert ran(textwrap.dedent(script), guides_environment, tmp_path) == "1 None\n2 None\n"


# Beside the guide's own code


async def test_what_the_guides_code_wrote_is_read_by_ours(guide: GuideSessionManager) -> None:
    await guide.store_message("s", "user", "Hello!")
    await guide.store_message("s", "assistant", "Hi thére!", {"n": [1, {"a": None}]})
    async with RedisSessionManager() as ours:
        expected = [HELLO, {"role": "assistant", "content": "Hi thére!", "metadata": {"n": [1, {"a": None}]}}]
        assert await ours.get_history("s") == expected == await guide.get_history("s")
        assert await ours.get_history("s", 1) == expected[1:]


async def test_what_ours_wrote_is_read_by_the_guides_code(guide: GuideSessionManager) -> None:
    async with RedisSessionManager() as ours:
        await ours.store_message("s", "user", "Hello!")
        await ours.store_message("s", "assistant", "Hi thére!", {"n": 1})
        read = await guide.get_history("s")
        assert [{key: message[key] for key in HELLO} for message in read] == await ours.get_history("s")
        assert await guide.redis.ttl("session:s") == pytest.approx(3600, abs=5)
        assert await guide.get_history("s", 1) == read[1:]


async def test_mixed_writers_on_one_session_keep_every_message_in_order(guide: GuideSessionManager) -> None:
    async with RedisSessionManager() as ours:
        for n in range(20):
            await (guide if n % 3 else ours).store_message("s", "user", str(n))
        numbers = [str(n) for n in range(20)]
        assert [m["content"] for m in await ours.get_history("s")] == numbers
        assert [m["content"] for m in await guide.get_history("s")] == numbers

        async def talk(writer: Any, name: str) -> None:
            for n in range(25):
                await writer.store_message("t", "user", f"{name}{n}")

        await asyncio.gather(talk(ours, "o"), talk(guide, "g"), talk(ours, "p"), talk(guide, "h"))
        found = [m["content"] for m in await ours.get_history("t")]
        assert found == [m["content"] for m in await guide.get_history("t")]
        assert len(found) == 100
        for name in "oghp":
            assert [text for text in found if text[0] == name] == [f"{name}{n}" for n in range(25)]


async def test_clearing_by_either_is_seen_by_both(guide: GuideSessionManager) -> None:
    async with RedisSessionManager() as ours:
        await guide.store_message("s", "user", "Hello!")
        assert await ours.clear_session("s")
        assert await guide.get_history("s") == []
        await ours.store_message("s", "user", "Hello!")
        await guide.clear_session("s")
        with suppress(StoreError):
            assert await ours.get_history("s") == []
        assert await ours.clear_session("s")  # mends what looks like a loss
        assert await ours.store_message("s", "user", "Hello!")
        assert await ours.get_history("s") == [HELLO]


async def test_entries_written_by_hand_are_read_and_damaged_ones_hide_nothing(
    guide: GuideSessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    entries: list[str | bytes] = [
        '{"role": "user", "content": "no metadata"}',
        '["no", "object"]',
        '{"role": "user", "content": "null", "metadata": null, "name": "Ada"}',
        "no JSON",
        "7",
        '{"role": "user", "content": "NaN", "metadata": {"x": NaN}}',
        b"\xff\xfe",
        '{"role": "user", "content": "the last", "id": "own"}',
    ]
    await guide.redis.rpush("session:s", *entries)
    async with RedisSessionManager(strict=True) as ours:
        with caplog.at_level(logging.WARNING, "webai_api"):
            found = await ours.get_history("s")
        contents = [message["content"] for message in found]
        assert contents[:2] + contents[-1:] == ["no metadata", "null", "the last"]
        assert found[0] == {"role": "user", "content": "no metadata", "metadata": {}}
        assert found[1] == {"role": "user", "content": "null", "metadata": {}, "name": "Ada"}
        assert found[-1] == {"role": "user", "content": "the last", "metadata": {}, "id": "own"}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert [message["content"] for message in await ours.get_history("s", 1)] == ["the last"]
        assert await ours.store_message("s", "user", "goes on")
        assert (await ours.get_history("s"))[-1]["content"] == "goes on"
        corrupt = (await ours._manager.read("s")).corrupt
        assert {2, 4, 5, 7} <= set(corrupt)


# Imports


def test_the_import_paths_lead_to_the_same() -> None:
    assert RedisSessionManager is webai_api.RedisSessionManager
    assert logger is logging.getLogger("webai_api")


def test_a_users_own_app_package_wins_over_ours(tmp_path: Path) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").write_text("mine = True\n")
    script = "import app, webai_api\nprint(app.mine, webai_api.RedisSessionManager().enabled)\n"
    assert ran(script, clean_environment(), tmp_path) == "True False\n"


def test_a_users_own_app_folder_without_an_init_has_both(tmp_path: Path) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "models.py").write_text("mine = True\n")
    script = "import app.models\nfrom app.services.redis_session import RedisSessionManager\nprint(app.models.mine)\n"
    assert ran(script, clean_environment(), tmp_path) == "True\n"


def test_the_library_installs_no_log_handlers_and_prints_nothing(tmp_path: Path) -> None:
    script = """
        import asyncio, logging
        from app.logger import logger
        from webai_api import RedisSessionManager

        asyncio.run(RedisSessionManager().store_message("s", "user", "Hello!"))
        names = [None, *(n for n in logging.root.manager.loggerDict if n.startswith(("webai_api", "app")))]
        print([logging.getLogger(name).handlers for name in names if logging.getLogger(name).handlers], logger.level)
    """
    assert ran(textwrap.dedent(script), clean_environment(), tmp_path) == "[] 0\n"


def test_importing_the_library_imports_neither_redis_nor_a_server(tmp_path: Path) -> None:
    script = """
        import sys
        import webai_api, app.services.redis_session
        webai_api.RedisSessionManager()
        heavy = ("redis", "hiredis", "aiohttp", "uvicorn", "msgspec", "httptools", "sqlite3", "aioredis")
        print([name for name in heavy if name in sys.modules])
    """
    assert ran(textwrap.dedent(script), clean_environment(), tmp_path) == "[]\n"


def test_memory_is_one_per_process_and_a_url_is_the_callers(tmp_path: Path) -> None:
    settings = StoreSettings.from_env({})
    shared = environment_store(settings, None)
    assert shared == environment_store(settings, None)
    assert shared[1] is False
