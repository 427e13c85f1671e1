"""The server as a process: start, crash, drain, and what it refuses."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.server.harness import CHAT, ServerProcess, clean_environment, user
from tests.servers import RedisServer, free_port

SLOW_UPSTREAM = """
import asyncio, json, sys
from aiohttp import web

async def chat(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for i in range(10):
        chunk = {"choices": [{"index": 0, "delta": {"content": f"{i} "}, "finish_reason": "stop" if i == 9 else None}]}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\\n\\n")
        await asyncio.sleep(0.1)
    await response.write(b"data: [DONE]\\n\\n")
    return response

app = web.Application()
app.router.add_post("/v1/chat/completions", chat)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


def ask(url: str, text: str, session: str, **fields: Any) -> str:
    """Say *text* and return the answer; a plain client, so that the server is another process in every way."""
    body = json.dumps({"model": "demo", "messages": [user(text)], "session_id": session, **fields}).encode()
    request = urllib.request.Request(url + CHAT, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        said: str = json.loads(response.read())["choices"][0]["message"]["content"]
        return said


def refused(folder: Path, *arguments: str, **environ: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "webai_api", "serve", *arguments],
        cwd=folder,
        env=clean_environment(**environ),
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def test_it_says_what_it_serves_where_it_stores_and_what_to_try(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, SESSION_STORE="sqlite:///sessions.db") as server:
        said = server.output
        assert f"{server.url}/v1" in said
        assert "sqlite:///sessions.db" in said
        assert "demo" in said
        command = re.search(r"^ +(curl .*)$", said, re.MULTILINE)
        assert command is not None
        tried = subprocess.run(["bash", "-c", command[1]], capture_output=True, text=True, timeout=10, check=True)
        assert "Ada" in json.loads(tried.stdout)["choices"][0]["message"]["content"]
        with urllib.request.urlopen(server.url + "/livez") as response:
            assert response.headers["Server"] is None
    assert server.process.returncode == 0
    assert server.output == said  # no log of what was asked, and nothing to complain about


def test_a_password_in_the_stores_url_is_not_shown(tmp_path: Path, redis_server: RedisServer) -> None:
    url = redis_server.url.replace("redis://", "redis://default:hunter2@")
    with ServerProcess(tmp_path, SESSION_STORE=url) as server:
        assert "hunter2" not in server.output
        assert "***" in server.output


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_after_kill_9_and_a_restart_the_third_turn_still_knows_the_first(
    tmp_path: Path, kind: str, empty_redis: RedisServer
) -> None:
    store = empty_redis.url if kind == "redis" else "sqlite:///sessions.db"
    with ServerProcess(tmp_path, "--store", store) as server:
        ask(server.url, "My name is Ada.", "s")
        ask(server.url, "Hello again.", "s")
        server.kill()
    with ServerProcess(tmp_path, "--store", store, port=server.port) as again:
        assert ask(again.url, "What is my name?", "s") == "Your name is Ada."


def test_two_processes_share_a_store(tmp_path: Path, empty_redis: RedisServer) -> None:
    port = str(empty_redis.port)
    with (
        ServerProcess(tmp_path, REDIS_ENABLED="true", REDIS_PORT=port) as one,
        ServerProcess(tmp_path, REDIS_ENABLED="true", REDIS_PORT=port) as two,
    ):
        ask(one.url, "My name is Ada.", "s")
        assert ask(two.url, "What is my name?", "s") == "Your name is Ada."


def test_workers_share_a_port_and_a_store(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--workers", "2", SESSION_STORE="sqlite:///sessions.db") as server:
        assert "with 2 workers" in server.output
        ask(server.url, "My name is Ada.", "s")
        for _ in range(6):  # each on a connection of its own, so both workers are asked
            assert ask(server.url, "What is my name?", "s") == "Your name is Ada."
    assert server.process.returncode == 0


@pytest.fixture
def slow_upstream(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SLOW_UPSTREAM, str(port)])
    try:
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def test_at_sigterm_a_stream_in_flight_is_finished_and_stored(tmp_path: Path, slow_upstream: str) -> None:
    store = "sqlite:///sessions.db"
    with ServerProcess(tmp_path, "--store", store, WEBAI_UPSTREAM_SLOW_URL=slow_upstream) as server:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        body = json.dumps({"model": "slow", "messages": [user("go")], "stream": True, "session_id": "s"})
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        received = [response.readline()]
        server.terminate()
        rest = threading.Thread(target=lambda: received.append(response.read()))
        rest.start()
        time.sleep(0.4)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), 1)
        rest.join(10)
        connection.close()
        assert b"".join(received).endswith(b"data: [DONE]\n\n")
        assert server.process.wait(5) == 0
    with ServerProcess(tmp_path, "--store", store) as again:
        assert ask(again.url, "What did I say first?", "s") == 'You said first: "go".'


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, said = refused(tmp_path, "--port", str(port))
    assert code == 1
    assert said.count("\n") == 1
    assert str(port) in said
    assert "--port" in said


def test_several_workers_with_the_memory_store_are_refused(tmp_path: Path) -> None:
    code, said = refused(tmp_path, "--workers", "2", "--store", "memory://")
    assert code == 2
    assert said.count("\n") == 1
    assert "memory" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_keys_it_listens_on_loopback_only(tmp_path: Path, host: str) -> None:
    code, said = refused(tmp_path, "--host", host, "--port", "0")
    assert code == 2
    assert said.count("\n") == 1
    assert "WEBAI_API_KEYS" in said


def test_with_keys_it_listens_anywhere(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--host", "0.0.0.0", WEBAI_API_KEYS="acme:my-key") as server:
        assert "my-key" not in server.output


@pytest.mark.parametrize("store", ["nonsense://x", "sqlite://", "redis+sentinel://h/s"])
def test_a_store_that_cannot_be_is_refused_in_one_line(tmp_path: Path, store: str) -> None:
    code, said = refused(tmp_path, "--store", store)
    assert code == 2
    assert said.count("\n") == 1


def test_it_starts_without_its_store_and_says_so_in_readiness(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--store", f"redis://127.0.0.1:{free_port()}/0") as server:
        for path, status in (("/livez", 200), ("/readyz", 503)):
            connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
            connection.request("GET", path)
            with connection.getresponse() as response:
                assert response.status == status
            connection.close()
