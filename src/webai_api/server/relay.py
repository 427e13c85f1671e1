"""An answer on its way from the upstream to the client, and to where it is kept."""

from contextlib import aclosing
from typing import Any

from webai_api.errors import Conflict
from webai_api.server.answer import MAX_ANSWER_BYTES, Answer, answer_of
from webai_api.server.background import Background
from webai_api.server.errors import ApiError
from webai_api.server.http import JSON, Exchange, Headers
from webai_api.server.idempotency import Once
from webai_api.server.record import Replay
from webai_api.server.turn import Turn
from webai_api.server.unseen import Unseen
from webai_api.server.upstream import Reply
from webai_api.server.wire import DONE, FrameSplitter, event_data, loads, whole_events
from webai_api.types import Message

__all__ = ["Relay", "pass_through", "send_again"]

STREAM: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
MAX_PASSED_BYTES = 64 << 20  # of an answer in one piece: the most that one request may take of the memory
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


async def pass_through(reply: Reply, exchange: Exchange) -> None:
    """Send the answer as it comes, byte for byte."""
    if not reply.streams:
        await exchange.reply(200, await reply.read(MAX_PASSED_BYTES), reply.headers)
        return
    await exchange.start(200, [*reply.headers, *STREAM])
    async with aclosing(whole_events(reply.pieces())) as pieces:
        async for piece in pieces:
            await exchange.write(piece)
    await exchange.end()


async def send_again(replay: Replay, exchange: Exchange) -> None:
    """Send a stored answer."""
    exchange.extra.append((b"idempotent-replayed", b"true"))
    if replay.version is not None:
        exchange.extra.append((b"x-session-version", b"%d" % replay.version))
    if not replay.streamed:
        await exchange.reply(200, replay.body, [JSON])
        return
    await exchange.start(200, [EVENTS, *STREAM])
    for frame in FrameSplitter().feed(replay.body):
        await exchange.write(frame)
    await exchange.end()


class Relay:
    """Sends an answer and keeps it: as a turn of a session, for a repeated request, or both.

    The end of the answer, by which the client knows that it has all, is sent after the commit.
    """

    def __init__(
        self,
        background: Background,
        exchange: Exchange,
        turn: Turn | None,
        once: Once | None,
        unseen: Unseen | None,
    ) -> None:
        self._unseen = unseen
        self._background = background
        self._exchange = exchange
        self._turn = turn
        self._once = once
        self._sent: list[bytes] = []
        self._size = 0

    async def whole(self, reply: Reply) -> None:
        """Send the answer in one piece."""
        body = await reply.read(MAX_ANSWER_BYTES)
        message = None
        if self._turn is not None:
            message = answer_of(_json(body))
        version = await self._keep(message, body, streamed=False)
        if version is not None:
            self._exchange.extra.append((b"x-session-version", b"%d" % version))
        await self._exchange.reply(200, body, reply.headers)

    async def stream(self, reply: Reply) -> None:
        """Send the answer's events as they come, each in a write of its own."""
        if self._turn is not None:
            self._exchange.extra.append((b"x-session-version", b"%d" % self._turn.version))
        await self._exchange.start(200, [*reply.headers, *STREAM])
        answer, splitter = Answer(), FrameSplitter()
        async with aclosing(reply.pieces()) as pieces:
            async for piece in pieces:
                for frame in splitter.feed(piece):
                    await self._pass_on(frame, answer)
                if answer.done:
                    break
        for frame in splitter.end():
            await self._pass_on(frame, answer)
        if not answer.complete:
            message = "The upstream's answer broke off before its end; nothing was stored."
            raise ApiError(502, message, code="upstream_truncated")
        await self._keep(answer.message() if self._turn else None, b"".join([*self._sent, DONE]), streamed=True)
        await self._exchange.end(DONE)

    async def _pass_on(self, frame: bytes, answer: Answer) -> None:
        data = event_data(frame)
        if data == b"[DONE]" or answer.done:
            answer.done = True
            return
        if data:
            chunk = _json(data)
            if not isinstance(chunk, dict):
                raise ApiError(502, "The upstream sent an event that is no chunk.", code="upstream_error")
            answer.add(chunk)
        self._size += len(frame)
        if self._size > MAX_ANSWER_BYTES:
            raise ApiError(502, "The upstream's answer is too long to be kept.", code="upstream_error")
        if self._once is not None or self._unseen is not None:
            self._sent.append(frame)
        await self._exchange.write(frame)

    async def _keep(self, message: Message | None, body: bytes, *, streamed: bool) -> int | None:
        """Commit, and return the session's version. Once begun, that is finished, whoever goes away meanwhile."""
        return await self._background.finish(self._commit(message, body, streamed=streamed))

    async def _commit(self, message: Message | None, body: bytes, *, streamed: bool) -> int | None:
        turn, once = self._turn, self._once
        items = turn.items(message) if turn is not None and message is not None else []
        if once is not None:
            await once.done(body, streamed=streamed, turn=turn, items=items)
        if turn is None:
            return None
        if self._unseen is not None:  # the client may go before it has all, and will send its request again
            await self._unseen.keep(body, streamed=streamed, answer_id=items[-1].id)
        try:
            version = await turn.commit(items)
        except Conflict:
            if once is not None:
                await once.forget()
            raise
        if once is not None:
            once.committed(version, once.version)
        return version


def _json(data: bytes) -> Any:  # noqa: ANN401  # whatever the upstream sent
    try:
        return loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(502, "The upstream's answer is not JSON.", code="upstream_error") from error
