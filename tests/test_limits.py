import math
import unicodedata
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from webai_api.errors import InvalidInput, InvalidType
from webai_api.limits import DEFAULT_LIMITS, TTL_MAX, Limits, check_ttl, check_window, check_write
from webai_api.options import OptionsView
from webai_api.types import Item, StoreOptions


class View(OptionsView):
    durabilities = ("memory", "replay")

    def __init__(self) -> None:
        self._options = StoreOptions()


@given(st.text(max_size=600))
def test_an_id_is_accepted_as_it_is_or_refused(value: str) -> None:
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        good = False
    else:
        control = any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in value)
        good = bool(value.strip()) and len(raw) <= 512 and not control
    if good:
        assert DEFAULT_LIMITS.check_id(value) is value
    else:
        with pytest.raises(InvalidInput):
            DEFAULT_LIMITS.check_id(value)


@given(st.characters(categories=["Cc", "Cs", "Zl", "Zp"]), st.text(max_size=5), st.text(max_size=5))
def test_control_characters_and_lone_surrogates_make_no_id(bad: str, before: str, after: str) -> None:
    with pytest.raises(InvalidInput):
        DEFAULT_LIMITS.check_id(before + bad + after)


@pytest.mark.parametrize("value", ["x" * 512, "é" * 256, "\U0001f642" * 128])
def test_an_id_of_512_bytes_is_accepted_and_one_more_is_not(value: str) -> None:
    assert DEFAULT_LIMITS.check_id(value) == value
    with pytest.raises(InvalidInput, match="item id must have at most 512 bytes"):
        DEFAULT_LIMITS.check_id(value + "x", "item id")


@pytest.mark.parametrize(
    "value", [None, 7, 1.5, True, b"abc", ["a"], {"a": 1}, object()], ids=lambda v: type(v).__name__
)
def test_an_id_that_is_not_text_is_a_type_error_that_names_it(value: object) -> None:
    with pytest.raises(TypeError, match=f"tenant must be a str, not {type(value).__name__}"):
        DEFAULT_LIMITS.check_id(value, "tenant")


@given(st.text(max_size=2000))
def test_no_value_is_echoed(value: str) -> None:
    assume(len(value) > 8)
    for check in (DEFAULT_LIMITS.check_id, DEFAULT_LIMITS.check_prefix):
        message = ""
        try:
            check(value)
        except InvalidInput as error:
            message = str(error)
        assert value not in message


@pytest.mark.parametrize("value", ["", " ", "\0", "a\n", "x" * 5000])
def test_a_prefix_may_be_any_text(value: str) -> None:
    assert DEFAULT_LIMITS.check_prefix(value) == value


def test_a_prefix_must_be_text_that_can_be_encoded() -> None:
    with pytest.raises(InvalidInput, match="lone surrogate"):
        DEFAULT_LIMITS.check_prefix("\ud800")
    with pytest.raises(InvalidType, match="prefix must be a str, not bytes"):
        DEFAULT_LIMITS.check_prefix(b"a")


@given(st.floats() | st.integers())
def test_a_ttl_is_above_zero_and_at_most_ten_years_or_infinite(ttl: float) -> None:
    if 0 < ttl <= TTL_MAX or ttl == math.inf:
        assert check_ttl(ttl) == ttl
    else:
        with pytest.raises(InvalidInput, match="ttl must be above 0"):
            check_ttl(ttl)


@pytest.mark.parametrize("ttl", [5e-324, 1, TTL_MAX, math.inf])
def test_the_borders_of_a_ttl_are_accepted(ttl: float) -> None:
    assert check_ttl(ttl) == ttl


@pytest.mark.parametrize(
    "ttl", [0, -1, math.nan, -math.inf, TTL_MAX + 1, 10**400, -(10**400)], ids=lambda t: f"{t!s:.9}"
)
def test_a_ttl_outside_is_refused(ttl: float) -> None:
    with pytest.raises(InvalidInput, match="SESSION_TTL must be above 0"):
        check_ttl(ttl, "SESSION_TTL")


@pytest.mark.parametrize("ttl", ["60", b"60", True, None, [60]], ids=repr)
def test_a_ttl_that_is_no_number_is_a_type_error(ttl: object) -> None:
    with pytest.raises(InvalidType, match="ttl must be a number of seconds"):
        check_ttl(ttl)


@given(st.integers())
def test_numbers_of_a_window_and_of_a_write_are_not_negative(number: int) -> None:
    arguments: dict[str, Any]
    for name, minimum in (("after", 0), ("epoch", 0), ("expected", 0), ("keep", 1)):
        arguments = {name: number}
        if number >= minimum:
            check_write(**arguments)
        else:
            with pytest.raises(InvalidInput, match=f"{name} must be at least {minimum}"):
                check_write(**arguments)
    for name in ("after", "before", "last", "epoch"):
        arguments = {"after": 0, "before": None, "last": None, "epoch": None, name: number}
        if number >= 0:
            check_window(**arguments)
        else:
            with pytest.raises(InvalidInput, match=f"{name} must be at least 0"):
                check_window(**arguments)


@pytest.mark.parametrize("number", [True, False, 1.0, "1", math.nan, [1]], ids=repr)
def test_a_number_that_is_no_int_is_a_type_error(number: Any) -> None:
    for name in ("after", "epoch", "expected", "keep"):
        with pytest.raises(InvalidType, match=f"{name} must be an int"):
            check_write(**{name: number})
    for name in ("after", "before", "last", "epoch"):
        arguments: dict[str, Any] = {"after": 0, "before": None, "last": None, "epoch": None, name: number}
        with pytest.raises(InvalidType, match=f"{name} must be an int"):
            check_window(**arguments)


def test_no_options_are_fine() -> None:
    check_write()
    check_window(0, None, None, None)


@pytest.mark.parametrize(
    ("items", "error", "sentence"),
    [
        ("text", InvalidType, "a sequence of Item, not str"),
        (b"bytes", InvalidType, "a sequence of Item, not bytes"),
        ({}, InvalidType, "a sequence of Item, not dict"),
        ({1}, InvalidType, "a sequence of Item, not set"),
        (None, InvalidType, "a sequence of Item, not NoneType"),
        (iter([]), InvalidType, "a sequence of Item, not list_iterator"),
        ([{"role": "user"}], InvalidType, "must be Item, not dict"),
        ([Item(id="", data={})], InvalidInput, "item id must not be empty"),
        ([Item(id="a", data=[])], InvalidType, "must be a dict, not list"),  # type: ignore[arg-type]  # the point
        ([Item(id="a", data={}), Item(id="a", data={"x": 1})], InvalidInput, "the same id"),
        ([Item(data={})] * 4, InvalidInput, "at most 3 items"),
    ],
    ids=lambda value: f"{value!s:.30}",
)
def test_items_of_a_call(items: Any, error: type[InvalidInput], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as caught:
        Limits(items_per_call=3).check_items(items)
    assert type(caught.value) is error


def test_items_may_be_any_sequence() -> None:
    Limits(items_per_call=3).check_items([Item(data={}) for _ in range(3)])
    DEFAULT_LIMITS.check_items(())


@pytest.mark.parametrize(
    ("item_ids", "op_id", "error", "sentence"),
    [
        ("a", None, InvalidType, "a sequence of str, not str"),
        (b"a", None, InvalidType, "a sequence of str, not bytes"),
        ({"a"}, None, InvalidType, "a sequence of str, not set"),
        (None, None, InvalidType, "a sequence of str, not NoneType"),
        (["a", 7], None, InvalidType, "item id must be a str"),
        (["a", " "], None, InvalidInput, "item id must not be empty"),
        (["a"] * 4, None, InvalidInput, "at most 3 items"),
        (["a"], 7, InvalidType, "op_id must be a str"),
        (["a"], "a\n", InvalidInput, "op_id must not contain control characters"),
    ],
)
def test_item_ids_of_a_call(item_ids: Any, op_id: Any, error: type[InvalidInput], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as caught:
        Limits(items_per_call=3).check_ids(item_ids, op_id)
    assert type(caught.value) is error


def test_good_item_ids_are_returned() -> None:
    assert DEFAULT_LIMITS.check_ids(["a", "a"], "op") == ["a", "a"]
    assert DEFAULT_LIMITS.check_ids((), None) == ()


@pytest.mark.parametrize("depth", [1, 2, 64])
@pytest.mark.parametrize("in_lists", [True, False])
def test_nesting_is_counted_in_levels(depth: int, in_lists: bool) -> None:
    value: Any = {}
    for _ in range(depth - 1):
        value = [value] if in_lists else {"x": value}
    Limits(depth=depth).check_json(value, "item")
    Limits(depth=depth).check_json([1] if depth == 1 else value, "item")
    with pytest.raises(InvalidInput, match="item is nested too deeply"):
        Limits(depth=depth).check_json([value], "item")


def test_deep_nesting_is_refused_before_it_is_a_recursion_error() -> None:
    value: Any = {}
    for _ in range(100_000):
        value = {"x": value}
    with pytest.raises(InvalidInput, match="nested too deeply"):
        DEFAULT_LIMITS.check_json(value, "metadata")


def test_options_change_what_they_name_only() -> None:
    first = View().with_options(tenant="t", deadline=2)
    assert first._options == StoreOptions(tenant="t", deadline=2)
    second = first.with_options(namespace="lease", durability="memory")
    assert second._options == StoreOptions(tenant="t", namespace="lease", durability="memory", deadline=2)
    assert second.with_options()._options == second._options
    assert first._options == StoreOptions(tenant="t", deadline=2)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("tenant", "", "tenant must not be empty"),
        ("tenant", 7, "tenant must be a str"),
        ("tenant", "a\nb", "control characters"),
        ("namespace", "", "namespace must not be empty"),
        ("namespace", "Lease", "namespace must be 1 to 32 characters"),
        ("namespace", "a:b", "namespace must be"),
        ("namespace", "a\n", "namespace must not contain control characters"),
        ("namespace", "a" * 33, "namespace must be"),
        ("namespace", 7, "namespace must be"),
        ("durability", "fsync", "offers the durabilities memory, replay, not 'fsync'"),
        ("durability", "x" * 10_000, "not 'x{39}$"),
        ("deadline", 0, "deadline must be above 0"),
        ("deadline", math.inf, "deadline must be above 0"),
        ("deadline", math.nan, "deadline must be above 0"),
        ("deadline", 10**400, "deadline must be above 0"),
        ("deadline", "5", "deadline must be a number of seconds"),
        ("deadline", True, "deadline must be a number of seconds"),
    ],
    ids=lambda value: f"{value!s:.20}",
)
def test_options_that_are_refused(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        View().with_options(**{name: value})
