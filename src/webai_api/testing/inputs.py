# ruff: noqa: ANN401  # values of any type are the point
import datetime
import decimal
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from webai_api.errors import InvalidInput, InvalidType
from webai_api.limits import TTL_MAX
from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import listed, numbered, said
from webai_api.types import History, Item

__all__ = ["Inputs"]

LONG = 513  # bytes; an id has at most 512
BAD_TEXT = {
    "empty": "",
    "blank": "   ",
    "no_break_space": "\u00a0",
    "tab": "\t",
    "NUL": "a\0b",
    "newline": "a\nb",
    "trailing_newline": "a\n",
    "carriage_return": "a\rb",
    "escape": "\x1b[31m",
    "delete": "a\x7f",
    "C1_control": "a\x85b",
    "line_separator": "a\u2028b",
    "lone_surrogate": "a\ud800b",
    "too_long": "x" * LONG,
    "too_long_in_bytes": "é" * 257,
    "very_long": "x" * 1_000_000,
}
BAD_TYPES: dict[str, Any] = {
    "None": None,
    "int": 7,
    "bytes": b"abc",
    "bool": True,
    "list": ["a"],
    "float": 1.5,
}


def _nested(levels: int) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    for _ in range(levels - 1):
        payload = {"deeper": payload}
    return payload


UNFIT: dict[str, Any] = {
    "nan": {"x": math.nan},
    "infinity": {"x": [math.inf]},
    "minus_infinity": {"x": {"y": -math.inf}},
    "lone_surrogate": {"x": "\ud800"},
    "lone_surrogate_in_a_key": {"\udfff": 1},
    "too_deep": _nested(65),
    "much_too_deep": _nested(5000),
    "too_deep_list": {"x": eval("[" * 64 + "]" * 64)},  # noqa: S307  # our own text
    "too_many_digits": {"x": 10**5000},
}
UNFIT_TYPES: dict[str, Any] = {
    "set": {"x": {1}},
    "datetime": {"x": datetime.datetime.now(tz=datetime.UTC)},
    "decimal": {"x": decimal.Decimal(1)},
    "object": {"x": object()},
    "bytes": {"x": b"abc"},
    "tuple": {"x": (1, 2)},
    "int_key": {1: "x"},
    "None_key": {"x": {None: 1}},
    "none": None,
    "list": [{"x": 1}],
    "pairs": (("x", 1),),
    "str": "text",
}


def _cases(*tables: dict[str, Any]) -> Any:
    return [
        pytest.param(value, error, id=name)
        for table, error in zip(tables, (InvalidInput, InvalidType), strict=True)
        for name, value in table.items()
    ]


class Inputs:
    """What every verb refuses, before anything is stored, with a sentence that does not echo the value."""

    @pytest.mark.parametrize(("session_id", "error"), _cases(BAD_TEXT, BAD_TYPES))
    async def test_what_cannot_be_a_session_id_is_refused(
        self, store: SessionStore, session_id: Any, error: type[InvalidInput]
    ) -> None:
        await _refused(store, error, lambda: store.append(session_id, [said("x")]))
        await _refused(store, error, lambda: store.append(session_id, []))
        await _refused(store, error, lambda: store.read(session_id))
        await _refused(store, error, lambda: store.remove(session_id, ["a"]))
        await _refused(store, error, lambda: store.delete(session_id))
        if session_id is not None:
            await _refused(store, error, lambda: listed(store.sessions(after=session_id)))

    @pytest.mark.parametrize(("item_id", "error"), _cases(BAD_TEXT, BAD_TYPES))
    async def test_what_cannot_be_an_item_id_is_refused(
        self, store: SessionStore, item_id: Any, error: type[InvalidInput]
    ) -> None:
        await _refused(store, error, lambda: store.append("s", [said("x"), Item(id=item_id, data={})]))
        await _refused(store, error, lambda: store.remove("s", ["a", item_id]))
        if item_id is not None:
            await _refused(store, error, lambda: store.remove("s", ["a"], op_id=item_id))
            await _refused(store, error, lambda: store.delete("s", op_id=item_id))

    @pytest.mark.parametrize(("payload", "error"), _cases(UNFIT, UNFIT_TYPES))
    async def test_what_json_cannot_hold_is_refused(
        self, store: SessionStore, payload: Any, error: type[InvalidInput]
    ) -> None:
        await _refused(store, error, lambda: store.append("s", [said("fine"), Item(data=payload)]))
        if payload is not None:
            await _refused(store, error, lambda: store.append("s", [said("fine")], metadata=payload))

    async def test_what_is_too_large_is_refused(self, store: SessionStore) -> None:
        await _refused(store, InvalidInput, lambda: store.append("s", [said("fine"), said("x" * (4 << 20))]))
        await _refused(store, InvalidInput, lambda: store.append("s", [said("fine"), said("é" * (2 << 20))]))
        await _refused(store, InvalidInput, lambda: store.append("s", [], metadata={"x": "x" * (64 << 10)}))
        await _refused(store, InvalidInput, lambda: store.append("s", numbered(10_001)))
        await _refused(store, InvalidInput, lambda: store.remove("s", [str(n) for n in range(10_001)]))

    @pytest.mark.parametrize(
        "items",
        [None, 7, "text", b"bytes", {"role": "user"}, {"a"}, said("x"), [{"role": "user"}], ["x"], [None], iter([])],
        ids=lambda items: type(items).__name__,
    )
    async def test_items_are_a_sequence_of_items(self, store: SessionStore, items: Any) -> None:
        await _refused(store, InvalidType, lambda: store.append("s", items))

    @pytest.mark.parametrize("item_ids", [None, 7, "i0", b"i0", {"i0"}, iter(["i0"])], ids=lambda i: type(i).__name__)
    async def test_item_ids_are_a_sequence_of_text(self, store: SessionStore, item_ids: Any) -> None:
        await _refused(store, InvalidType, lambda: store.remove("s", item_ids))

    async def test_two_items_of_one_call_cannot_share_an_id(self, store: SessionStore) -> None:
        await _refused(store, InvalidInput, lambda: store.append("s", [said("x", "a"), said("y", "b"), said("x", "a")]))

    @pytest.mark.parametrize(
        "ttl",
        [0, 0.0, -1, math.nan, -math.inf, TTL_MAX + 1, 86_400_000 * 365, 10**400],
        ids=lambda ttl: f"{ttl!s:.20}",
    )
    async def test_a_ttl_is_above_zero_and_at_most_ten_years_or_infinite(self, store: SessionStore, ttl: float) -> None:
        await _refused(store, InvalidInput, lambda: store.append("s", [said("x")], ttl=ttl))
        await _refused(store, InvalidInput, lambda: store.append("s", [], ttl=ttl))

    @pytest.mark.parametrize("ttl", ["60", True, datetime.timedelta(seconds=60), [60], b"60"], ids=str)
    async def test_a_ttl_is_a_number(self, store: SessionStore, ttl: Any) -> None:
        await _refused(store, InvalidType, lambda: store.append("s", [said("x")], ttl=ttl))

    @pytest.mark.parametrize(("keep", "error"), [(0, InvalidInput), (-1, InvalidInput), (-(10**30), InvalidInput)])
    async def test_keep_is_at_least_one(self, store: SessionStore, keep: int, error: type[InvalidInput]) -> None:
        await _refused(store, error, lambda: store.append("s", [said("x")], keep=keep))

    @pytest.mark.parametrize("number", [True, 1.0, "1", b"1", [1], math.inf], ids=repr)
    async def test_numbers_are_ints(self, store: SessionStore, number: Any) -> None:
        for name in ("expected", "after", "epoch", "keep"):
            await _refused(store, InvalidType, partial(store.append, "s", [said("x")], **{name: number}))
        for name in ("after", "before", "last", "epoch"):
            await _refused(store, InvalidType, partial(store.read, "s", **{name: number}))
        await _refused(store, InvalidType, lambda: store.remove("s", ["a"], expected=number))
        await _refused(store, InvalidType, lambda: store.delete("s", expected=number))

    async def test_after_of_a_read_is_an_int_even_if_it_is_the_first(self, store: SessionStore) -> None:
        missing: Any = None
        await _refused(store, InvalidType, lambda: store.read("s", after=missing))

    @pytest.mark.parametrize("number", [-1, -(10**30)])
    async def test_numbers_are_not_negative(self, store: SessionStore, number: Any) -> None:
        for name in ("expected", "after", "epoch"):
            await _refused(store, InvalidInput, partial(store.append, "s", [], **{name: number}))
        for name in ("after", "before", "last", "epoch"):
            await _refused(store, InvalidInput, partial(store.read, "s", **{name: number}))
        await _refused(store, InvalidInput, lambda: store.remove("s", ["a"], expected=number))
        await _refused(store, InvalidInput, lambda: store.delete("s", expected=number))

    @pytest.mark.parametrize("prefix", [None, 7, b"s", ["s"]], ids=repr)
    async def test_a_prefix_is_text(self, store: SessionStore, prefix: Any) -> None:
        await _refused(store, InvalidType, lambda: listed(store.sessions(prefix=prefix)))

    async def test_a_prefix_that_no_id_can_have_lists_nothing(self, store: SessionStore) -> None:
        await store.append("s", [])
        for prefix in ("\0", "\n", " " * 600, "s\0", "\U0010ffff"):
            assert await listed(store.sessions(prefix=prefix)) == []
        await _refused_nothing_checked(InvalidInput, lambda: listed(store.sessions(prefix="\ud800")))

    @pytest.mark.parametrize(("tenant", "error"), _cases(BAD_TEXT, BAD_TYPES))
    async def test_what_cannot_be_a_tenant_is_refused(
        self, store: SessionStore, tenant: Any, error: type[InvalidInput]
    ) -> None:
        if tenant is not None:
            await _refused_nothing_checked(error, lambda: _view(store, tenant=tenant))

    @pytest.mark.parametrize(
        "options",
        [
            *({"namespace": name} for name in ("", "Session", "a:b", "-a", "a\n", "a b", "ä", "a" * 33, 7, b"lease")),
            *({"durability": level} for level in ("", "no such level", 7)),
            *({"deadline": seconds} for seconds in (0, -1, math.nan, math.inf, True, "5", 10**400)),
        ],
        ids=lambda options: f"{options!s:.40}",
    )
    async def test_what_cannot_be_an_option_is_refused(self, store: SessionStore, options: Any) -> None:
        await _refused_nothing_checked(InvalidInput, lambda: _view(store, **options))

    async def test_a_refused_call_leaves_an_existing_session_alone(self, store: SessionStore) -> None:
        await store.append("s", numbered(3), ttl=1000, metadata={"k": 1})
        before = await store.read("s")
        for items, options in (
            ([said("fine"), Item(data={"x": math.nan})], {}),
            ([said("fine")], {"metadata": {"x": {1}}}),
            ([said("fine")], {"ttl": -1}),
            ([said("fine")], {"keep": 0}),
            ([said("x", "a"), said("y", "a")], {}),
        ):
            call: dict[str, Any] = {"ttl": 5000, "keep": 1, **options}
            with pytest.raises(InvalidInput):
                await store.append("s", items, **call)
        assert await store.read("s") == before


async def _refused_nothing_checked(error: type[InvalidInput], call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(InvalidInput) as caught:
        await call()
    assert isinstance(caught.value, error)
    assert isinstance(caught.value, TypeError) == (isinstance(caught.value, InvalidType))
    assert len(str(caught.value)) < 300


async def _refused(store: SessionStore, error: type[InvalidInput], call: Callable[[], Awaitable[object]]) -> None:
    """Check that the call raises just this error, in a short sentence, and stores nothing."""
    with pytest.raises(InvalidInput) as caught:
        await call()
    assert type(caught.value) is error
    assert len(str(caught.value)) < 300
    assert await store.read("s") == History(None)
    assert await listed(store.sessions()) == []


async def _view(store: SessionStore, **options: Any) -> SessionStore:
    return store.with_options(**options)
