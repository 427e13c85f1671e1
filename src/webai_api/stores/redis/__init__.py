"""`RedisStore`: Redis >= 6.2 or Valkey, no modules. One Lua script a verb; see `store.py` first."""

try:
    import redis as _redis  # noqa: F401  # only to say early what is missing
except ImportError as error:
    msg = "redis:// stores need: pip install 'webai-api[redis]'"
    raise ImportError(msg) from error

from webai_api.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
