"""The built-in model: deterministic, and its memory is what it was sent."""

from typing import Any

import pytest

from tests.server.harness import Running, assistant, user
from webai_api.server.upstream.demo import answer


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("said", "asked", "told"),
    [
        (["My name is Ada."], "What is my name?", "Your name is Ada."),
        (["I am Bob, hello"], "what's my name", "Your name is Bob."),
        (["call me Ishmael", "I am tired"], "Who am I?", "Your name is Ishmael."),
        (["My name is Ada", "my name is Eve"], "What is my name?", "Your name is Eve."),
        ([], "What is my name?", "I do not know your name. I remember 0 earlier messages."),
        (["one", "two"], "What did I say first?", 'You said first: "one".'),
        ([], "What did I say first?", "This is the first thing you said."),
        (["The code word is swordfish."], "What is the code word?", "The code word is swordfish."),
        (["codeword: blue"], "what was my code word?", "The code word is blue."),
        (["one"], "two", 'You said: "two". I remember 2 earlier messages.'),
    ],
)
def test_it_answers_from_the_history(said: list[str], asked: str, told: str) -> None:
    history = [m for text in said for m in (user(text), assistant("ok"))]
    messages = [{"role": "system", "content": "my name is System"}, *history, user(asked)]
    assert answer({"messages": messages})["content"] == told
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    assert answer({"messages": parts})["content"] == told


@pytest.mark.parametrize(
    ("choice", "last", "called"),
    [
        (None, user("go"), "first"),
        ("auto", user("go"), "first"),
        ("none", user("go"), None),
        ("required", assistant("go"), "first"),
        ("auto", assistant("go"), None),
        ({"type": "function", "function": {"name": "second"}}, user("go"), "second"),
        ("required", {"role": "tool", "tool_call_id": "x", "content": "42"}, None),
    ],
)
def test_it_calls_tools_as_it_is_told(choice: Any, last: dict[str, Any], called: str | None) -> None:
    payload = {"messages": [last], "tools": [tool("first"), tool("second")], "tool_choice": choice}
    message = answer(payload)
    calls = message.get("tool_calls", [])
    assert [c["function"]["name"] for c in calls] == ([called] if called else [])
    assert message == answer(payload)


def test_its_arguments_follow_the_schema() -> None:
    properties = {
        "city": {"type": "string"},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": ["integer", "null"]},
        "exact": {"type": "boolean"},
        "tags": {"type": "array"},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}}},
        "optional": {"type": "string"},
    }
    required = [name for name in properties if name != "optional"]
    weather = tool("weather", type="object", properties=properties, required=required)
    (call,) = answer({"messages": [user("Rome")], "tools": [weather]})["tool_calls"]
    assert call["function"]["arguments"] == (
        '{"city":"Rome","unit":"c","days":1,"exact":true,"tags":[],"where":{"lat":1}}'
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": "x"},
        {"tools": [None, {"function": 7}]},
        {"tools": [{"function": {"name": "f", "parameters": []}}]},
        {"tools": [tool("f", properties=[], required="x")]},
        {"tools": [tool("f", type="object", required=[1, "a"])]},
        {"tool_choice": {"function": 1}, "tools": [tool("f")]},
        {"stream_options": 7, "stream": True},
        {"n": None},
    ],
)
async def test_odd_fields_do_not_break_it(server: Running, fields: dict[str, Any]) -> None:
    assert (await server.say("hi", **fields)).status == 200


@pytest.mark.parametrize("n", [0, -1, 9, "2", True, 1.5])
async def test_a_senseless_number_of_choices_is_a_400(server: Running, n: Any) -> None:
    reply = await server.say("hi", n=n)
    assert (reply.status, reply.error["param"]) == (400, "n")
