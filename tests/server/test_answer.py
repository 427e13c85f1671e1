"""How the pieces of a stream become one message."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webai_api.server.answer import Answer
from webai_api.server.errors import ApiError
from webai_api.server.wire import FrameSplitter, event_data


def collected(*deltas: Any, finish_reason: str = "stop") -> dict[str, Any]:
    answer = Answer()
    for delta in deltas:
        answer.add({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    answer.add({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    return answer.message()


def piece(arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {k: v for k, v in (("name", fields.pop("name", None)), ("arguments", arguments)) if v is not None}
    return {"tool_calls": [{**fields, "function": function}]}


def call(call_id: str | None, name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {**({"id": call_id} if call_id else {}), "function": {"name": name, "arguments": arguments}, **more}


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        ([piece("{", index=0, id="a", name="f"), piece("}", index=0)], [call("a", "f", "{}")]),
        (
            [
                piece("{", index=0, id="a", name="f"),
                piece("[", index=1, id="b", name="g"),
                piece("}", index=0),
                piece("]", index=1),
            ],
            [call("a", "f", "{}"), call("b", "g", "[]")],
        ),
        (
            [piece("{", id="a", name="f"), piece("}"), piece("[]", id="b", name="g")],
            [call("a", "f", "{}"), call("b", "g", "[]")],
        ),
        (
            [piece("{}", index=0, id="a", name="f"), piece("[]", index=0, id="b", name="g")],
            [call("a", "f", "{}"), call("b", "g", "[]")],
        ),
        (
            [piece("{}", index=None, id="", name="f"), piece("[]", index=None, id="", name="g")],
            [call(None, "f", "{}"), call(None, "g", "[]")],
        ),
        ([piece("{", index=0, id="a", name="f"), piece("}", index=0, id="a", name="f")], [call("a", "f", "{}")]),
        (
            [piece("{}", index=0, id="a", name="f"), {"tool_calls": [{"extra_content": {"google": 1}}]}],
            [call("a", "f", "{}", extra_content={"google": 1})],
        ),
    ],
    ids=["plain", "interleaved", "no index", "one index for all", "no id", "repeated names", "a trailing signature"],
)
def test_tool_calls_are_put_together_however_they_are_numbered(deltas: list[dict[str, Any]], calls: list[Any]) -> None:
    message = collected(*deltas, finish_reason="tool_calls")
    assert message == {"role": "assistant", "content": None, "tool_calls": calls}


def test_refusals_functions_and_audio_are_collected() -> None:
    deltas = [{"refusal": "I "}, {"refusal": "won't"}, {"audio": {"id": "au", "data": "x"}}]
    functions = [{"function_call": {"name": "f", "arguments": "{"}}, {"function_call": {"arguments": "}"}}]
    assert collected(*deltas, *functions) == {
        "role": "assistant",
        "content": None,
        "refusal": "I won't",
        "function_call": {"name": "f", "arguments": "{}"},
        "audio": {"id": "au"},
    }


def test_an_answer_without_any_words_is_empty_text() -> None:
    assert collected() == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_tool_call_that_was_cut_off_is_never_kept(reason: str) -> None:
    with pytest.raises(ApiError, match="cut off"):
        collected(piece('{"a', index=0, id="a", name="f"), finish_reason=reason)
    assert collected({"content": "half a sen"}, finish_reason=reason)["content"] == "half a sen"


CALL_KEYS = st.sampled_from(["id", "index", "function", "name", "arguments"])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CALL_KEYS, inner),
    max_leaves=8,
)
DELTAS = st.dictionaries(st.sampled_from(["content", "tool_calls", "function_call", "refusal", "audio"]), VALUES)


@given(st.lists(DELTAS, max_size=4))
def test_no_stream_whatsoever_breaks_the_collector(deltas: list[Any]) -> None:
    collected(*deltas)


@given(st.lists(st.text("ab:é \n", min_size=1)), st.sampled_from(["\n", "\r\n"]), st.data())
def test_events_are_the_same_wherever_the_stream_is_cut(lines: list[str], end: str, data: st.DataObject) -> None:
    texts = [line.replace("\n", "") for line in lines]
    raw = "".join(f"data: {text}{end}{end}" for text in texts).encode()
    splitter, events, rest = FrameSplitter(), [], raw
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        events += splitter.feed(rest[:size])
        rest = rest[size:]
    events += splitter.end()
    assert [event_data(e).decode() for e in events] == texts
