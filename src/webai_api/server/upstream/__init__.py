"""Where answers come from: `Upstream` is what they all look like, each kind has its module."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

__all__ = ["Reply", "Upstream"]


class Reply(Protocol):
    """A successful answer of an upstream, whole or as it comes."""

    headers: list[tuple[bytes, bytes]]
    """Those that the client may see, content-type included."""
    streams: bool
    """Whether it comes as server-sent events."""

    async def read(self, limit: int | None = None) -> bytes:
        """Return the whole body.

        Raises:
            ApiError: 502 or 504, it broke off; 502, it is longer than *limit* bytes.
        """
        ...

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes.

        Raises:
            ApiError: 502 or 504, it broke off.
        """
        ...


class Upstream(Protocol):
    """A model, or a service that has some."""

    name: str
    refused: frozenset[str]
    """Fields of a request that it would refuse, and that are left out for it."""

    def chat(self, body: bytes, payload: Mapping[str, Any]) -> AbstractAsyncContextManager[Reply]:
        """Ask for a chat completion; *body* is the JSON of *payload*. Leaving the context cancels what still runs.

        Raises:
            ApiError: what the client shall be told instead of an answer.
        """
        ...

    async def models(self) -> list[str]:
        """Return the models that it says it has; nothing if it does not answer."""
        ...
