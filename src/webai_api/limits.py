"""What input is accepted, and the sentence a caller gets otherwise.

Everything is refused at the edge, before anything is stored; values are never coerced and never echoed whole.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from webai_api.errors import InvalidInput, InvalidType
from webai_api.types import Item

__all__ = ["DEFAULT_LIMITS", "TTL_MAX", "Limits", "check_ttl", "check_window", "check_write"]

TTL_MAX = 10 * 365 * 86400.0  # seconds; longer is almost always milliseconds by mistake; "no expiry" is math.inf
INT_MAX_BITS = 14_000  # below Python's own limit of 4300 digits for reading an integer back


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large things may be, in bytes of UTF-8 unless said otherwise."""

    id_bytes: int = 512
    role_bytes: int = 64
    content_bytes: int = 1 << 20
    metadata_bytes: int = 64 << 10
    item_bytes: int = 4 << 20
    depth: int = 64  # levels of nesting
    items_per_call: int = 10_000
    history: int = 1_000_000  # items; a larger `limit` means this many

    def check_id(self, value: object, name: str = "session_id") -> str:
        """Return *value* if it can name a session or an item: non-blank text without control characters.

        Ids are compared byte for byte: no normalisation, no case folding.
        """
        if not isinstance(value, str):
            raise InvalidType(f"{name} must be a str, not {type(value).__name__}")
        if value.isascii() and value.isprintable() and not value.isspace() and 0 < len(value) <= self.id_bytes:
            return value
        if not value or value.isspace():
            raise InvalidInput(f"{name} must not be empty or blank")
        if len(_utf8(value, name)) > self.id_bytes:
            raise InvalidInput(f"{name} must have at most {self.id_bytes} bytes of UTF-8")
        if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in value):
            raise InvalidInput(f"{name} must not contain control characters or line breaks")
        return value

    def check_prefix(self, value: object) -> str:
        """Return *value* if an id could be compared with it; one that no id begins with is no error."""
        if not isinstance(value, str):
            raise InvalidType(f"prefix must be a str, not {type(value).__name__}")
        _utf8(value, "prefix")
        return value

    def check_items(self, items: Sequence[Item]) -> None:
        """Refuse a call whose items are too many, of the wrong type, or share an id."""
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Sequence):
            raise InvalidType(f"items must be a sequence of Item, not {type(items).__name__}")
        if len(items) > self.items_per_call:
            raise InvalidInput(f"one call may append at most {self.items_per_call} items")
        for item in items:
            if not isinstance(item, Item):
                raise InvalidType(f"items must be Item, not {type(item).__name__}")
            self.check_id(item.id, "item id")
            if not isinstance(item.data, dict):
                raise InvalidType(f"the data of an item must be a dict, not {type(item.data).__name__}")
        if len({item.id for item in items}) != len(items):
            raise InvalidInput("two items of one call have the same id")

    def check_ids(self, item_ids: Sequence[str], op_id: str | None) -> Sequence[str]:
        """Return *item_ids* if each can be an item's id, and *op_id* an operation's."""
        if isinstance(item_ids, str | bytes) or not isinstance(item_ids, Sequence):
            raise InvalidType(f"item_ids must be a sequence of str, not {type(item_ids).__name__}")
        if len(item_ids) > self.items_per_call:
            raise InvalidInput(f"one call may remove at most {self.items_per_call} items")
        for item_id in item_ids:
            self.check_id(item_id, "item id")
        if op_id is not None:
            self.check_id(op_id, "op_id")
        return item_ids

    def check_json(self, value: object, name: str) -> None:
        """Refuse what JSON cannot hold losslessly: NaN, non-text keys, sets, lone surrogates, deep nesting."""
        _check_json(value, name, self.depth)


DEFAULT_LIMITS = Limits()


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{name} contains a lone surrogate, which is not valid text") from error


def _check_json(value: object, name: str, depth: int) -> None:
    if isinstance(value, str):
        if not value.isascii():
            _utf8(value, name)
    elif value is None or isinstance(value, bool):
        pass
    elif isinstance(value, int):
        if value.bit_length() > INT_MAX_BITS:
            raise InvalidInput(f"{name} contains an integer of more than 4,000 digits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"{name} contains NaN or an infinity, which JSON cannot hold")
    elif isinstance(value, dict):
        _check_depth(name, depth)
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidType(f"{name} contains a key that is not a str but {type(key).__name__}")
            if not key.isascii():
                _utf8(key, name)
            _check_json(inner, name, depth - 1)
    elif isinstance(value, list):
        _check_depth(name, depth)
        for inner in value:
            _check_json(inner, name, depth - 1)
    else:
        raise InvalidType(f"{name} contains a {type(value).__name__}, which JSON cannot hold")


def _check_depth(name: str, depth: int) -> None:
    if depth <= 0:
        raise InvalidInput(f"{name} is nested too deeply")


def _check_int(value: object, name: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{name} must be an int, not {type(value).__name__}")
    if value < minimum:
        raise InvalidInput(f"{name} must be at least {minimum}")
    return value


def check_window(after: int, before: int | None, last: int | None, epoch: int | None) -> None:
    """Check the arguments of a read."""
    _check_int(after, "after", 0)
    for value, name in ((before, "before"), (last, "last"), (epoch, "epoch")):
        if value is not None:
            _check_int(value, name, 0)


def check_write(
    expected: int | None = None,
    after: int | None = None,
    epoch: int | None = None,
    ttl: float | None = None,
    keep: int | None = None,
) -> None:
    """Check the options of an append, a removal or a deletion."""
    for value, name in ((expected, "expected"), (after, "after"), (epoch, "epoch")):
        if value is not None:
            _check_int(value, name, 0)
    if keep is not None:
        _check_int(keep, "keep", 1)
    if ttl is not None:
        check_ttl(ttl)


def check_ttl(ttl: object, name: str = "ttl") -> float:
    """Return *ttl* in seconds if it is above zero and at most ten years, or `math.inf` for no expiry."""
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise InvalidType(f"{name} must be a number of seconds, not {type(ttl).__name__}")
    if not (0 < ttl <= TTL_MAX or ttl == math.inf):
        raise InvalidInput(
            f"{name} must be above 0 and at most {TTL_MAX:.0f} seconds (ten years), or math.inf for none"
        )
    return ttl
