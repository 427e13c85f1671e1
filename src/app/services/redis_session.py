"""The guide's import path. The class is in `webai_api.redis_session`."""

from webai_api.redis_session import RedisSessionManager

__all__ = ["RedisSessionManager"]
