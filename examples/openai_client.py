"""OpenAI's client and a server that remembers: send only what is new, name the session.

make run                             # in another terminal
.venv/bin/python examples/openai_client.py     # another server: its URL as argument, its key in OPENAI_API_KEY
"""

import os
import secrets
import sys

from openai import OpenAI

client = OpenAI(
    base_url=sys.argv[1] if len(sys.argv) > 1 else "http://localhost:6969/v1",
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
    default_headers={"X-Session-Id": f"example-{secrets.token_hex(4)}"},
)

first = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello, my name is Ada."}])
print(first.choices[0].message.content)

second = client.chat.completions.create(
    model="demo", messages=[{"role": "user", "content": "What is my name?"}], stream=True
)
for chunk in second:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
