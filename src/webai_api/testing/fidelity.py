import copy
import json
from typing import Any

import pytest

from webai_api.protocol import SessionStore
from webai_api.testing.vocabulary import contents, listed, present, said
from webai_api.types import Item

__all__ = ["Fidelity"]

PAYLOADS: list[dict[str, Any]] = [
    {},
    {"role": "user", "content": "Hello!", "metadata": {}},
    {"content": "", "": "", " ": " "},
    {"text": "Grüße, 世界, \U0001f642, \u202eright to left, \ufeffBOM, \u2028 and \u2029, e\u0301 and é"},
    {"text": "\x00 NUL, \x1f, \x7f, \x85, \r\n, \t, \\, \", ', </script>, \\u0000, %00, {}"},
    {"n": [0, -1, 2**31, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, -(2**63) - 1, 10**30, -(10**4000)]},
    {"x": [0.0, -0.0, 1.0, 0.1, 1e22, 1e-7, 1.7976931348623157e308, 5e-324, 123456789.123456789, 1e15, 1e16, 1e17]},
    {"true": True, "false": False, "null": None, "list": [], "dict": {}, "nested": [[[]], {"a": [{"b": {}}]}]},
    {"id": "an id of the caller's", "seq": 99, "created_at": "yesterday", "version": None, "data": {"id": 1}},
    {"id": None, "~id": "tilde", "~~id": "two", "~at": 5, "~~at": 6, "~": 1, "~~": 2, "~~x": 3, "~x": 4},
    {"id": {"id": [1]}, "~id": {"~id": 2}},
    {"id": 7, "~at": "not a time", "epoch": 0, "metadata": None, "ttl": -1, "item": {}},
    {"__proto__": 1, "$ref": "#", "e\u0301": "NFD", "é": "NFC", "\x00": "NUL", "a.b": 1, "k" * 1000: "long"},
    {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
    {"text": "x" * 300_000},
    {"many": {str(n): [n, str(n), n / 7] for n in range(2000)}},
]

NAMES = [
    "plain",
    "with space",
    " edges ",
    "{braces}",
    "{session:x}:h",
    "%7B",
    "%",
    "{",
    "}",
    "*",
    "?",
    "[a]",
    "a:b:c",
    "../../etc/passwd",
    "'; DROP TABLE sessions; --",
    '"quoted"',
    "back\\slash",
    "\u00e9",  # NFC
    "e\u0301",  # NFD
    "\u00c9",
    "K",
    "\u212a",  # the Kelvin sign, which NFC would turn into a K
    "ß",
    "SS",
    "\U0001f642",
    "x" * 512,
    "x" * 511 + "y",
    "é" * 256,
    "0",
    "-1",
    "None",
    "null",
]


class Fidelity:
    """What comes out is what went in."""

    @pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
    async def test_a_payload_comes_back_as_it_was_given(self, store: SessionStore, payload: dict[str, Any]) -> None:
        await store.append("s", [Item(id="a", data=payload), said("next")])
        history = await store.read("s")
        assert len(history.items) == 2
        assert _exactly(history.items[0].data) == _exactly(payload)
        first = present(history)
        assert present(await store.append("s", [Item(id="a", data=copy.deepcopy(payload))])) == first

    @pytest.mark.parametrize("payload", PAYLOADS[:-2], ids=range(len(PAYLOADS) - 2))
    async def test_metadata_comes_back_as_it_was_given(self, store: SessionStore, payload: dict[str, Any]) -> None:
        await store.append("s", [], metadata=payload)
        assert _exactly(present(await store.read("s")).metadata) == _exactly(payload)

    async def test_payloads_of_one_call_do_not_mix(self, store: SessionStore) -> None:
        items = [Item(id=str(n), data=payload) for n, payload in enumerate(PAYLOADS)]
        await store.append("s", items)
        found = (await store.read("s")).items
        assert [(item.id, _exactly(item.data)) for item in found] == [(i.id, _exactly(i.data)) for i in items]

    async def test_nesting_up_to_the_limit_comes_back(self, store: SessionStore) -> None:
        payload: dict[str, Any] = {}
        for _ in range(63):
            payload = {"deeper": payload}
        await store.append("s", [Item(data=payload)], metadata=payload)
        history = await store.read("s")
        assert history.items[0].data == payload
        assert present(history).metadata == payload

    async def test_session_ids_are_kept_byte_for_byte_apart(self, store: SessionStore) -> None:
        for name in NAMES:
            await store.append(name, [said(name)], expected=0)
        for name in NAMES:
            history = await store.read(name)
            assert [item.data["content"] for item in history.items] == [name]
            assert present(history).id == name
        assert sorted(await listed(store.sessions())) == sorted(NAMES)
        for n, name in enumerate(NAMES):
            assert await store.delete(name)
            assert len(await listed(store.sessions())) == len(NAMES) - n - 1

    async def test_item_ids_are_kept_byte_for_byte_apart(self, store: SessionStore) -> None:
        for name in NAMES:
            await store.append("s", [said(name, name)])
        assert await contents(store, "s") == NAMES
        for name in NAMES:
            await store.append("s", [said(name, name)])
        assert await contents(store, "s") == NAMES
        for n, name in enumerate(NAMES):
            assert (await store.remove("s", [name], op_id=name)).ids == (name,)
            assert await contents(store, "s") == NAMES[n + 1 :]

    async def test_item_ids_of_one_call_come_back_in_their_order(self, store: SessionStore) -> None:
        await store.append("s", [said(name, name) for name in reversed(NAMES)])
        assert await contents(store, "s") == NAMES[::-1]

    async def test_what_a_reader_does_to_its_copy_changes_nothing(self, store: SessionStore) -> None:
        await store.append("s", [Item(id="a", data={"content": ["x"], "n": {"m": 1}})], metadata={"tags": ["x"]})
        first = await store.read("s")
        original = copy.deepcopy(first)
        _spoil(first.items[0].data)
        _spoil(present(first).metadata)
        removal = await store.remove("s", ["nobody"])
        _spoil(present(removal).metadata)
        brought = await store.append("s", [], after=0)
        _spoil(brought.items[0].data)
        async for session in store.sessions():
            _spoil(session.metadata)
        assert await store.read("s") == original

    async def test_what_a_writer_does_to_its_values_afterwards_changes_nothing(self, store: SessionStore) -> None:
        payload = {"content": ["x"]}
        described = {"tags": ["x"]}
        items = [Item(id="a", data=payload)]
        await store.append("s", items, metadata=described)
        payload["content"].append("y")
        described["tags"].append("y")
        items.append(said("z"))
        history = await store.read("s")
        assert [item.data for item in history.items] == [{"content": ["x"]}]
        assert present(history).metadata == {"tags": ["x"]}


def _exactly(value: Any) -> str:  # noqa: ANN401  # any JSON value
    """Return a text that tells 1 from 1.0 and from True, which `==` does not."""
    return json.dumps(value, sort_keys=True)


def _spoil(value: Any) -> None:  # noqa: ANN401  # any JSON object
    """Change *value* as far as it lets itself be changed."""
    try:
        for inner in list(value.values()):
            if isinstance(inner, list):
                inner.append("spoilt")
        value["spoilt"] = True
    except (TypeError, AttributeError):
        pass  # it is read-only: just as good
