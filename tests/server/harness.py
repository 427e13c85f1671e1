"""A server in the test's own loop, a real one in a process, and a scripted upstream."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import aiohttp
import uvicorn
from aiohttp import web
from uvicorn.server import ServerState

from tests.servers import free_port
from webai_api.protocol import SessionStore
from webai_api.server.app import App, create_app
from webai_api.settings import ServerSettings

CHAT = "/v1/chat/completions"
Headers = Mapping[str, str] | Sequence[tuple[str, str]]
Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


def server_settings(**environ: str) -> ServerSettings:
    return ServerSettings.from_env({"WEBAI_LOG_LEVEL": "warning", **environ})


async def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # any condition, not only what sets an event
            await asyncio.sleep(0.005)


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """What the assistant said, whole or streamed."""
        if not self.headers["content-type"].startswith("text/event-stream"):
            said: str = self.json["choices"][0]["message"]["content"]
            return said
        chunks = [json.loads(e) for e in self.events if e != "[DONE]"]
        return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))

    @property
    def events(self) -> list[str]:
        return [frame.removeprefix("data: ") for frame in self.body.decode().split("\n\n") if frame]

    @property
    def error(self) -> dict[str, Any]:
        """The error's envelope, which must have exactly these four fields."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error


class Caller:
    """An HTTP client for one server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.http = session

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        async with self.http.request(method, self.url + path, **options) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.request("GET", path, **options)

    async def post(self, body: Any, *, headers: Headers | None = None) -> Reply:
        headers = [
            *(headers.items() if isinstance(headers, Mapping) else headers or ()),
            ("Content-Type", "application/json"),
        ]
        return await self.request("POST", CHAT, data=BytesIO(json.dumps(body).encode()), headers=headers)

    async def say(
        self, text: str, session: str | None = None, *, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> Reply:
        """Send one message of a user."""
        return await self.send([user(text)], session, headers=headers, **fields)

    async def send(
        self,
        messages: Sequence[Mapping[str, Any]],
        session: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Reply:
        named = {"X-Session-Id": session} if session is not None else {}
        body = {"model": "demo", "messages": messages, **fields}
        return await self.post(body, headers={**named, **(headers or {})})


class Running(Caller):
    """A server in this loop."""

    def __init__(self, url: str, session: aiohttp.ClientSession, app: App, store: SessionStore) -> None:
        super().__init__(url, session)
        self.app = app
        self.store = store

    async def stored(self, session: str, *, tenant: str | None = None) -> list[dict[str, Any]]:
        """What the session holds, as role and content."""
        history = await self.store.with_options(tenant=tenant).read(session)
        return [{"role": i.data["role"], "content": i.data["content"]} for i in history.items]

    async def count(self, session: str, namespace: str = "session") -> int:
        return len((await self.store.with_options(namespace=namespace).read(session)).items)

    async def settle(self) -> None:
        """Wait until no work is left behind by the requests so far."""
        await wait_until(lambda: not len(self.app.services.background))


@asynccontextmanager
async def running(settings: ServerSettings, store: SessionStore) -> AsyncIterator[Running]:
    """Serve in this loop, on a free port; the store is the caller's.

    uvicorn's protocol without its `Server`, which takes over the signals and 200 ms of every test; `ServerProcess`
    is for what it does.
    """
    app = create_app(settings, store)
    config = uvicorn.Config(app, http="httptools", ws="none", log_config=None)
    config.load()
    state = ServerState()
    protocol = partial(config.http_protocol_class, config=config, server_state=state, app_state={})  # type: ignore[call-arg]
    listening = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        async with aiohttp.ClientSession() as session:
            yield Running(f"http://127.0.0.1:{port}", session, app, store)
    finally:
        listening.close()
        for connection in list(state.connections):
            connection.shutdown()
        await wait_until(lambda: not state.tasks)
        await app.aclose()


class ServerProcess:
    """``webai-api serve`` in a process of its own, ready when it is made."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0, **environ: str) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / f"server-{self.port}-{time.monotonic_ns()}.log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "webai_api", "serve", "--port", str(self.port), *arguments],
            cwd=folder,
            env=clean_environment(**environ),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 15
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                said = self.output
                self._log.close()
                raise RuntimeError(said)
            time.sleep(0.02)

    @property
    def output(self) -> str:
        return Path(self._log.name).read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return b" 200 " in connection.recv(100)
        except OSError:
            return False


def clean_environment(**environ: str) -> dict[str, str]:
    """The environment of this process without what would configure a server."""
    ours = ("WEBAI_", "REDIS_", "SESSION_", "GEMINI_", "OPENAI_", "OLLAMA_")
    own = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**own, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONWARNINGS": "error", **environ}


@dataclass
class FakeUpstream:
    """A service with OpenAI's API that does what the test scripts, and otherwise answers "pong"."""

    url: str = ""
    script: deque[Behaviour] = field(default_factory=deque)
    received: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    models: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/models"):
            return web.json_response({"object": "list", "data": [{"id": m, "object": "model"} for m in self.models]})
        raw = await request.read()
        self.raw.append(raw)
        self.received.append(json.loads(raw))
        self.headers.append(request.headers)
        behaviour = self.script.popleft() if self.script else says("pong")
        try:
            return await behaviour(request)
        except asyncio.CancelledError:
            self.hung_up.set()
            raise

    @property
    def environ(self) -> dict[str, str]:
        """The variables that make a server ask this upstream for the models ``fake-*``."""
        return {
            "WEBAI_UPSTREAM_FAKE_URL": self.url,
            "WEBAI_UPSTREAM_FAKE_KEY": "sk-upstream-secret",
            "WEBAI_UPSTREAM_FAKE_MODELS": "fake-*",
        }


@asynccontextmanager
async def fake_upstream() -> AsyncIterator[FakeUpstream]:
    fake = FakeUpstream()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fake.url = f"http://{host}:{port}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def completion(message: Mapping[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    head = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1, "model": "fake-1"}
    return {**head, "choices": [choice], "usage": usage}


def frame(delta: Mapping[str, Any], finish_reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": "fake-1"}
    return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def frames(*words: str) -> list[bytes]:
    """A whole stream that says *words*."""
    return [
        frame({"role": "assistant", "content": ""}),
        *(frame({"content": w}) for w in words),
        frame({}, "stop"),
        DONE,
    ]


def says(text: str, delay: float = 0.0) -> Behaviour:
    """Answer *text*, streamed when the request asks for it."""

    async def behave(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay)
        if (await request.json()).get("stream"):
            return await streams(frames(text))(request)
        return web.json_response(completion({"content": text}))

    return behave


def answers(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Behaviour:
    async def behave(request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers=headers)

    return behave


def sends(raw: bytes, content_type: str = "application/json", status: int = 200) -> Behaviour:
    async def behave(request: web.Request) -> web.StreamResponse:
        return web.Response(body=raw, content_type=content_type, status=status)

    return behave


def streams(pieces: Sequence[bytes], *, then: str = "end", gate: asyncio.Event | None = None) -> Behaviour:
    """Send *pieces*, the last one after *gate*; then ``end``, ``cut`` the connection, or ``hang``."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for i, piece in enumerate(pieces):
            if gate is not None and i == len(pieces) - 1:
                await gate.wait()
            await response.write(piece)
            await asyncio.sleep(0)
        if then == "cut":
            assert request.transport is not None
            request.transport.abort()
        elif then == "hang":
            await asyncio.sleep(60)
        return response

    return behave


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits that long")
