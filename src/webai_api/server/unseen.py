"""Answers that were finished after their clients had gone (``WEBAI_ON_INTERRUPT=finish``).

Such a client sends its request again, most often without an Idempotency-Key. Asking the model once more would store
the turn twice; so the answer is kept until its client has all of it, and the same request gets it, as long as its turn
is the session's newest.
"""

import logging
from dataclasses import replace
from hashlib import sha256

from webai_api.errors import StoreError
from webai_api.protocol import SessionStore
from webai_api.server.record import KEEP_SECONDS, Replay, recorded, replay_of
from webai_api.types import Item

__all__ = ["Unseen"]

_logger = logging.getLogger("webai_api.server")


class Unseen:
    """What one request left behind, or finds, in its session."""

    def __init__(self, store: SessionStore, sessions: SessionStore, session_id: str, body: bytes) -> None:
        self._store = store
        self._sessions = sessions
        self._session_id = session_id
        self._request = sha256(body).hexdigest()

    async def keep(self, body: bytes, *, streamed: bool, answer_id: str) -> None:
        """Keep an answer that nobody has seen yet; *answer_id* is its item in the session, stored in a moment.

        A store that fails here costs a retry its answer, but not the turn.
        """
        said = Item(data={"kind": "request", "digest": self._request, "answer": answer_id})
        items = [said, *recorded(body, streamed=streamed, session_id=self._session_id, expected=0)]
        try:
            await self._store.delete(self._session_id)
            await self._store.append(self._session_id, items, ttl=KEEP_SECONDS)
        except StoreError as error:
            _logger.warning("an answer was not kept for a retry: %s", type(error).__name__)

    async def find(self) -> Replay | None:
        """Return the answer to this very request, if nobody has seen it and nothing came after it.

        Call it with the session's lease held: an answer is kept before its lease is given back.
        """
        found = [item.data for item in (await self._store.read(self._session_id)).items]
        replay = replay_of(found)
        if replay is None or found[0].get("digest") != self._request:
            return None
        newest = await self._sessions.read(self._session_id, last=1)
        if newest.session is None or not newest.items or newest.items[0].id != found[0].get("answer"):
            return None
        return replace(replay, version=newest.session.version)

    async def seen(self) -> None:
        """Forget the answer: its client has it, and the same words again are a new turn."""
        try:
            await self._store.delete(self._session_id)
        except StoreError as error:
            _logger.warning("an answer that was seen was not forgotten: %s", type(error).__name__)
