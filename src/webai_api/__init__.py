"""Conversation sessions for LLM agents that survive restarts and retries.

>>> manager = SessionManager.from_url("memory://")
>>> # await manager.store_message("user-123", "user", "Hello!")
>>> # await manager.get_history("user-123")

Start with `SessionManager` (or `SyncSessionManager`); `RedisSessionManager` is the original guide's class. Stores
speak the five verbs of `webai_api.protocol.SessionStore`. This package logs to ``logging.getLogger("webai_api")`` and
installs no handlers.
"""

from webai_api.errors import (
    AuthenticationFailed,
    Conflict,
    CorruptData,
    DuplicateId,
    HistoryLost,
    IdReused,
    InvalidInput,
    InvalidType,
    NotDurable,
    OutcomeUnknown,
    SessionError,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
)
from webai_api.limits import Limits
from webai_api.manager import SessionManager
from webai_api.messages import chat_messages
from webai_api.protocol import SessionStore
from webai_api.redis_session import RedisSessionManager
from webai_api.sync import SyncSessionManager
from webai_api.types import History, Item, Message, Removal, Session
from webai_api.urls import open_store

__version__ = "0.1.0"

__all__ = [
    "AuthenticationFailed",
    "Conflict",
    "CorruptData",
    "DuplicateId",
    "History",
    "HistoryLost",
    "IdReused",
    "InvalidInput",
    "InvalidType",
    "Item",
    "Limits",
    "Message",
    "NotDurable",
    "OutcomeUnknown",
    "RedisSessionManager",
    "Removal",
    "Session",
    "SessionError",
    "SessionManager",
    "SessionNotFound",
    "SessionStore",
    "StoreError",
    "StoreUnavailable",
    "SyncSessionManager",
    "chat_messages",
    "open_store",
]
