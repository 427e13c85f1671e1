"""Idempotency-Key: a request that is sent again is answered again, not run again.

Per key there is a session in a namespace of its own. Its first item is a lease, renewed while the request runs, so
that a crash frees the key soon. When the answer is there, the answer and the turn that is to be committed are
written behind it, *before* the turn: whoever repeats the request completes the turn, which changes nothing where it
was completed, and sends the stored answer.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256

from webai_api.errors import Conflict, DuplicateId
from webai_api.server.background import Background
from webai_api.server.errors import RETRY_AFTER, ApiError, bad_request, conversation_locked
from webai_api.server.http import Request
from webai_api.server.lease import Lease
from webai_api.server.record import KEEP_SECONDS, Replay, recorded, replay_of
from webai_api.server.services import Views
from webai_api.server.turn import Turn, commit
from webai_api.types import Item

__all__ = ["Once", "key_of"]

KEY_BYTES = 255


def key_of(request: Request) -> str | None:
    """Return the request's Idempotency-Key.

    Raises:
        ApiError: 400, it is malformed.
    """
    value = request.value(b"idempotency-key")
    if value is None:
        return None
    key = value.decode("latin-1")
    if not key.strip() or len(key) > KEY_BYTES or not key.isascii() or not key.isprintable():
        raise bad_request(
            f"Idempotency-Key must have 1 to {KEY_BYTES} printable ASCII characters.", param="Idempotency-Key"
        )
    return key


class Once:
    """One request with an Idempotency-Key."""

    def __init__(self, views: Views, background: Background, *, path: str, key: str, request: bytes) -> None:
        self._views = views
        self._background = background
        self._name = sha256(f"{path}\0{key}".encode()).hexdigest()
        self._request = sha256(request).hexdigest()
        self._lease = Lease(views.once, self._name, background, {"request": self._request})
        self.version = 0

    async def begin(self, *, ttl: float) -> Replay | None:
        """Claim the key; or return the answer to be sent again, its turn committed.

        Raises:
            ApiError: 409, the first request still runs; 422, the key belongs to another request.
        """
        try:
            await self._lease.take()
        except Conflict as conflict:
            return await self._replay(conflict, ttl)
        except BaseException:
            self.abandon()
            raise
        return None

    async def done(self, body: bytes, *, streamed: bool, turn: Turn | None, items: Sequence[Item] = ()) -> None:
        """Keep the answer and the turn that is about to be committed.

        Raises:
            ApiError: 409, the claim was lost; the turn must not be committed.
        """
        await self._lease.hold_still()
        written = recorded(
            body,
            streamed=streamed,
            session_id=turn.session_id if turn else None,
            expected=turn.version if turn else 0,
            turn=items,
        )
        try:
            self.version = await commit(
                self._views.once, self._name, written, expected=self._lease.version, ttl=KEEP_SECONDS
            )
        except Conflict as error:
            raise _in_flight("The claim on this Idempotency-Key expired, and another request took it over.") from error

    def committed(self, version: int, record_version: int) -> None:
        """Note that the turn is stored, without being waited for: it only saves a replay from looking."""
        item = Item(data={"kind": "committed", "version": version})
        self._background.spawn(self._append(item, record_version))

    def abandon(self) -> None:
        """Free the key, unless there is an answer to keep: the request may be repeated and runs anew."""
        if not self.version:
            self._background.spawn(self._lease.release())

    async def forget(self) -> None:
        """Drop the answer that was kept: its turn could not be committed."""
        self._lease.version = self.version
        await self._lease.release()

    async def _append(self, item: Item, expected: int) -> None:
        with suppress(Conflict):  # the record was dropped meanwhile: nothing of it may come back
            await self._views.once.append(self._name, [item], expected=expected, ttl=KEEP_SECONDS)

    async def _replay(self, conflict: Conflict, ttl: float) -> Replay:
        found = [item.data for item in conflict.missed.items]
        if found and found[0].get("request") not in (None, self._request):
            raise ApiError(
                422,
                "The Idempotency-Key was used for another request; a new request needs a new key.",
                code="idempotency_key_reused",
            )
        replay = replay_of(found)
        if replay is None:
            raise _in_flight("The request with this Idempotency-Key is still running.")
        if replay.session_id is None or replay.version is not None:
            return replay
        return replace(replay, version=await self._complete(replay, replay.session_id, ttl, conflict.actual))

    async def _complete(self, replay: Replay, session_id: str, ttl: float, record_version: int) -> int:
        """Commit the stored turn, if whoever ran the request could not; return the session's version."""
        try:
            version = await commit(self._views.sessions, session_id, replay.turn, expected=replay.expected, ttl=ttl)
        except (Conflict, DuplicateId) as error:
            history = await self._views.sessions.read(session_id)
            there = {item.id for item in history.items}
            if history.session is None or not (isinstance(error, DuplicateId) or replay.turn[0].id in there):
                await self._views.once.delete(self._name, expected=record_version)
                raise conversation_locked(
                    "The conversation went on before this turn was stored; nothing of it was. Repeat the request."
                ) from error
            version = history.session.version
        self.committed(version, record_version)
        return version


def _in_flight(message: str) -> ApiError:
    return ApiError(409, message, code="idempotency_in_flight", headers={"Retry-After": RETRY_AFTER})
