"""A LangChain agent that remembers, in two ways.

make run                     # in another terminal
.venv/bin/python examples/agent.py     # another server: its URL as argument, its key in OPENAI_API_KEY
"""

import asyncio
import os
import secrets
import sys

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from webai_api import SessionManager

URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:6969/v1"
KEY = SecretStr(os.environ.get("OPENAI_API_KEY", "any"))


async def the_server_remembers() -> None:
    """Name a session; the server adds the history and stores the turn."""
    session_id = f"example-{secrets.token_hex(4)}"
    llm = ChatOpenAI(base_url=URL, api_key=KEY, model="demo", default_headers={"X-Session-Id": session_id})
    await llm.ainvoke("The code word is swordfish.")
    print((await llm.ainvoke("What is the code word?")).content)


async def the_agent_remembers() -> None:
    """Keep the session with the library, as the guide does; the server sees no session and passes the request on."""
    llm = ChatOpenAI(base_url=URL, api_key=KEY, model="demo")
    async with SessionManager.from_url("memory://") as sessions:
        for text in ("Hello, my name is Ada.", "What is my name?"):
            history = await sessions.get_history("agent-session-001")
            question = {"role": "user", "content": text}
            answer = await llm.ainvoke([*history, question])
            # Both in one step: a question without its answer, or the reverse, is never stored.
            await sessions.store_turn(
                "agent-session-001", [question, {"role": "assistant", "content": str(answer.content)}]
            )
            print(answer.content)


async def main() -> None:
    await the_server_remembers()
    await the_agent_remembers()


asyncio.run(main())
