"""The ASGI application: which handler answers what, and what holds for every request."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from webai_api.protocol import SessionStore
from webai_api.server.auth import Hosts, Keys
from webai_api.server.chat import ChatHandler
from webai_api.server.errors import ApiError
from webai_api.server.health import ReadyHandler, live
from webai_api.server.http import Exchange, Receive, Request, Scope, Send
from webai_api.server.models import MODELS, ModelsHandler
from webai_api.server.services import Services
from webai_api.settings import ServerSettings
from webai_api.urls import open_store

__all__ = ["App", "create_app"]

DRAIN_SECONDS = 20.0  # for answers whose clients have gone and that are to be finished
OPEN = frozenset({"/livez", "/healthz", "/readyz"})  # need no key

Handler: TypeAlias = Callable[[Request, Exchange], Awaitable[None]]

_logger = logging.getLogger("webai_api.server")


def create_app(settings: ServerSettings, store: SessionStore | None = None) -> "App":
    """Return the application, with the store that *settings* name unless one is given, which its giver closes.

    Nothing is connected before the first request.

    Raises:
        InvalidInput: the store's URL is malformed.
        ImportError: the store needs an extra that is not installed.
    """
    return App(settings, store)


class App:
    """An ASGI application."""

    def __init__(self, settings: ServerSettings, store: SessionStore | None) -> None:
        self._given = store is not None
        self._store = store or open_store(settings.store.store_url or "memory://", limits=settings.store.limits)
        self.services = services = Services(settings, self._store)
        self._keys = Keys(settings.api_keys)
        self._hosts = Hosts(configured=settings.host, open_to_all=bool(settings.api_keys))
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": ChatHandler(services)},
            MODELS: {"GET": ModelsHandler(services)},
            "/livez": {"GET": live},
            "/healthz": {"GET": live},
            "/readyz": {"GET": ReadyHandler(services)},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            request = Request(scope, receive)
            exchange = Exchange(send, next(iter(request.values(b"x-client-request-id")), None))
            await exchange.guard(partial(self._answer, request))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def aclose(self) -> None:
        """Wait for what is still being finished, then close what was opened."""
        await self.services.background.drain(DRAIN_SECONDS)
        await self.services.client.aclose()
        if not self._given:
            await self._store.aclose()

    async def _answer(self, request: Request, exchange: Exchange) -> None:
        self._hosts.check(request)
        if request.path not in OPEN:
            request.tenant = self._keys.tenant(request)
        await self._handler(request)(request, exchange)

    def _handler(self, request: Request) -> Handler:
        methods = self._routes.get(request.path)
        if methods is None and request.path.startswith(f"{MODELS}/"):
            methods = self._routes[MODELS]
        if methods is None:
            raise ApiError(
                404,
                f"There is nothing at {request.path!r:.200}; the API begins at /v1/chat/completions and /v1/models.",
                code="not_found",
            )
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(methods)
            raise ApiError(
                405, f"{request.path} takes {allowed} only.", code="method_not_allowed", headers={"Allow": allowed}
            )
        return handler

    async def _live(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        try:
            await self.aclose()
        except Exception:
            _logger.exception("the server did not close in an orderly way")
        await send({"type": "lifespan.shutdown.complete"})
