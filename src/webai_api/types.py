"""The values that cross the store's boundary: frozen, without I/O.

`Item` is what is stored, never read by a store; a *message* is an item whose data has a role and content.
Instants are Unix seconds, durations seconds.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["Content", "History", "Item", "Message", "Removal", "Session", "StoreOptions", "new_id"]

Content: TypeAlias = str | list[dict[str, Any]] | None
"""What a message says: text, a list of content parts, or (an assistant's that calls tools) nothing."""

Message: TypeAlias = dict[str, Any]
"""A chat message: ``role``, ``content``, and whatever else the chat format holds."""


def new_id() -> str:
    """Return a fresh item id: 64 random bits in 11 characters. It need be unique within one session only."""
    return secrets.token_urlsafe(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One entry of a session. The caller gives *data* and may give *id*; the store gives the rest.

    Attributes:
        data: the caller's JSON object, stored losslessly. What a reader does to its copy changes nothing.
        id: names the item for as long as the session lives. Appending the same id again stores nothing twice.
        seq: 1, 2, 3 ... within the session, never given twice; 0 before it is stored.
        created_at: the store's clock at the append; None for an entry another program wrote without one.
    """

    data: Mapping[str, Any]
    id: str = field(default_factory=new_id)
    seq: int = 0
    created_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a store knows of a session at one instant, without its items.

    Attributes:
        version: new with every change of content or metadata, never repeats, also across deletion and
            re-creation. Compare it; never compute with it.
        epoch: new when items were removed, replaced or rolled back; appends and trims leave it.
        first_seq: the lowest seq still held; above *last_seq* when the session is empty.
        last_seq: the highest seq ever given; 0 in a session that never held an item.
        count: entries held, damaged ones included.
        expires_at: None when the session does not expire.
    """

    id: str
    version: int
    epoch: int
    first_seq: int
    last_seq: int
    count: int
    created_at: float
    updated_at: float
    expires_at: float | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class History:
    """Items of a session, oldest first, and its state at the same instant.

    *session* is None when there is no such session. *corrupt* names the seqs of entries that could not be decoded;
    they are left out of *items*.
    """

    session: Session | None
    items: tuple[Item, ...] = ()
    corrupt: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Removal:
    """The ids that this call removed, oldest first, and the session after it. Falsy when nothing was removed."""

    ids: tuple[str, ...]
    session: Session | None

    def __bool__(self) -> bool:
        return bool(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How a view of a store addresses and waits: see `SessionStore.with_options`."""

    tenant: str | None = None
    namespace: str = "session"
    durability: str | None = None
    deadline: float = 5.0  # seconds; promise P9: every call ends
