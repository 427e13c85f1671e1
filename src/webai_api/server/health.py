"""Is the process alive, and can it do its work? For supervisors and load balancers, so no key is needed."""

from webai_api.errors import SessionError
from webai_api.server.errors import RETRY_AFTER, ApiError
from webai_api.server.http import Exchange, Request
from webai_api.server.services import Services

__all__ = ["ReadyHandler", "live"]

OK = b'{"status":"ok"}'


async def live(request: Request, exchange: Exchange) -> None:  # noqa: ARG001  # a handler's signature
    """Say that the process answers. Never asks the store: a store that is away is no reason to kill us."""
    await exchange.reply(200, OK)


class ReadyHandler:
    """Says whether the store answers."""

    def __init__(self, services: Services) -> None:
        self._store = services.views(None).probe

    async def __call__(self, request: Request, exchange: Exchange) -> None:  # noqa: ARG002  # a handler's signature
        """Answer one request: 200, or 503."""
        try:
            await self._store.read("ready", last=0)
        except SessionError as error:
            headers = {"Retry-After": RETRY_AFTER}
            raise ApiError(
                503, "The session store does not answer.", code="store_unavailable", headers=headers
            ) from error
        await exchange.reply(200, OK)
