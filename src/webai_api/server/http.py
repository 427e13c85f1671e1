"""One HTTP exchange over ASGI: the request as it is read, the response as it is sent."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from webai_api.errors import StoreError
from webai_api.server.errors import ApiError, api_error, bad_request
from webai_api.server.wire import encode, event

__all__ = ["JSON", "Exchange", "Headers", "Receive", "Request", "Scope", "Send"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]
Answer: TypeAlias = Callable[["Exchange"], Awaitable[None]]
Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]

_logger = logging.getLogger("webai_api.server")

BODY_SECONDS = 30.0  # for the whole body; four megabytes need 140 KB/s
DISCARD_BYTES, DISCARD_SECONDS = 32 << 20, 2.0  # read and dropped, so that a sender lives to see the 413
CANCEL_SECONDS = 5.0  # for work to end after its client has gone
JSON = (b"content-type", b"application/json")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_JSON = re.compile(r"application/json\s*(;\s*charset\s*=\s*\"?utf-?8\"?\s*)?;?\s*", re.IGNORECASE)


class Request:
    """What the client sent."""

    __slots__ = ("_headers", "client", "method", "path", "receive", "tenant")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.receive = receive
        self.tenant: str | None = None
        self.client: str = (scope.get("client") or ("unknown",))[0]
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of the header *name* (in lower case), one for each line that has it."""
        return [value for key, value in self._headers if key == name]

    def value(self, name: bytes) -> bytes | None:
        """Return the header's value, or None.

        Raises:
            ApiError: 400, there are several.
        """
        values = self.values(name)
        if len(values) > 1:
            raise bad_request(f"The header {name.decode().title()} may be given once only.")
        return values[0] if values else None

    async def json_body(self, limit: int) -> bytes:
        """Return the body of at most *limit* bytes, which must be declared to be JSON.

        Raises:
            ApiError: 408, 413 or 415.
        """
        kind = self.value(b"content-type") or b""
        if len(kind) > 200 or not _JSON.fullmatch(kind.decode("latin-1")):
            raise ApiError(415, "The body must be JSON in UTF-8: send Content-Type: application/json.")
        if (coding := self.value(b"content-encoding")) and coding.strip().lower() != b"identity":
            raise ApiError(415, "Compressed bodies are not accepted; send the body without Content-Encoding.")
        length = self.value(b"content-length")
        if length is not None and (not length.isdigit() or len(length) > 15 or int(length) > limit):
            await self._discard()
            raise _too_large(limit)
        return await self._read(limit)

    async def _read(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more and size <= limit:
                    message = await self._next()
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError as error:
            seconds = f"{BODY_SECONDS:.0f} seconds"
            raise ApiError(
                408, f"The body did not arrive within {seconds}.", headers={"Connection": "close"}
            ) from error
        if size <= limit:
            return b"".join(parts)
        if more:
            await self._discard()
        raise _too_large(limit)

    async def _discard(self) -> None:
        size, more = 0, True
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while more and size < DISCARD_BYTES:
                    message = await self._next()
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The client went away before its request was complete.")
        return message


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body may have at most {limit} bytes (WEBAI_MAX_BODY_BYTES).",
        code="request_too_large",
        headers={"Connection": "close"},
    )


class Exchange:
    """The response, sent once, whole or in pieces."""

    __slots__ = ("_began", "_send", "extra", "finished", "gone", "request_id", "started")

    def __init__(self, send: Send, request_id: bytes | None) -> None:
        given = (request_id or b"").decode("latin-1")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        self.extra: Headers = []
        self.started = False
        self.finished = False
        self.gone = False  # the client has, before it had all
        self._send = send
        self._began = time.perf_counter()

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the status and the headers."""
        self.started = True
        milliseconds = round((time.perf_counter() - self._began) * 1000)
        ours = [(b"x-request-id", self.request_id.encode()), (b"openai-processing-ms", b"%d" % milliseconds)]
        await self._deliver(
            {"type": "http.response.start", "status": status, "headers": [*headers, *ours, *self.extra]}
        )

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._deliver({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body."""
        self.finished = True
        await self._deliver({"type": "http.response.body", "body": data, "more_body": False})

    async def reply(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (JSON,)) -> None:
        """Send a whole response."""
        await self.start(status, [(b"content-length", b"%d" % len(body)), *headers])
        await self.end(body)

    async def fail(self, error: Exception) -> None:
        """Send *error*: as the response, or, when that has begun, as an event after which there is no ``[DONE]``."""
        told = api_error(error)
        if told.code == "internal_error":
            _logger.error("request %s failed", self.request_id, exc_info=error)
        elif told.status >= 500:
            cause = f": {error}" if isinstance(error, StoreError) else ""  # names sessions, never what they hold
            _logger.warning("request %s: %d %s%s", self.request_id, told.status, told.code, cause)
        if self.finished:
            return
        if self.started:
            await self.end(event(told.envelope()))
            return
        headers = [(name.lower().encode(), value.encode()) for name, value in told.headers.items()]
        await self.reply(told.status, encode(told.envelope()), [JSON, *headers])

    async def guard(self, answer: Answer) -> None:
        """Let *answer* send this response; what it raises becomes the response."""
        try:
            await answer(self)
        except Exception as error:  # noqa: BLE001  # the last resort
            await self.fail(error)

    async def attend(self, request: Request, answer: Answer, spawn: Spawn, *, keep: bool) -> None:
        """Let *answer* send this response while its client is there; with *keep* go on to its end in any case."""
        task = spawn(self.guard(answer))
        try:
            while not self.finished:  # a server reports a disconnect when the response is complete, too
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    self.gone = not self.finished
                    break
        except asyncio.CancelledError:  # the server's time to end in an orderly way is over
            if self.finished:
                raise
            task.cancel()
            await asyncio.wait({task}, timeout=1)
            await self.fail(ApiError(503, "The server was shut down before the answer was complete.", code="shut_down"))
            return  # not into the server, which would log it as its own failure
        if not self.finished and not keep:
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_SECONDS)

    async def _deliver(self, message: MutableMapping[str, Any]) -> None:
        with suppress(OSError):  # the client has gone; whoever watches `receive` learns of it there
            await self._send(message)
