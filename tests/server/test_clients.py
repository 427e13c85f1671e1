"""What our users run: OpenAI's client and LangChain's, two turns by session id."""

import asyncio
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.server.harness import FakeUpstream, Running, answers, frames, says, streams, wait_until

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


async def test_the_official_client_holds_a_conversation(server: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        headers = {"X-Session-Id": "s"}

        async def say(text: str) -> str:
            reply = await client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": text}], extra_headers=headers
            )
            assert reply._request_id is not None
            assert reply.usage is not None
            return reply.choices[0].message.content or ""

        async def stream(text: str) -> tuple[str, int]:
            words = []
            chunks = await client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": text}],
                extra_headers=headers,
                stream=True,
                stream_options={"include_usage": True},
            )
            usage = None
            async for chunk in chunks:
                words += [c.delta.content for c in chunk.choices if c.delta.content]
                usage = chunk.usage or usage
            assert usage is not None
            return "".join(words), len(words)

        await say("Hello, my name is Ada.")
        assert await say("What is my name?") == "Your name is Ada."
        told, pieces = await stream("What did I say first?")
        assert told == 'You said first: "Hello, my name is Ada.".'
        assert pieces > 3
        assert "demo" in [m.id async for m in client.models.list()]
        assert (await client.models.retrieve("demo")).owned_by == "webai-api"


async def test_the_synchronous_client_holds_one_with_the_id_in_the_body(server: Running) -> None:
    def talk() -> list[str | None]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            replies = [
                client.chat.completions.create(
                    model="demo",
                    messages=[{"role": "user", "content": text}],
                    extra_body={"conversation_id": "s"},
                )
                for text in ("The code word is swordfish.", "What is the code word?")
            ]
            return [r.choices[0].message.content for r in replies]

    assert (await asyncio.to_thread(talk))[1] == "The code word is swordfish."


async def test_the_official_client_sees_errors_as_its_own(server: Running, upstream: FakeUpstream) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        ask: Any = {"messages": [{"role": "user", "content": "hi"}]}
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nope", **ask)
        assert missing.value.code == "model_not_found"
        assert missing.value.request_id is not None
        upstream.script.append(answers({"error": {"message": "slow"}}, status=429))
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="fake-1", **ask)
        upstream.script.append(streams(frames("po")[:2]))
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in await client.chat.completions.create(
                model="fake-1", stream=True, extra_headers={"X-Session-Id": "s"}, **ask
            ):
                pass


async def test_the_official_client_gets_past_a_locked_conversation_by_itself(
    server: Running, upstream: FakeUpstream
) -> None:
    upstream.script.append(says("first", delay=2.3))
    one = asyncio.create_task(server.say("one", "s", model="fake-1"))
    await wait_until(lambda: bool(upstream.received))
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        reply = await client.chat.completions.create(
            model="fake-1", messages=[{"role": "user", "content": "two"}], extra_body={"session_id": "s"}
        )
    assert reply.choices[0].message.content == "pong"
    assert (await one).text == "first"
    assert await server.count("s") == 4


async def test_the_official_client_calls_tools_in_a_session(server: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        for stream in (False, True):
            headers = {"X-Session-Id": f"s{stream}"}
            ask: Any = {"model": "demo", "tools": [WEATHER], "extra_headers": headers}
            question: Any = [{"role": "user", "content": "Weather in Rome?"}]
            if stream:
                async with client.chat.completions.stream(messages=question, **ask) as events:
                    async for _ in events:
                        pass
                    message: Any = (await events.get_final_completion()).choices[0].message
            else:
                message = (await client.chat.completions.create(messages=question, **ask)).choices[0].message
            (call,) = message.tool_calls
            assert (call.function.name, call.function.arguments) == (
                "get_weather",
                '{"city":"Weather in Rome?","days":1}',
            )
            result: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
            told = await client.chat.completions.create(messages=result, **ask)
            assert told.choices[0].message.content == "The tool answered: sunny"
            assert await server.count(f"s{stream}") == 4


async def test_langchain_holds_a_conversation(server: Running) -> None:
    def chat(**options: Any) -> ChatOpenAI:
        return ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key=SecretStr("any"),
            model="demo",
            max_retries=0,
            default_headers={"X-Session-Id": "s"},
            **options,
        )

    first = await chat().ainvoke("Hello, my name is Ada.")
    assert "Ada" in str(first.content)
    assert (await chat().ainvoke("What is my name?")).content == "Your name is Ada."
    words = [str(chunk.content) async for chunk in chat(streaming=True).astream("What did I say first?")]
    assert "".join(words) == 'You said first: "Hello, my name is Ada.".'
    resent = [("human", "Hello, my name is Ada."), ("ai", first.content), ("human", "What is my name?")]
    reply = await chat(extra_body={"session_id": "s"}).bind_tools([WEATHER]).ainvoke([*resent][2:])
    assert reply.tool_calls[0]["args"]["days"] == 1
    assert await server.count("s") == 8


async def test_langchain_that_sends_everything_again_is_understood(server: Running) -> None:
    llm = ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key=SecretStr("any"),
        model="demo",
        max_retries=0,
        default_headers={"X-Session-Id": "s"},
    ).bind_tools([WEATHER])
    messages: list[Any] = [("system", "You are brief."), ("human", "Weather in Rome?")]
    called = await llm.ainvoke(messages)
    messages += [called, {"role": "tool", "tool_call_id": called.tool_calls[0]["id"], "content": "sunny"}]
    told = await llm.ainvoke(messages)
    assert told.content == "The tool answered: sunny"
    messages += [told, ("human", "Thanks")]
    await llm.ainvoke(messages)
    assert [m["role"] for m in await server.stored("s")] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
    ]
