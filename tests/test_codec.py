import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webai_api import codec
from webai_api.errors import InvalidInput, InvalidType
from webai_api.limits import DEFAULT_LIMITS, Limits

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = TEXT | st.sampled_from(["id", "~id", "~~id", "~at", "~~at", "~", "~~", "~x", "~~x", "seq", "role", "content"])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**4000), 10**4000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=6)
MILLISECONDS = st.integers(0, 2**53)


def exactly(value: object) -> str:
    """Return a text that tells 1 from 1.0 and from True, which `==` does not."""
    return json.dumps(value, sort_keys=True)


def shuffled(value: Any) -> Any:
    """Return the same value with the keys of every object in reversed order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(inner) for inner in value] if isinstance(value, list) else value


def packed(item_id: str, payload: dict[str, Any], milliseconds: int) -> str:
    head, tail = codec.pack(item_id, payload, DEFAULT_LIMITS)
    return head + str(milliseconds) + tail


@given(OBJECTS)
def test_encoding_loses_nothing(payload: dict[str, Any]) -> None:
    raw = codec.encode(payload, DEFAULT_LIMITS)
    assert exactly(codec.decode(raw)) == exactly(payload)
    assert list(codec.decode(raw)) == list(payload)
    assert codec.encode_item(payload, DEFAULT_LIMITS) == codec.encode_metadata(payload, DEFAULT_LIMITS) == raw
    assert b"\n" not in raw


@given(TEXT, OBJECTS, MILLISECONDS)
def test_packing_loses_nothing(item_id: str, payload: dict[str, Any], milliseconds: int) -> None:
    string = packed(item_id, payload, milliseconds)
    for raw in (string, string.encode()):
        found_id, created_at, found = codec.unpack(raw)
        assert found_id == item_id
        assert created_at == milliseconds / 1000
        assert exactly(found) == exactly(payload)


@given(TEXT, OBJECTS, MILLISECONDS)
def test_a_packed_item_is_json_that_begins_with_its_id_and_its_time(
    item_id: str, payload: dict[str, Any], milliseconds: int
) -> None:
    stored = json.loads(packed(item_id, payload, milliseconds))
    assert list(stored)[:2] == ["id", "~at"]
    assert (stored["id"], stored["~at"]) == (item_id, milliseconds)
    for key, value in payload.items():
        if key != "id" and not key.startswith("~"):
            assert exactly(stored[key]) == exactly(value)  # other programs find it under its own name


@given(TEXT, TEXT, OBJECTS)
def test_no_item_begins_with_the_head_of_another(one: str, other: str, payload: dict[str, Any]) -> None:
    head = codec.pack_head(one)
    assert codec.pack(one, payload, DEFAULT_LIMITS).head == head
    assert packed(other, payload, 0).startswith(head) == (one == other)


@given(OBJECTS)
def test_what_other_code_wrote_is_taken_as_it_is(payload: dict[str, Any]) -> None:
    foreign = {key: value for key, value in payload.items() if key != "~at"}
    found_id, created_at, found = codec.unpack(json.dumps(foreign))
    assert (found_id, created_at) == (None, None)
    assert exactly(found) == exactly(foreign)


@pytest.mark.parametrize(
    "raw",
    [
        '{"role": "user", "content": "Hello!", "metadata": {}}',
        '{"id": "a", "role": "user"}',
        '{"id": 7, "~at": 5}',
        '{"id": "a", "~at": "5"}',
        '{"id": "a", "~at": 5.5}',
        '{"id": "a", "~at": 1' + "0" * 400 + "}",
        '{"~at": 5}',
        "{}",
        ' {"id" : null, "~at" : 1, "~~x" : 2}\n',
    ],
)
def test_a_string_without_our_id_and_time_is_other_codes(raw: str) -> None:
    assert codec.unpack(raw) == (None, None, json.loads(raw))


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        "null",
        "7",
        '"text"',
        "[]",
        "[{}]",
        "{'a': 1}",
        '{"a": 1}}',
        "\x00",
        "garbage",
        b"\xff\xfe",
        b'{"a":"\xff"}',
        '{"a":' * 100_000,
        "[" * 100_000,
        '{"n": ' + "1" * 5000 + "}",
    ],
    ids=lambda raw: f"{raw!s:.15}",
)
def test_damage_is_a_value_error_and_nothing_else(raw: str | bytes) -> None:
    for read in (codec.decode, codec.unpack):
        with pytest.raises(ValueError, match=r"."):
            read(raw)


@given(st.text() | st.binary())
def test_any_string_is_an_object_or_a_value_error(raw: str | bytes) -> None:
    with contextlib.suppress(ValueError):
        codec.unpack(raw)


@given(OBJECTS)
def test_a_fingerprint_has_64_bits_and_ignores_the_order_of_keys(payload: dict[str, Any]) -> None:
    assert 0 <= codec.fingerprint(payload) < 2**64
    assert codec.fingerprint(shuffled(payload)) == codec.fingerprint(payload)
    decoded = codec.decode(codec.encode(payload, DEFAULT_LIMITS))
    assert codec.fingerprint(decoded) == codec.fingerprint(payload)  # and survives storage


@given(OBJECTS, OBJECTS)
def test_fingerprints_of_different_content_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (codec.fingerprint(one) == codec.fingerprint(other)) == (exactly(one) == exactly(other))


@given(OBJECTS, KEYS)
def test_a_key_more_is_another_fingerprint(payload: dict[str, Any], key: str) -> None:
    more = {**payload, key: None}
    assert (codec.fingerprint(more) == codec.fingerprint(payload)) == (exactly(more) == exactly(payload))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({}, 137279666008780115),
        ({"role": "user", "content": "Hello!"}, 11271176634275155334),
        ({"content": "Hello!", "role": "user"}, 11271176634275155334),
        ({"b": [1, 1.0, True, None, -0.0, 1e22], "a": {"é": "\u0000\U0001f642"}}, 14085990457367701915),
        ({"n": 2**53 + 1, "x": "\u2028"}, 10081479187381968234),
    ],
)
def test_fingerprints_are_frozen(payload: dict[str, Any], expected: int) -> None:
    """They are stored: if one changes, an honest retry after an upgrade is refused as other content."""
    assert codec.fingerprint(payload) == expected


def test_the_packed_form_is_frozen() -> None:
    """It is stored, and read by other programs."""
    payload = {"role": "user", "content": "Hé\n", "id": 7, "~at": 1, "metadata": {}}
    assert packed("a", payload, 1700000000123) == (
        '{"id":"a","~at":1700000000123,"role":"user","content":"Hé\\n","~~at":1,"metadata":{},"~id":7}'
    )
    assert packed('"', {}, 5) == '{"id":"\\"","~at":5}'


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"x": math.nan}, InvalidInput),
        ({"x": math.inf}, InvalidInput),
        ({"x": ["\ud800"]}, InvalidInput),
        ({"\ud800": 1}, InvalidInput),
        ({"x": 10**5000}, InvalidInput),
        ({"x": {1}}, InvalidType),
        ({"x": (1,)}, InvalidType),
        ({"x": b""}, InvalidType),
        ({1: 1}, InvalidType),
        ({"x": {None: 1}}, InvalidType),
    ],
)
def test_what_json_cannot_hold_is_refused_in_both_forms(payload: dict[str, Any], error: type[InvalidInput]) -> None:
    for call in (lambda: codec.encode_item(payload, DEFAULT_LIMITS), lambda: codec.pack("a", payload, DEFAULT_LIMITS)):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert type(caught.value) is error


def test_sizes_are_bytes_of_utf_8() -> None:
    limits = Limits(item_bytes=20, metadata_bytes=10)
    assert len(codec.encode_item({"x": "é" * 6}, limits)) == 20
    codec.pack("an id that does not count", {"x": "é" * 6}, limits)
    for call in (codec.encode_item, lambda payload, limits: codec.pack("a", payload, limits)):
        with pytest.raises(InvalidInput, match="at most 20 bytes"):
            call({"x": "é" * 6 + "y"}, limits)
    codec.encode_metadata({"x": "ab"}, limits)
    with pytest.raises(InvalidInput, match="metadata must have at most 10 bytes"):
        codec.encode_metadata({"x": "abc"}, limits)


@pytest.mark.parametrize("metadata", [None, [], "{}", 7, [("k", 1)]])
def test_metadata_is_a_dict(metadata: Any) -> None:
    with pytest.raises(InvalidType, match="metadata must be a dict"):
        codec.encode_metadata(metadata, DEFAULT_LIMITS)
