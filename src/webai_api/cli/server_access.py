"""A server to talk to: this process's own application, without a port, or a running one over HTTP."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from webai_api.cli.terminal import printable
from webai_api.errors import InvalidInput, SessionError
from webai_api.settings import ServerSettings
from webai_api.urls import open_store

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from webai_api.server.app import App

__all__ = ["ChatServer", "local_server", "remote_server"]

NEEDS = "webai-api chat needs: pip install 'webai-api[server]'"


class ChatServer(Protocol):
    """Answers chat requests."""

    def chat(self, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the lines of the answer's event stream. A refusal raises SessionError with the server's words."""
        ...


@asynccontextmanager
async def local_server(settings: ServerSettings, tenant: str | None) -> AsyncIterator[ChatServer]:
    """Run the application in this process for as long as the block lasts."""
    try:
        from webai_api.server.app import create_app
    except ImportError as error:
        raise ImportError(NEEDS) from error
    store = open_store(settings.store.store_url or "memory://", limits=settings.store.limits)
    app = create_app(replace(settings, api_keys=()), store.with_options(tenant=tenant))
    events: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
    states: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
    lifespan = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, events.get, states.put))
    try:
        await events.put({"type": "lifespan.startup"})
        await states.get()
        yield _Local(app)
    finally:
        await events.put({"type": "lifespan.shutdown"})
        await lifespan
        await store.aclose()


@asynccontextmanager
async def remote_server(url: str, key: str | None) -> AsyncIterator[ChatServer]:
    """Speak to the server at *url*, with an API key if there is one."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInput("--url must be an http:// or https:// URL, such as http://127.0.0.1:6969")
    try:
        import aiohttp
    except ImportError as error:
        raise ImportError(NEEDS) from error
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    base = url.rstrip("/").removesuffix("/v1")
    timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=120)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as client:
        yield _Remote(client, f"{base}/v1/chat/completions")


class _Local:
    def __init__(self, app: "App") -> None:
        self._app = app

    async def chat(self, body: bytes) -> AsyncGenerator[bytes, None]:
        sent: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
        request: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        await request.put({"type": "http.request", "body": body, "more_body": False})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
        }
        running = asyncio.create_task(self._app(scope, request.get, sent.put))
        running.add_done_callback(lambda _: sent.put_nowait(None))
        start = await sent.get()
        pieces = _bodies(sent, request)
        if start is not None and start["status"] == 200:
            async for line in _lines(pieces):
                yield line
            await running
        else:
            refusal = b"".join([piece async for piece in pieces])
            await running
            raise SessionError(_refusal(refusal, 500 if start is None else start["status"]))


class _Remote:
    def __init__(self, client: "ClientSession", url: str) -> None:
        self._client, self._url = client, url

    async def chat(self, body: bytes) -> AsyncGenerator[bytes, None]:
        import aiohttp

        try:
            async with self._client.post(self._url, data=body) as response:
                if response.status != 200:
                    raise SessionError(_refusal(await response.read(), response.status))
                async for line in _lines(response.content.iter_any()):
                    yield line
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SessionError(f"{self._url} does not answer: {str(error) or 'timeout'}") from error


async def _bodies(
    sent: "asyncio.Queue[MutableMapping[str, Any] | None]", request: "asyncio.Queue[MutableMapping[str, Any]]"
) -> AsyncIterator[bytes]:
    while (message := await sent.get()) is not None:
        if not message.get("more_body"):  # as a server does: the application may still look after its response
            await request.put({"type": "http.disconnect"})
        yield message.get("body", b"")


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def _refusal(body: bytes, status: int) -> str:
    try:
        return printable(str(json.loads(body)["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}"
