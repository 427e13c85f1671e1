"""`RedisSessionManager`: the published class, with its contract and without its losses.

It reads the REDIS_* variables, answers with booleans and lists, and keeps sessions in memory when Redis is off. What
changed against the original is listed in the documentation; entries of either are read by the other.
"""

import logging
from types import TracebackType
from typing import Any, Self

from webai_api.errors import StoreError
from webai_api.manager import SessionManager, environment_store
from webai_api.settings import StoreSettings
from webai_api.types import Content, Message

__all__ = ["RedisSessionManager"]

logger = logging.getLogger("webai_api")


class RedisSessionManager:
    """Conversation history in Redis if REDIS_ENABLED is true, else in this process's memory.

    A failing store gives ``False`` or ``[]``, is logged at ERROR, counted in `failures`, and kept in `last_error`; with
    ``strict=True`` it raises. A caller's mistake always raises `InvalidInput`, which is a ValueError.

    Attributes:
        enabled: whether sessions are in Redis.
        ttl: seconds a session lives after its last message.
        redis: a redis-py asyncio client of the same server, for the caller's own commands; None when disabled.
        last_error: what the store last failed with, or None.
    """

    def __init__(self, *, strict: bool = False) -> None:
        """Read REDIS_ENABLED, REDIS_HOST, REDIS_PORT, REDIS_DB, REDIS_USERNAME, REDIS_PASSWORD, REDIS_URL, REDIS_TTL.

        Raises:
            InvalidInput: a variable cannot be understood; names it.
        """
        settings = StoreSettings.from_env()
        self.enabled = settings.redis_url is not None
        self.strict = strict
        # A whole number as one, so that it can be handed to Redis' own EXPIRE.
        self.ttl = int(settings.redis_ttl) if settings.redis_ttl.is_integer() else settings.redis_ttl
        self.last_error: StoreError | None = None
        self.failures = 0
        self._store, self._owns_store = environment_store(settings, settings.redis_url)
        self._manager = SessionManager(self._store, ttl=self.ttl, limits=settings.limits)
        logger.info("Redis session manager %s", "initialized" if self.enabled else "disabled: sessions are in memory")

    @property
    def redis(self) -> Any:  # noqa: ANN401  # redis-py is an extra; its types are not always there
        """A redis-py asyncio client of the same server, for the caller's own commands; None when disabled."""
        return getattr(self._store, "client", None)

    async def store_message(
        self,
        session_id: str,
        role: str,
        content: Content,
        metadata: dict[str, Any] | None = None,
        *,
        message_id: str | None = None,
    ) -> bool:
        """Store one message and return True; False if the store failed. Repeating with a *message_id* is safe."""
        try:
            await self._manager.store_message(session_id, role, content, metadata, message_id=message_id)
        except StoreError as error:
            self._failed("storing a message", error)
            return False
        return True

    async def get_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """Return the messages (role, content, metadata, ...), oldest first, or the newest *limit*.

        ``[]`` also if the store failed: `last_error` tells the difference, or ``strict=True``.
        """
        try:
            return await self._manager.get_history(session_id, limit)
        except StoreError as error:
            self._failed("reading a history", error)
            return []

    async def clear_session(self, session_id: str) -> bool:
        """Forget the session; True also if there was none, False if the store failed."""
        try:
            await self._manager.clear_session(session_id)
        except StoreError as error:
            self._failed("clearing a session", error)
            return False
        return True

    async def aclose(self) -> None:
        """Close the connections to Redis. In-memory sessions stay: all managers of the process share them."""
        if self._owns_store:
            await self._store.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _failed(self, what: str, error: StoreError) -> None:
        self.last_error = error
        self.failures += 1
        if self.strict:
            raise error
        logger.error("%s failed: %s: %s", what, type(error).__name__, error)
