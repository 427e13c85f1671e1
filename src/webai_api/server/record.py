"""A stored answer, as the items that hold it and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webai_api.types import Item

__all__ = ["KEEP_SECONDS", "Replay", "recorded", "replay_of"]

KEEP_SECONDS = 86400.0
PART_CHARS = 1 << 19  # of a stored body; an item holds 4 MiB, and a character up to six bytes of JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A stored answer."""

    body: bytes
    streamed: bool
    session_id: str | None
    expected: int
    turn: tuple[Item, ...]
    version: int | None
    """After the turn; None if it is not known to be committed."""


def recorded(
    body: bytes, *, streamed: bool, session_id: str | None, expected: int, turn: Sequence[Item] = ()
) -> list[Item]:
    """Return the items that hold an answer and the turn that is to be committed with it.

    Each has an id of its own: two who write a record in the same place must not look like one that repeats.
    """
    text = body.decode(errors="replace")
    parts = [text[i : i + PART_CHARS] for i in range(0, len(text), PART_CHARS)]
    head = {"kind": "done", "streamed": streamed, "session": session_id, "expected": expected}
    items = [Item(data=head)]
    items += [Item(data={"kind": "body", "text": part}) for part in parts]
    items += [Item(data={"kind": "turn", "id": item.id, "data": item.data}) for item in turn]
    return items


def replay_of(found: Sequence[Mapping[str, Any]]) -> Replay | None:
    """Return the answer that the data of these items hold, if they hold one."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for data in found:
        by_kind.setdefault(data.get("kind", "claim"), []).append(data)
    if "done" not in by_kind:
        return None
    head = by_kind["done"][0]
    return Replay(
        body="".join(part["text"] for part in by_kind.get("body", ())).encode(),
        streamed=head["streamed"],
        session_id=head["session"],
        expected=head["expected"],
        turn=tuple(Item(id=item["id"], data=item["data"]) for item in by_kind.get("turn", ())),
        version=by_kind["committed"][-1]["version"] if "committed" in by_kind else None,
    )
