"""`SessionStore`: the five verbs every store has, and what each of them promises. Read this first.

Each verb but `sessions` is atomic. Whatever a caller can wish for beyond them (turns, leases, idempotency records,
streams that can be resumed) is built from them above the store, once. What only some stores can do is a protocol of
its own. `webai_api.testing.StoreConformance` checks every sentence here.

Every verb may raise `InvalidInput` for its arguments, before anything is stored, and these, which are the store's:

    StoreUnavailable      nothing happened; a retry may help
    OutcomeUnknown        (writes) it may have happened; repeat with the same ids
    HistoryLost           the store holds fewer items than it acknowledged; only `delete` still works
    CorruptData           the session's bookkeeping cannot be decoded; only `delete` still works
    AuthenticationFailed  the credentials or a permission were refused
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from webai_api.types import History, Item, Removal, Session

__all__ = ["DEDUPE_WINDOW", "SessionStore"]

DEDUPE_WINDOW = 64  # ids remembered per session, and never fewer than the last call had (promise P2)


@runtime_checkable
class SessionStore(Protocol):
    """Ordered logs of items under an id. One instance may be used by any number of tasks, and by several loops."""

    async def append(
        self,
        session_id: str,
        items: Sequence[Item],
        *,
        expected: int | None = None,
        after: int | None = None,
        epoch: int | None = None,
        ttl: float | None = None,
        keep: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> History:
        """Store *items* at the end of the session, all or nothing and adjacent, creating it where it is missing.

        No items: the session is created, or touched with *ttl*, *keep* and *metadata*.

        A call whose ids are all known, as the unit they were stored as and with the same content, is a repeat: it
        succeeds whatever *expected* says and changes nothing, except that a *ttl* may extend the expiry. The store
        remembers the ids of the last 64 items and of the last call, removed and trimmed ones too.

        Args:
            expected: the version the session must be at; 0: it must not exist.
            after: bring along what others stored with a higher seq: neither this call's own items nor what its
                *keep* trims. None: bring nothing.
            epoch: the epoch that *after* belongs to; if it is another by now, everything is brought along.
            ttl: seconds from now until the session expires, `math.inf` for never. None leaves the expiry as it is;
                a new session then has none.
            keep: only the newest *keep* items stay, in the same atomic step. The epoch stays.
            metadata: replaces the session's metadata as a whole; None leaves it, ``{}`` clears it.

        Returns:
            The session after the call, with the items *after* asked for.

        Raises:
            Conflict: the session is not at *expected*; carries what was missed.
            DuplicateId: only a part of the call is known.
            IdReused: a known id came with other content.
        """
        ...

    async def read(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        last: int | None = None,
        epoch: int | None = None,
    ) -> History:
        """Return items with ``after < seq < before``, oldest first, and the session at the same instant.

        A session that does not exist or has expired gives ``History(None, (), ())``. Entries that cannot be decoded
        are left out, their seqs are in `History.corrupt`, and a WARNING is logged.

        Args:
            last: only the newest *last* good ones of them; 0 gives the session without items.
            epoch: the epoch that *after* belongs to. If the session's is another by now, or *after* lies beyond its
                last seq, *after* is taken as 0: the reader gets everything.
        """
        ...

    async def remove(
        self, session_id: str, item_ids: Sequence[str], *, expected: int | None = None, op_id: str | None = None
    ) -> Removal:
        """Drop the items with these ids; ids that are not there are passed over.

        Of several items with one id (it was reused after the store had forgotten it), the newest goes.

        A removed id stays known: appending it again is a repeat, which stores nothing. When something was removed,
        version and epoch are new. Of two callers removing one item, exactly one gets its id back.

        Args:
            expected: the version the session must be at; 0: it must not exist.
            op_id: names this removal of these items, so that repeating it after `OutcomeUnknown` gives the same ids
                again. Remembered with the session, among its last 16 operations.

        Raises:
            Conflict: the session is not at *expected*.
        """
        ...

    async def delete(self, session_id: str, *, expected: int | None = None, op_id: str | None = None) -> bool:
        """Drop the session: items, metadata, ids, all. Return whether there was one.

        The next session of this id begins anew, with versions above the old ones. Works on a session that raises
        `HistoryLost` or `CorruptData` too.

        Args:
            expected: the version the session must be at; 0: it must not exist.
            op_id: as in `remove`; remembered for 60 seconds.

        Raises:
            Conflict: the session is not at *expected*.
        """
        ...

    def sessions(self, *, prefix: str = "", after: str | None = None) -> AsyncIterator[Session]:
        """Yield the sessions of this tenant and namespace whose id begins with *prefix*, newest activity first.

        Not atomic: a session is there when it is yielded; new ones appear within a second, their order is right to
        a minute. *after*, the id of the last session yielded, goes on from there.

        Raises:
            SessionNotFound: the session named by *after* is not there any more.
        """
        ...

    def with_options(
        self,
        *,
        tenant: str | None = None,
        namespace: str | None = None,
        durability: str | None = None,
        deadline: float | None = None,
    ) -> Self:
        """Return a view of the same store; what is None stays as it is in this view.

        Args:
            tenant: its sessions are in a key space of their own, which no id of another tenant can reach.
            namespace: likewise, for things that are stored as sessions but are none (leases, for example).
            durability: a level that this store offers; another one is refused.
            deadline: seconds after which a call ends with `StoreUnavailable` or `OutcomeUnknown`; 5 at first.
        """
        ...

    async def aclose(self) -> None:
        """Release what this store opened. Views share it. Closing twice is harmless; a later call raises StoreError."""
        ...
