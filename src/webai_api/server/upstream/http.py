"""Upstreams over HTTP: any service with OpenAI's API, forwarded to with aiohttp."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import aiohttp

from webai_api.server.errors import RETRY_AFTER, ApiError
from webai_api.server.upstream import Reply
from webai_api.server.wire import loads
from webai_api.settings import UpstreamSettings

__all__ = ["TIMEOUTS", "Client", "HttpUpstream", "Timeouts"]

PASSED_ON = ("openai-version", "retry-after", "retry-after-ms")
PASSED_PREFIX = "x-ratelimit-"
ERROR_BYTES = 64 << 10  # of an error's body; the rest is not read
WRITE_BYTES = 1 << 20  # a longer body goes out in pieces; aiohttp warns otherwise
MODELS_SECONDS = 2.0
MODELS_BYTES = 1 << 20
END_SECONDS = 0.1
_SECRET = re.compile(r"(sk-|AIza|Bearer )[^\s\"',]+|https?://[^\s\"',]+")
_logger = logging.getLogger("webai_api.server")


@dataclass(slots=True, kw_only=True)
class Timeouts:
    """How long an upstream may take, in seconds."""

    connect: float = 5.0
    first_byte: float = 120.0  # a cold local model may have to be loaded first
    idle: float = 60.0  # between two pieces of a stream
    total: float = 600.0  # what OpenAI's clients wait by default


TIMEOUTS = Timeouts()


class Client:
    """The connections to all upstreams, made at first use in the running loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The one session: no proxies or credentials from the environment, no cookies."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "webai-api", "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUTS.connect),
                trust_env=False,
            )
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class HttpUpstream:
    """One configured service."""

    def __init__(self, settings: UpstreamSettings, client: Client, *, refused: frozenset[str] = frozenset()) -> None:
        self.name = settings.name
        self.refused = refused
        self._settings = settings
        self._client = client
        self._headers = {"Content-Type": "application/json"}
        if settings.key is not None:
            self._headers["Authorization"] = f"Bearer {settings.key}"

    @asynccontextmanager
    async def chat(self, body: bytes, payload: Mapping[str, Any]) -> AsyncIterator[Reply]:  # noqa: ARG002  # the demo reads it
        until = asyncio.get_running_loop().time() + TIMEOUTS.total
        response = await self._post(f"{self._settings.url}/chat/completions", body)
        try:
            if response.status != 200:
                raise await self._refusal(response)
            yield _HttpReply(response, self.name, until)
            await _end(response)
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()  # hangs up, so that the upstream stops working on it

    async def models(self) -> list[str]:
        try:
            async with asyncio.timeout(MODELS_SECONDS):
                url = f"{self._settings.url}/models"
                async with self._client.session.get(url, headers=self._headers, allow_redirects=False) as response:
                    listed = loads(await response.content.read(MODELS_BYTES)) if response.status == 200 else {}
                    return [model["id"].removeprefix("models/") for model in listed["data"]]
        except (aiohttp.ClientError, OSError, TimeoutError):
            return []
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # it said something else
            return []

    async def _post(self, url: str, body: bytes) -> aiohttp.ClientResponse:
        data = body if len(body) <= WRITE_BYTES else BytesIO(body)
        try:
            async with asyncio.timeout(TIMEOUTS.first_byte):
                return await self._client.session.post(url, data=data, headers=self._headers, allow_redirects=False)
        except TimeoutError as error:
            raise _timeout(self.name) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            _logger.warning("upstream %s: %s", self.name, type(error).__name__)
            raise ApiError(502, f"The upstream {self.name} cannot be reached.", code="upstream_unreachable") from error

    async def _refusal(self, response: aiohttp.ClientResponse) -> ApiError:
        try:
            async with asyncio.timeout(TIMEOUTS.idle):
                raw = await response.content.read(ERROR_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError):
            raw = b""
        status = response.status
        _logger.warning("upstream %s answered %d", self.name, status)
        if status in (401, 403):
            return ApiError(
                502,
                f"The upstream {self.name}: provider credentials rejected; see {self._settings.key_variable}.",
                code="upstream_credentials_rejected",
            )
        if status in (408, 504):
            return _timeout(self.name)
        if status >= 500 or status < 400:
            return ApiError(502, f"The upstream {self.name} failed with status {status}.", code="upstream_error")
        return self._explained(status, _error_of(raw), response)

    def _explained(self, status: int, said: Mapping[str, Any], response: aiohttp.ClientResponse) -> ApiError:
        message = self._cleaned(said.get("message")) or f"The upstream {self.name} refused the request."
        code = said.get("code")
        headers = _visible(response)
        if status == 429:
            headers = {"Retry-After": RETRY_AFTER, **headers}
        return ApiError(
            status,
            message,
            code=(self._cleaned(str(code)) or "")[:100]
            if code is not None
            else "rate_limit_exceeded"
            if status == 429
            else None,
            param=self._cleaned(said.get("param")),
            kind=self._cleaned(said.get("type")),
            headers=headers,
        )

    def _cleaned(self, text: object) -> str | None:
        """Return what an upstream said without keys and addresses, at a bearable length."""
        if not isinstance(text, str):
            return None
        if self._settings.key:
            text = text.replace(self._settings.key, "***")
        return _SECRET.sub("***", text)[:2000]


class _HttpReply:
    def __init__(self, response: aiohttp.ClientResponse, name: str, until: float) -> None:
        self.headers = [(key.lower().encode(), value.encode()) for key, value in _visible(response).items()]
        kind = response.headers.get("content-type", "")
        if not (kind.isascii() and kind.isprintable()) or not kind:
            kind = "application/json"
        self.headers.append((b"content-type", kind.encode()))
        self.streams = kind.startswith("text/event-stream")
        self._content = response.content
        self._name = name
        self._until = until

    async def read(self, limit: int | None = None) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for piece in self._pieces(TIMEOUTS.first_byte):
            parts.append(piece)
            size += len(piece)
            if limit is not None and size > limit:
                raise ApiError(502, f"The upstream {self._name} sent too long an answer.", code="upstream_error")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self) -> AsyncGenerator[bytes, None]:
        return self._pieces(TIMEOUTS.idle)

    async def _pieces(self, idle: float) -> AsyncGenerator[bytes, None]:
        time = asyncio.get_running_loop().time
        try:
            while True:
                async with asyncio.timeout_at(min(time() + idle, self._until)):
                    piece = await self._content.readany()
                if not piece:
                    return
                yield piece
        except TimeoutError as error:
            raise _timeout(self._name) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(
                502, f"The upstream {self._name} broke off in the middle of its answer.", code="upstream_truncated"
            ) from error


async def _end(response: aiohttp.ClientResponse) -> None:
    """Wait a moment for the end that follows ``[DONE]``, so that the connection can be used again."""
    if response.content.at_eof():
        return
    try:
        async with asyncio.timeout(END_SECONDS):
            while await response.content.readany():
                pass
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass  # then it is closed


def _visible(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {
        key: value
        for key, value in response.headers.items()
        if (key.lower() in PASSED_ON or key.lower().startswith(PASSED_PREFIX))
        and value.isascii()
        and value.isprintable()
    }


def _error_of(raw: bytes) -> Mapping[str, Any]:
    """Return the error in a body: OpenAI's envelope, Gemini's, which is an array around it, or plain text."""
    try:
        said: Any = loads(raw)
    except (ValueError, RecursionError):
        return {}
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict):
        said = said.get("error", said)
    if isinstance(said, str):
        return {"message": said}
    return said if isinstance(said, dict) else {}


def _timeout(name: str) -> ApiError:
    return ApiError(504, f"The upstream {name} did not answer in time.", code="upstream_timeout")
