"""POST /v1/chat/completions.

Without a session and without an Idempotency-Key the request goes through as it is. With one of them the answer is
collected while it passes, and the end of it (``[DONE]``, or the whole response) is sent only after the commit.

``X-Session-Version`` is the version after the turn; in a stream, whose headers go out first, the one before it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from webai_api.limits import Limits
from webai_api.messages import NOT_FOR_MODELS
from webai_api.server.errors import bad_request
from webai_api.server.http import Exchange, Request
from webai_api.server.idempotency import Once, key_of
from webai_api.server.relay import Relay, pass_through, send_again
from webai_api.server.services import Services
from webai_api.server.session import FIELDS, check_messages, header_value, session_id_of
from webai_api.server.turn import Turn
from webai_api.server.unseen import Unseen
from webai_api.server.upstream import Upstream
from webai_api.server.upstream.registry import check_model
from webai_api.server.wire import encode, parse_object
from webai_api.types import Message

__all__ = ["Call", "ChatHandler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that was checked."""

    body: bytes
    payload: dict[str, Any]
    messages: list[Message]
    session_id: str | None
    key: str | None

    @classmethod
    def read(cls, request: Request, body: bytes, limits: Limits) -> "Call":
        """Check all that can be checked without asking anybody.

        Raises:
            ApiError: 400.
        """
        payload = parse_object(body, limits.depth)
        check_model(payload.get("model"))
        if not isinstance(payload.get("stream"), bool | None):
            raise bad_request("stream must be true or false.", param="stream")
        messages = check_messages(payload, limits)
        session_id = session_id_of(request, payload, limits)
        if session_id is not None and (n := payload.get("n")) is not None and (n != 1 or isinstance(n, bool)):
            raise bad_request("n must be 1 in a conversation: only one answer can be remembered.", param="n")
        return cls(body=body, payload=payload, messages=messages, session_id=session_id, key=key_of(request))

    def outgoing(self, upstream: Upstream, messages: list[Message] | None) -> tuple[bytes, dict[str, Any]]:
        """Return what goes upstream, as JSON and as it is; *messages* instead of the request's, if given."""
        payload = self.payload
        left_out = upstream.refused.union(FIELDS)
        if messages is None:
            if left_out.isdisjoint(payload) and all(NOT_FOR_MODELS.isdisjoint(m) for m in payload["messages"]):
                return self.body, payload
            messages = [{k: v for k, v in m.items() if k not in NOT_FOR_MODELS} for m in payload["messages"]]
        payload = {key: value for key, value in payload.items() if key not in left_out}
        payload["messages"] = messages
        return encode(payload), payload


class ChatHandler:
    """Answers chat completions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        """Answer one request, for as long as its client is there or its answer is to be kept."""
        settings = self._services.settings
        body = await request.json_body(settings.max_body_bytes)
        call = Call.read(request, body, self._services.limits)
        upstream = self._services.registry.find(call.payload["model"])
        kept = call.session_id is not None or call.key is not None
        answer = partial(self._kept, call, upstream, request) if kept else partial(self._through, call, upstream)
        await exchange.attend(
            request, answer, self._services.background.spawn, keep=kept and settings.on_interrupt == "finish"
        )

    async def _through(self, call: Call, upstream: Upstream, exchange: Exchange) -> None:
        body, payload = call.outgoing(upstream, None)
        async with upstream.chat(body, payload) as reply:
            await pass_through(reply, exchange)

    async def _kept(self, call: Call, upstream: Upstream, request: Request, exchange: Exchange) -> None:
        if call.session_id is not None:
            exchange.extra.append((b"x-session-id", header_value(call.session_id)))
        if call.key is None:
            await self._turn(call, upstream, request, exchange, None)
            return
        once = Once(
            self._services.views(request.tenant),
            self._services.background,
            path=request.path,
            key=call.key,
            request=call.body + b"\0" + (call.session_id or "").encode(),
        )
        replay = await once.begin(ttl=self._services.settings.store.ttl)
        if replay is not None:
            await send_again(replay, exchange)
            return
        try:
            await self._turn(call, upstream, request, exchange, once)
        finally:
            once.abandon()

    async def _turn(
        self, call: Call, upstream: Upstream, request: Request, exchange: Exchange, once: Once | None
    ) -> None:
        background = self._services.background
        if call.session_id is None:
            await _ask(call, upstream, None, Relay(background, exchange, None, once, None))
            return
        unseen = self._unseen(call, request, call.session_id) if once is None else None
        turn = await Turn.begin(self._services, request.tenant, call.session_id)
        try:
            if unseen is not None and (replay := await unseen.find()) is not None:
                await send_again(replay, exchange)
                if not exchange.gone:
                    await unseen.seen()
                return
            await turn.read(call.messages)
            await _ask(call, upstream, turn.messages, Relay(background, exchange, turn, once, unseen))
            if unseen is not None and not exchange.gone:
                await unseen.seen()
        finally:
            turn.leave()

    def _unseen(self, call: Call, request: Request, session_id: str) -> Unseen | None:
        if self._services.settings.on_interrupt != "finish":
            return None
        views = self._services.views(request.tenant)
        return Unseen(views.unseen, views.sessions, session_id, call.body)


async def _ask(call: Call, upstream: Upstream, messages: list[Message] | None, relay: Relay) -> None:
    body, payload = call.outgoing(upstream, messages)
    async with upstream.chat(body, payload) as reply:
        await (relay.stream(reply) if reply.streams else relay.whole(reply))
