"""Every error this package raises, in one tree.

    SessionError
      InvalidInput (ValueError)      the caller is wrong; never retry
        InvalidType (TypeError)      the same, and the wrong type
      SessionNotFound (LookupError)  the caller asked for a session that is not there
      Conflict                       someone wrote first; carries what was missed; decide, then write again
      DuplicateId                    part of the call is stored already; nothing of it was stored now
      IdReused                       a known id came with other content; nothing was stored
      StoreError                     the store failed; the cause is attached
        StoreUnavailable             the store did not answer; nothing happened; a retry may help
        OutcomeUnknown               it may have happened; repeat it with the same ids
        NotDurable                   stored, but not as durably as was asked for
        HistoryLost                  the store holds less than it acknowledged; `delete` starts afresh
        CorruptData                  bookkeeping that cannot be decoded
        AuthenticationFailed         the store refused the credentials or the permission; never retry

Caller errors always raise. Only the children of StoreError become ``False`` or ``[]`` in `RedisSessionManager`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from webai_api.types import History

__all__ = [
    "AuthenticationFailed",
    "Conflict",
    "CorruptData",
    "DuplicateId",
    "HistoryLost",
    "IdReused",
    "InvalidInput",
    "InvalidType",
    "NotDurable",
    "OutcomeUnknown",
    "SessionError",
    "SessionNotFound",
    "StoreError",
    "StoreUnavailable",
]


class SessionError(Exception):
    """The root of the tree."""


class InvalidInput(SessionError, ValueError):
    """The caller gave a value that can never be accepted. Nothing was stored."""


class InvalidType(InvalidInput, TypeError):
    """The caller gave a value of the wrong type. Nothing was stored."""


class SessionNotFound(SessionError, LookupError):
    """There is no such session: it never was, was deleted, or has expired."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} does not exist")
        self.session_id = session_id


class Conflict(SessionError):
    """The session is not at the version the caller expected. Nothing was changed.

    *missed* is what the call's ``after`` and ``epoch`` would have brought along, of the same instant
    as *actual*, so that the caller can decide without another round trip.
    """

    def __init__(self, session_id: str, *, expected: int, actual: int, missed: "History") -> None:
        super().__init__(f"session {session_id!r} is at version {actual}, not {expected}")
        self.session_id = session_id
        self.expected = expected
        self.actual = actual
        self.missed = missed


class _KnownIds(SessionError):
    _says = ""

    def __init__(self, session_id: str, item_ids: Sequence[str]) -> None:
        shown = ", ".join(repr(i) for i in item_ids[:3]) + (" ..." if len(item_ids) > 3 else "")
        super().__init__(f"session {session_id!r}: {self._says}: {shown}")
        self.session_id = session_id
        self.item_ids = tuple(item_ids)


class DuplicateId(_KnownIds):
    """Some items of the call are known and some are not, or they were not stored as one unit. Nothing was stored."""

    _says = "only part of this call is stored already"


class IdReused(_KnownIds):
    """An id of the call is known with other content. Nothing was stored; another message needs another id."""

    _says = "id already used for other content"


class StoreError(SessionError):
    """The store failed. Whether a retry makes sense, the subclass says."""


class StoreUnavailable(StoreError):
    """The store did not answer in time, or refused for now. Nothing was changed; a retry may help."""


class OutcomeUnknown(StoreError):
    """The call was sent and its answer never came. Repeating it with the same ids is safe."""


class NotDurable(StoreError):
    """The change is stored, but not confirmed at the durability asked for. Repeating with the same ids is safe."""


class HistoryLost(StoreError):
    """The store holds fewer items than it acknowledged (eviction, a foreign DEL). `delete` clears the state."""

    def __init__(self, session_id: str, *, promised: int, found: int) -> None:
        super().__init__(
            f"session {session_id!r} should hold {promised} items and holds {found}: the store lost them "
            "(eviction, or another program); clear the session to start afresh"
        )
        self.session_id = session_id
        self.promised = promised
        self.found = found


class CorruptData(StoreError):
    """The session's bookkeeping cannot be decoded."""


class AuthenticationFailed(StoreError):
    """The store refused the credentials, or a command the account may not run."""
