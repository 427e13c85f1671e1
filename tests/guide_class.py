"""The original guide's class, its Redis commands re-created: what ours must get along with."""

import json
from typing import Any

from redis.asyncio import Redis


class GuideSessionManager:
    """Sends what the guide's code sends: RPUSH and EXPIRE, LRANGE, DEL."""

    def __init__(self, url: str, *, ttl: int = 3600) -> None:
        self.redis: Redis = Redis.from_url(url, decode_responses=True)
        self.ttl = ttl

    async def store_message(
        self, session_id: str, role: str, content: str, metadata: dict[str, Any] | None = None
    ) -> bool:
        key = f"session:{session_id}"
        message = {"role": role, "content": content, "metadata": metadata or {}}
        await self.redis.rpush(key, json.dumps(message))
        await self.redis.expire(key, self.ttl)
        return True

    async def get_history(self, session_id: str, limit: int | None = None) -> list[dict[str, Any]]:
        key = f"session:{session_id}"
        first = -limit if limit else 0
        messages = await self.redis.lrange(key, first, -1)
        return [json.loads(message) for message in messages]

    async def clear_session(self, session_id: str) -> bool:
        await self.redis.delete(f"session:{session_id}")
        return True

    async def aclose(self) -> None:
        await self.redis.aclose()
