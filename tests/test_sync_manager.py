"""`SyncSessionManager`: in plain code, in threads, inside a running loop, and at its end."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from webai_api import SessionManager, SyncSessionManager
from webai_api.errors import Conflict, IdReused, InvalidInput, StoreError, StoreUnavailable
from webai_api.types import History, Message


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("empty_redis")
        return server.url
    return {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/sessions.db"}[request.param]


@pytest.fixture
def manager(url: str) -> Iterator[SyncSessionManager]:
    with SyncSessionManager.from_url(url) as opened:
        yield opened


def user(text: str) -> Message:
    return {"role": "user", "content": text, "metadata": {}}


def said(manager: SyncSessionManager, session_id: str = "s") -> list[Any]:
    return [message["content"] for message in manager.get_history(session_id)]


def every_verb(manager: SyncSessionManager) -> None:
    """Use each verb once and check its answer."""
    one = manager.store_message("s", "user", "one", {"a": 1}, message_id="m1")
    assert manager.store_message("s", "user", "one", {"a": 1}, message_id="m1").version == one.version
    two = manager.store_turn("s", [user("two"), user("three")], turn_id="t", expected=one.version)
    assert two.count == 3
    assert manager.get_history("s", 1) == [user("three")]
    assert manager.get_history("s")[0] == {"role": "user", "content": "one", "metadata": {"a": 1}}
    assert [item.id for item in manager.read("s", after=1, last=1).items] == ["t:1"]
    assert manager.pop_message("s") == user("three")
    manager.store_message("s2", "user", "hi")
    assert {session.id for session in manager.sessions()} == {"s", "s2"}
    assert [session.id for session in manager.sessions(prefix="s2")] == ["s2"]
    assert manager.clear_session("s")
    assert not manager.clear_session("s")
    assert manager.read("s") == History(None)
    assert manager.pop_message("s") is None


def test_every_verb_works_in_plain_code(manager: SyncSessionManager) -> None:
    every_verb(manager)


async def test_every_verb_works_inside_a_running_loop(manager: SyncSessionManager) -> None:
    every_verb(manager)


def test_every_verb_works_in_another_thread_with_a_loop(manager: SyncSessionManager) -> None:
    async def main() -> None:
        every_verb(manager)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, main()).result(20)


def test_threads_share_a_manager_without_losing_a_message(manager: SyncSessionManager) -> None:
    def talk(name: int) -> None:
        for n in range(10):
            manager.store_message("s", "user", f"{name}-{n}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(8)))
    found = said(manager)
    assert len(found) == 80
    for name in range(8):
        assert [text for text in found if text.startswith(f"{name}-")] == [f"{name}-{n}" for n in range(10)]


def test_of_many_threads_one_pops_each_message(manager: SyncSessionManager) -> None:
    manager.store_turn("s", [user(str(n)) for n in range(10)])
    with ThreadPoolExecutor(6) as pool:
        popped = list(pool.map(lambda _: manager.pop_message("s"), range(14)))
    assert sorted(m["content"] for m in popped if m is not None) == sorted(str(n) for n in range(10))
    assert popped.count(None) == 4


def test_errors_are_those_of_the_asynchronous_manager(manager: SyncSessionManager) -> None:
    begun = manager.store_message("s", "user", "one", message_id="m")
    with pytest.raises(IdReused):
        manager.store_message("s", "user", "other", message_id="m")
    manager.store_message("s", "user", "two")
    with pytest.raises(Conflict):
        manager.store_turn("s", [user("three")], expected=begun.version)
    with pytest.raises(InvalidInput):
        manager.get_history("s", -1)
    with pytest.raises(TypeError):
        manager.store_message(None, "user", "x")  # type: ignore[arg-type]
    assert said(manager) == ["one", "two"]


def test_a_store_that_is_gone_raises_within_the_deadline() -> None:
    with RedisServer() as server:
        url = server.url
    with SyncSessionManager.from_url(url, deadline=0.3) as manager:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            manager.get_history("s")
        assert time.monotonic() - begun < 3


def test_the_environment_names_the_store(tmp_path: Path) -> None:
    with SyncSessionManager.from_env({"SESSION_STORE": f"sqlite:///{tmp_path}/env.db"}) as manager:
        manager.store_message("s", "user", "hi")
        assert said(manager) == ["hi"]
    assert (tmp_path / "env.db").exists()


def test_a_listing_may_be_left_half_way(manager: SyncSessionManager) -> None:
    for n in range(5):
        manager.store_message(f"s{n}", "user", "hi")
    for session in manager.sessions():
        assert session.count == 1
        break
    assert len(list(manager.sessions())) == 5


# The end


def test_after_close_every_verb_raises(url: str) -> None:
    manager = SyncSessionManager.from_url(url)
    manager.store_message("s", "user", "hi")
    manager.close()
    manager.close()
    calls: list[Callable[[], object]] = [
        lambda: manager.store_message("s", "user", "x"),
        lambda: manager.store_turn("s", [user("x")]),
        lambda: manager.get_history("s"),
        lambda: manager.read("s"),
        lambda: manager.pop_message("s"),
        lambda: manager.clear_session("s"),
        lambda: list(manager.sessions()),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            call()


def threads_of_ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "webai-api sync"]


def test_closing_ends_the_thread(url: str) -> None:
    before = len(threads_of_ours())
    with SyncSessionManager.from_url(url) as manager:
        manager.store_message("s", "user", "hi")
        assert len(threads_of_ours()) == before + 1
    assert len(threads_of_ours()) == before


def test_a_manager_that_is_forgotten_ends_its_thread(url: str) -> None:
    before = len(threads_of_ours())
    manager = SyncSessionManager.from_url(url)
    manager.store_message("s", "user", "hi")
    gone = weakref.ref(manager)
    del manager
    gc.collect()
    assert gone() is None
    deadline = time.monotonic() + 5
    while len(threads_of_ours()) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_that_was_given_is_not_closed(tmp_path: Path) -> None:
    kept = SessionManager.from_url(f"sqlite:///{tmp_path}/s.db")
    with SyncSessionManager(SessionManager(kept.store)) as manager:
        manager.store_message("s", "user", "hi")

    async def look() -> int:
        async with kept:
            return len(await kept.get_history("s"))

    assert asyncio.run(look()) == 1


def test_closing_while_others_call_loses_nothing_acknowledged_and_nobody_waits_for_ever(
    tmp_path: Path, empty_redis: RedisServer
) -> None:
    for url in (f"sqlite:///{tmp_path}/s.db", empty_redis.url, "memory://"):
        acknowledged: list[str] = []

        def talk(name: int, manager: SyncSessionManager, done: list[str]) -> None:
            with suppress(StoreError):
                for n in range(100_000):
                    manager.store_message("s", "user", f"{name}-{n}")
                    done.append(f"{name}-{n}")

        manager = SyncSessionManager.from_url(url)
        with ThreadPoolExecutor(6) as pool:
            talking = [pool.submit(talk, name, manager, acknowledged) for name in range(4)]
            while len(acknowledged) < 20:
                time.sleep(0.001)
            closing = [pool.submit(manager.close) for _ in range(2)]
            for future in talking + closing:
                future.result(10)
        if not url.startswith("memory"):
            with SyncSessionManager.from_url(url) as reader:
                assert sorted(said(reader)) == sorted(acknowledged)


def test_the_end_of_the_program_needs_no_farewell(url: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from webai_api import SyncSessionManager\n"
        "manager = SyncSessionManager.from_url(sys.argv[1])\n"
        "manager.store_message('s', 'user', 'hi')\n"
        "print(len(manager.get_history('s')))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(script), url], capture_output=True, text=True, timeout=20, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("1\n", "", 0)


def test_ctrl_c_ends_the_waiting(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from webai_api import SyncSessionManager\n"
        "with SyncSessionManager.from_url(sys.argv[1]) as manager:\n"
        "    manager.get_history('s')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    print('calling', flush=True)\n"
        "    manager.get_history('s')\n"
    )
    with (
        RedisServer() as server,
        subprocess.Popen(
            [sys.executable, str(script), server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        server.pause()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "calling\n"
        time.sleep(0.1)  # so that it waits
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        process.wait(10)
        assert time.monotonic() - begun < 3  # not the whole deadline
        assert process.returncode == -signal.SIGINT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_fork_gets_an_error_and_does_not_hang(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from webai_api import SyncSessionManager\n"
        "from webai_api.errors import StoreError\n"
        "manager = SyncSessionManager.from_url('memory://')\n"
        "manager.store_message('s', 'user', 'hi')\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        manager.get_history('s')\n"
        "    except StoreError as error:\n"
        "        print(error)\n"
        "    manager.close()\n"
        "else:\n"
        "    os.wait()\n"
        "    print(len(manager.get_history('s')))\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=20, check=False)
    said_by_child, said_by_parent = ended.stdout.splitlines()
    assert "make one in each process" in said_by_child
    assert (said_by_parent, ended.returncode) == ("1", 0)
