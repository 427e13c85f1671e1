"""Conversation sessions for LLM agents that survive restarts, failovers and retries."""

from webai_api.protocol import SessionStore
from webai_api.types import History, Item, Removal, Session

__all__ = ["History", "Item", "Removal", "Session", "SessionStore"]
