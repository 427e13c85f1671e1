"""The guide's test: needs nothing but this package. Sessions are in memory unless REDIS_ENABLED is true.

.venv/bin/python examples/basic.py
"""

import asyncio

from app.services.redis_session import RedisSessionManager


async def main() -> None:
    async with RedisSessionManager() as manager:
        await manager.store_message("test-001", "user", "Hello!")
        await manager.store_message("test-001", "assistant", "Hi there!")

        history = await manager.get_history("test-001")
        print(history)

        await manager.clear_session("test-001")


asyncio.run(main())
