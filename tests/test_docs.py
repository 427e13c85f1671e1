"""The documentation is true: what it shows runs, what it names exists.

A fenced block whose first line ends in ``runnable`` is run in an empty folder; the ``text`` block behind it is what it
prints. In a ``console`` block the lines that begin with ``$`` are run, and the others are what they print. Where a
block says port 6969, a server of its own listens for it on another port.
"""

import ast
import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis

from tests.server.harness import ServerProcess, clean_environment
from tests.servers import RedisServer
from webai_api import AuthenticationFailed, SessionManager

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
VENV_BIN = str(Path(sys.executable).parent)


class Block(NamedTuple):
    """A fenced block, and the output that is claimed for it."""

    page: Path
    line: int
    kind: str
    code: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def runnable_blocks() -> Iterator[Block]:
    fence = re.compile(
        r"^```(python|console) runnable\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
    )
    for page in PAGES:
        text = page.read_text()
        for found in fence.finditer(text):
            yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2], found[3])


def run(command: list[str], folder: Path) -> str:
    environment = clean_environment(PYTHONWARNINGS="", OPENAI_API_KEY="any")
    environment["PATH"] = f"{VENV_BIN}:{environment['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=45, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with nothing in its store."""
    folder = tmp_path / "server"
    folder.mkdir()
    with ServerProcess(folder, "--embedded") as serving:
        yield serving


@pytest.mark.parametrize("block", [b for b in runnable_blocks() if b.kind == "python"], ids=str)
def test_a_runnable_block_prints_what_the_page_says(
    block: Block, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    code, times = block.code, 2  # a reader may run it again
    if ":6969" in code:  # a server remembers the first time, as it should
        code, times = code.replace(":6969", f":{request.getfixturevalue('server').port}"), 1
    program = tmp_path / "block.py"
    program.write_text(code)
    for _ in range(times):
        assert run([sys.executable, str(program)], tmp_path) == block.output


@pytest.mark.parametrize("block", [b for b in runnable_blocks() if b.kind == "console"], ids=str)
def test_commands_print_what_the_page_says(block: Block, tmp_path: Path, server: ServerProcess) -> None:
    said, expected = [], []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            said += run(["bash", "-ec", line[2:].replace(":6969", f":{server.port}")], tmp_path).splitlines()
        else:
            expected.append(line)
    assert [timeless(line) for line in said] == [timeless(line) for line in expected]


def timeless(line: str) -> str:
    return re.sub(r'"created":\d+', '"created":0', line)


def test_there_is_something_to_run() -> None:
    pages = [block.page.name for block in runnable_blocks()]
    assert pages.count("README.md") >= 6
    assert "library.md" in pages


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_against_a_server(example: Path, tmp_path: Path, server: ServerProcess) -> None:
    said = run([sys.executable, str(example), f"{server.url}/v1"], tmp_path)
    expected = {
        "basic": "Hi there!",
        "openai_client": "Your name is Ada.",
        "agent": "The code word is swordfish.",
    }
    assert expected[example.stem] in said


# Configuration


def variables_read() -> dict[str, bool]:
    """Return the variables that settings.py reads, and whether each may come from a file, from its source."""
    source = (ROOT / "src" / "webai_api" / "settings.py").read_text()
    found = {"WEBAI_UPSTREAM_<NAME>_URL": False}  # found by a pattern, which is checked here
    assert 'r"WEBAI_UPSTREAM_([A-Z0-9]+(?:_[A-Z0-9]+)*)_URL"' in source
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
            continue
        if not (isinstance(call.func.value, ast.Name) and call.func.value.id == "env"):
            continue
        if name := variable_of(call.args[0]):
            found[name] = call.func.attr in ("secret", "source") or found.get(name, False)
    return found


def variable_of(argument: ast.expr) -> str | None:
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    if isinstance(argument, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "WEBAI_UPSTREAM_<NAME>" for part in argument.values]
        return "".join(str(part) for part in parts)
    return None


def test_the_configuration_table_names_exactly_what_is_read() -> None:
    rows = re.findall(r"^\| `([A-Z][A-Z0-9_<>]+)`( \(F\))? \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert {name: bool(mark) for name, mark in rows} == variables_read()


def test_the_example_environment_names_exactly_what_is_read() -> None:
    text = (ROOT / ".env.example").read_text()
    shown = re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE)
    assert {re.sub(r"(?<=WEBAI_UPSTREAM_)[A-Z0-9]+(?=_)", "<NAME>", name) for name in shown} == set(variables_read())


# What pages name


def anchors(page: Path) -> set[str]:
    """Return the names of the page's headings, as they are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_promise_names_tests_and_they_exist() -> None:
    text = (ROOT / "docs" / "promises.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not re.search(rf"^\s*(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert not missing
    promises = re.split(r"^\*\*P\d ", text, flags=re.MULTILINE)[1:]
    assert len(promises) == 9
    assert all("::test_" in promise for promise in promises)


# The ACL user of docs/redis.md


def acl_rule() -> list[str]:
    found = re.search(r"^ACL SETUSER (.*?)^```$", (ROOT / "docs" / "redis.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1].replace(">PASSWORD", ">secret").split()


async def use_everything(url: str) -> None:
    for tenant in (None, "acme"):
        async with SessionManager.from_url(url, tenant=tenant) as sessions:
            await sessions.store_turn("s", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
            assert len(await sessions.get_history("s")) == 2
            assert await sessions.pop_message("s")
            assert [session.id async for session in sessions.sessions()] == ["s"]
            assert await sessions.clear_session("s")


def may_use_everything(url: str) -> bool:
    try:
        asyncio.run(use_everything(url))
    except AuthenticationFailed:
        return False
    return True


def test_the_redis_user_of_the_docs_may_do_what_is_needed_and_no_more(empty_redis: RedisServer) -> None:
    user, *rule = acl_rule()
    url = empty_redis.url.replace("redis://", f"redis://{user}:secret@")
    needed = [word for word in rule if word.startswith("+") and word != "+select"]
    not_needed = []
    with Redis.from_url(empty_redis.url) as admin:
        try:
            admin.execute_command("ACL", "SETUSER", user, "reset", *rule)
            assert may_use_everything(url)
            for command in needed:
                admin.execute_command("ACL", "SETUSER", user, f"-{command[1:]}")
                admin.script_flush()  # or nobody would need EVAL
                if may_use_everything(url):
                    not_needed.append(command)
                admin.execute_command("ACL", "SETUSER", user, command)
        finally:
            admin.execute_command("ACL", "DELUSER", user)
    assert not not_needed
