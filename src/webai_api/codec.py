"""Item <-> bytes.

Two forms. *Plain* is the caller's JSON object and nothing else, for stores that keep ids and times in columns of
their own. *Packed* is for stores that keep one string an item, wire-compatible with the guide's Redis list:

    {"id":ITEM_ID,"~at":MILLISECONDS,"role":"user","content":"Hello!","metadata":{}}

Format 1. ``id`` and ``~at`` come first, so that a script can find an item by the beginning of its string. If the
caller's object has an ``id`` of its own, it is kept under ``~id``; the caller's keys that begin with
``~`` get one more. An object without ``~at`` was written by other code (the guide's) and is
taken as it is.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from webai_api.errors import InvalidInput, InvalidType
from webai_api.limits import Limits

__all__ = [
    "FORMAT",
    "Packed",
    "decode",
    "encode",
    "encode_item",
    "encode_metadata",
    "fingerprint",
    "pack",
    "pack_head",
    "unpack",
]

FORMAT = 1

_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False).encode


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_loads = json.JSONDecoder(parse_constant=_refuse).decode
# Frozen: a fingerprint must be the same in every later version, or an honest retry after an upgrade is refused.
_canonical = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True, check_circular=False
).encode


def encode(value: Mapping[str, Any], limits: Limits, name: str = "data", max_bytes: int | None = None) -> bytes:
    """Return *value* as compact JSON in UTF-8, its keys in the caller's order.

    Raises:
        InvalidInput: JSON cannot hold it losslessly, or it is larger than *max_bytes*.
    """
    limits.check_json(value, name)
    raw = _dumps(value).encode()
    if max_bytes is not None and len(raw) > max_bytes:
        raise InvalidInput(f"{name} must have at most {max_bytes} bytes as JSON, not {len(raw)}")
    return raw


def encode_item(data: Mapping[str, Any], limits: Limits) -> bytes:
    """Return the plain form of an item's data, within the limits."""
    return encode(data, limits, "item", limits.item_bytes)


def encode_metadata(metadata: Mapping[str, Any], limits: Limits) -> bytes:
    """Return a session's or a message's metadata as JSON, within the limits."""
    if not isinstance(metadata, dict):
        raise InvalidType(f"metadata must be a dict, not {type(metadata).__name__}")
    return encode(metadata, limits, "metadata", limits.metadata_bytes)


def decode(raw: bytes | str) -> dict[str, Any]:
    """Return the JSON object in *raw*.

    Raises:
        ValueError: it is not a JSON object, or holds what we refuse to store because nobody could pass it on: NaN, lone
            surrogates, thousands of digits, endless nesting.
    """
    text = raw if isinstance(raw, str) else raw.decode()
    try:
        value = _loads(text)
        if "\\ud" in text or "\\uD" in text:  # an escaped surrogate, paired or not
            _dumps(value).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  # damage of what is stored, not a caller's type error
    return value


def fingerprint(data: Mapping[str, Any]) -> int:
    """Return 64 bits that are the same for equal content whatever the order of its keys."""
    return int.from_bytes(blake2b(_canonical(data).encode(), digest_size=8).digest())


class Packed(NamedTuple):
    """The two parts of a packed item; the store's clock, in milliseconds, goes between them."""

    head: str
    tail: str


def pack(item_id: str, data: Mapping[str, Any], limits: Limits) -> Packed:
    """Return the packed form of an item, less its time."""
    given: Mapping[Any, Any] = data  # a key that is no str is passed on, for `encode` to refuse
    own = {("~" + k if isinstance(k, str) and k.startswith("~") else k): v for k, v in given.items() if k != "id"}
    if "id" in data:
        own["~id"] = data["id"]
    tail = encode(own, limits, "item", limits.item_bytes).decode()
    return Packed(pack_head(item_id), "}" if tail == "{}" else "," + tail[1:])


def pack_head(item_id: str) -> str:
    """Return the beginning that no other item's packed form has."""
    return f'{{"id":{_dumps(item_id)},"~at":'


def unpack(raw: bytes | str) -> tuple[str | None, float | None, dict[str, Any]]:
    """Return id, time in Unix seconds and data of a packed item; id and time are None if other code wrote it.

    Raises:
        ValueError: it is not a JSON object.
    """
    stored = decode(raw)
    at, item_id = stored.get("~at"), stored.get("id")
    if not isinstance(at, int) or not isinstance(item_id, str) or at.bit_length() > 63:
        return None, None, stored
    data = {}
    for key, value in stored.items():
        if key == "~id":
            data["id"] = value
        elif key.startswith("~~"):
            data[key[1:]] = value
        elif key not in ("id", "~at"):
            data[key] = value
    return item_id, at / 1000, data
