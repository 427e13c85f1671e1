"""The command line, as a user meets it: as a process."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.server.harness import ServerProcess, clean_environment
from tests.servers import RedisServer, free_port
from webai_api import SessionManager, SyncSessionManager, __version__
from webai_api.cli.terminal import json_escaped, printable, table

CONTROLS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x202E, 0x2066, 0xFEFF, 0xE0001]))
HELLO = "Hello, my name is Ada."


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.fixture
def cli(folder: Path) -> Callable[..., Ended]:
    """Run ``webai-api`` in an empty folder, with an environment that configures nothing else."""

    def run(*arguments: str, stdin: str | bytes = "", timeout: float = 20, **environ: str) -> Ended:
        ended = subprocess.run(
            [sys.executable, "-m", "webai_api", *arguments],
            cwd=folder,
            env=clean_environment(**environ),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        assert b"Traceback" not in ended.stderr, ended.stderr.decode()
        return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    return run


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that processes can share."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("empty_redis")
        return server.url
    return f"sqlite:///{tmp_path}/s.db"


@pytest.fixture
async def filled(url: str) -> AsyncIterator[SessionManager]:
    """The store, with two sessions in it."""
    async with SessionManager.from_url(url) as manager:
        await manager.store_message("first", "user", "Hello!", {"n": 1})
        await manager.store_message("first", "assistant", "Hi thére!")
        await manager.store_message("second-longer", "user", "Hm.")
        yield manager


def one_line(ended: Ended, code: int) -> str:
    """Return the error, which must be the one line that is neither usage nor where the store is."""
    lines = [line for line in ended.err.splitlines() if not line.startswith(("store: ", "session: "))]
    assert (ended.code, len(lines)) == (code, 1), ended
    assert lines[0].startswith("webai-api: ")
    return lines[0]


# What there is


def test_the_version_is_told(cli: Callable[..., Ended]) -> None:
    assert cli("--version") == Ended(0, f"webai-api {__version__}\n", "")


@pytest.mark.parametrize(
    "command", ["", "serve", "chat", "sessions", "sessions list", "sessions show", "sessions clear"]
)
def test_help_fits_a_small_screen(cli: Callable[..., Ended], command: str) -> None:
    ended = cli(*command.split(), "--help", COLUMNS="80")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["unknown"], ["sessions"], ["sessions", "unknown"], ["sessions", "show"], ["sessions", "clear"]),
        *(["sessions", "list", "--limit", "-1"], ["sessions", "list", "--limit", "x"], ["--unknown"]),
        *(["serve", "--port", "70000"], ["serve", "--port", "x"], ["serve", "--workers", "0"]),
        *(["sessions", "show", "s", "--last", "1.5"], ["sessions", "show", "a", "b"]),
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_be_is_a_usage_error(cli: Callable[..., Ended], arguments: Sequence[str]) -> None:
    ended = cli(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("usage: webai-api")
    assert "error: " in ended.err.splitlines()[-1]


# sessions


async def test_list_shows_a_table_with_the_newest_first(
    cli: Callable[..., Ended], filled: SessionManager, url: str
) -> None:
    ended = cli("sessions", "list", "--store", url)
    assert ended.code == 0
    assert ended.err == f"store: {url} (--store)\n"
    head, *rows = (re.split(r"\s{2,}", line) for line in ended.out.splitlines())
    assert head == ["SESSION", "MESSAGES", "ACTIVE", "EXPIRES"]
    assert sorted(row[:2] for row in rows) == [["first", "2"], ["second-longer", "1"]]
    assert all(re.fullmatch(r"\d+s ago", row[2]) and row[3] == "in 30d" for row in rows)
    column = ended.out.index("MESSAGES")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in ended.out.splitlines())


async def test_list_prints_json(cli: Callable[..., Ended], filled: SessionManager, url: str) -> None:
    listed = cli("sessions", "list", "--store", url, "--json").json
    assert {session["id"]: session["count"] for session in listed} == {"first": 2, "second-longer": 1}
    session = (await filled.read("first")).session
    assert session is not None
    shown = next(s for s in listed if s["id"] == "first")
    assert (shown["version"], shown["metadata"]) == (session.version, {})
    assert shown["expires_at"] == pytest.approx(session.expires_at)


async def test_list_takes_a_prefix_and_a_limit(cli: Callable[..., Ended], filled: SessionManager, url: str) -> None:
    def ids(*options: str) -> list[str]:
        return [session["id"] for session in cli("sessions", "list", "--store", url, "--json", *options).json]

    assert ids("--prefix", "fi") == ["first"]
    assert ids("--prefix", "none") == []
    assert len(ids("--limit", "1")) == 1
    assert len(ids("--limit", "0")) == 2


async def test_show_prints_the_messages(cli: Callable[..., Ended], filled: SessionManager, url: str) -> None:
    ended = cli("sessions", "show", "first", "--store", url)
    assert (ended.code, ended.out) == (0, "[1] user: Hello!\n[2] assistant: Hi thére!\n")
    assert cli("sessions", "show", "first", "--store", url, "--last", "1").out == "[2] assistant: Hi thére!\n"
    assert cli("sessions", "show", "first", "--store", url, "--last", "0").out == ""


async def test_show_prints_json(cli: Callable[..., Ended], filled: SessionManager, url: str) -> None:
    shown = cli("sessions", "show", "first", "--store", url, "--json").json
    items = (await filled.read("first")).items
    assert [(item["seq"], item["id"], item["content"]) for item in shown["items"]] == [
        (item.seq, item.id, item.data["content"]) for item in items
    ]
    assert shown["items"][0]["metadata"] == {"n": 1}
    assert (shown["id"], shown["count"], shown["corrupt"]) == ("first", 2, [])


async def test_clear_deletes_and_tells_what_did_not_exist(
    cli: Callable[..., Ended], filled: SessionManager, url: str
) -> None:
    ended = cli("sessions", "clear", "first", "missing", "--store", url)
    assert (ended.code, ended.out) == (1, "first: cleared\nmissing: does not exist\n")
    assert await filled.get_history("first") == []
    assert await filled.get_history("second-longer") != []
    ended = cli("sessions", "clear", "second-longer", "--store", url, "--json")
    assert (ended.code, ended.json) == (0, {"second-longer": True})


async def test_a_tenants_sessions_are_its_own(cli: Callable[..., Ended], filled: SessionManager, url: str) -> None:
    async with SessionManager.from_url(url, tenant="acme") as acme:
        await acme.store_message("theirs", "user", "Hi")
    listed = cli("sessions", "list", "--store", url, "--tenant", "acme", "--json").json
    assert [session["id"] for session in listed] == ["theirs"]
    assert cli("sessions", "show", "theirs", "--store", url).code == 1
    assert cli("sessions", "clear", "first", "--store", url, "--tenant", "acme").code == 1


async def test_a_session_that_does_not_exist_is_one_line(
    cli: Callable[..., Ended], filled: SessionManager, url: str
) -> None:
    assert one_line(cli("sessions", "show", "missing", "--store", url), 1) == (
        "webai-api: session 'missing' does not exist"
    )


async def test_nothing_stored_can_command_the_terminal(cli: Callable[..., Ended], url: str) -> None:
    text = f"a{CONTROLS}b"
    async with SessionManager.from_url(url) as manager:
        turn: list[dict[str, Any]] = [
            {"role": "user", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}, {"type": text}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": text, "arguments": text}}]},
        ]
        await manager.store_turn("odd \u202e\u200b", turn)
    for arguments in (["list"], ["show", "odd \u202e\u200b"]):
        for options in ([], ["--json"]):
            ended = cli("sessions", *arguments, "--store", url, *options)
            assert ended.code == 0
            obeyed = [c for c in ended.out + ended.err if unicodedata.category(c)[0] == "C" and c not in "\n\t"]
            assert obeyed == []
    assert cli("sessions", "show", "odd \u202e\u200b", "--store", url, "--json").json["items"][0]["content"] == text


async def test_whatever_other_programs_stored_is_shown_somehow(
    cli: Callable[..., Ended], empty_redis: RedisServer
) -> None:
    entries = [
        '{"role": "user", "content": "by hand"}',
        "no JSON",
        '{"role": 7, "content": [1, {"type": "text", "text": 5}, {}], "tool_calls": 3}',
        '{"tool_calls": [1, {}, {"function": null}, {"function": 2}, {"function": {"name": "f"}}]}',
        "{}",
    ]
    async with aclosing(Redis.from_url(empty_redis.url)) as client:
        await client.rpush("session:s", *entries)
    ended = cli("sessions", "show", "s", "--store", empty_redis.url)
    assert ended.code == 0
    assert ended.out.startswith("[1] user: by hand\n[3] 7: ")
    assert "calls f(None)" in ended.out
    assert "1 entries cannot be decoded: 2" in ended.err
    assert cli("sessions", "show", "s", "--store", empty_redis.url, "--json").json["corrupt"] == [2]


# Which store


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "s"], ["clear", "s"]], ids=" ".join)
def test_looking_at_the_default_file_does_not_make_it(
    cli: Callable[..., Ended], folder: Path, arguments: Sequence[str]
) -> None:
    ended = cli("sessions", *arguments)
    assert ended.err.splitlines()[0] == "store: sqlite:///data/sessions.db (the default)"
    assert "there are no sessions yet" in ended.err
    assert ended.code == (0 if arguments[0] == "list" else 1)
    assert (
        ended.out
        == {"list": "", "list --json": "[]\n", "show s": "", "clear s": "s: does not exist\n"}[" ".join(arguments)]
    )
    assert list(folder.iterdir()) == []


def test_the_store_is_the_one_that_the_environment_names_and_it_is_said_which(
    cli: Callable[..., Ended], folder: Path, empty_redis: RedisServer
) -> None:
    parts = {"REDIS_ENABLED": "true", "REDIS_PORT": str(empty_redis.port)}
    assert cli("sessions", "list", **parts).err == (
        f"store: redis://localhost:{empty_redis.port}/0 (the REDIS_* variables)\n"
    )
    for name in ("mine.db", "other.db", "from-file.db"):
        said = cli("chat", "--session", "s", "Hi", SESSION_STORE=f"sqlite:///{name}")  # makes the file
        assert said.err.startswith(f"store: sqlite:///{name} (SESSION_STORE)\n")
    both = {**parts, "SESSION_STORE": "sqlite:///mine.db"}
    assert cli("sessions", "list", **both).err == "store: sqlite:///mine.db (SESSION_STORE)\n"
    assert (
        cli("sessions", "list", "--store", "sqlite:///other.db", **both).err == "store: sqlite:///other.db (--store)\n"
    )
    (folder / ".env").write_text("SESSION_STORE=sqlite:///from-file.db\n")
    assert cli("sessions", "list").err == "store: sqlite:///from-file.db (SESSION_STORE)\n"


@pytest.mark.parametrize("verb", [("list",), ("show", "s"), ("clear", "s")])
def test_a_file_that_is_not_there_is_neither_made_nor_taken_for_an_empty_store(
    cli: Callable[..., Ended], folder: Path, verb: tuple[str, ...]
) -> None:
    ended = cli("sessions", *verb, "--store", "sqlite:///no/typo.db")
    assert "there is no file 'no/typo.db'" in one_line(ended, 1)
    assert not (folder / "no").exists()


def test_a_password_is_not_shown(cli: Callable[..., Ended]) -> None:
    with RedisServer(password="s3cret/#?") as server:
        ended = cli("sessions", "list", REDIS_ENABLED="1", REDIS_PORT=str(server.port), REDIS_PASSWORD="s3cret/#?")
        assert (ended.code, ended.out) == (0, "")
        wrong = cli("sessions", "list", "--store", f"redis://:s3cret-wrong@127.0.0.1:{server.port}/0")
        assert "password was refused" in one_line(wrong, 1)
    assert "s3cret" not in ended.err + wrong.err
    assert ":***@" in ended.err


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "says"),
    [
        (["list", "--store", "mongodb://h"], {}, 2, "unknown store scheme 'mongodb'; known: memory://"),
        (["list", "--store", "redis+sentinel://h"], {}, 2, "reserved and not supported yet"),
        (["list", "--store", "sqlite:///s.db", "--tenant", ""], {}, 2, "tenant must not be empty"),
        (["show", "", "--store", "sqlite:///s.db"], {}, 2, "session_id must not be empty"),
        (["show", "a\nb", "--store", "sqlite:///s.db"], {}, 2, "control characters"),
        (["list", "--store", "sqlite:////proc/none/s.db"], {}, 1, "/proc/none"),
        (["list"], {"REDIS_ENABLED": "maybe"}, 2, "REDIS_ENABLED must be true or false"),
        (["list"], {"REDIS_ENABLED": "1", "REDIS_PORT": "x"}, 2, "REDIS_PORT must be"),
        (["list"], {"SESSION_TTL": "0"}, 2, "SESSION_TTL must be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_one_line_with_the_remedy(
    cli: Callable[..., Ended], arguments: list[str], environ: dict[str, str], code: int, says: str
) -> None:
    assert says in one_line(cli("sessions", *arguments, **environ), code)


def test_a_file_of_another_kind_is_one_line(cli: Callable[..., Ended], folder: Path) -> None:
    (folder / "notes.db").write_text("These are my notes, and no database. " * 100)
    assert "notes.db" in one_line(cli("sessions", "list", "--store", "sqlite:///notes.db"), 1)
    with sqlite3.connect(folder / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    assert "other.db" in one_line(cli("sessions", "list", "--store", "sqlite:///other.db"), 1)


def test_a_redis_that_is_not_there_is_one_line(cli: Callable[..., Ended]) -> None:
    port = free_port()
    told = one_line(cli("sessions", "list", "--store", f"redis://127.0.0.1:{port}/0"), 1)
    assert f"redis at 127.0.0.1:{port} cannot be reached" in told


def test_output_that_nobody_reads_to_its_end_is_no_error(folder: Path) -> None:
    with SyncSessionManager.from_url(f"sqlite:///{folder}/s.db") as manager:
        manager.store_turn("s", [{"role": "user", "content": "x" * 100_000}] * 5)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "webai_api", "sessions", "show", "s", "--store", "sqlite:///s.db"],
            cwd=folder,
            env=clean_environment(),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "store: sqlite:///s.db (--store)\n")


# chat


def test_chat_says_one_thing_and_remembers_it_in_the_embedded_store(cli: Callable[..., Ended], folder: Path) -> None:
    ended = cli("chat", "--session", "s", *HELLO.split())
    assert (ended.code, ended.out) == (0, f'You said: "{HELLO}". I remember 0 earlier messages.\n')
    assert ended.err == "store: sqlite:///data/sessions.db (the default)\nsession: s, model: demo\n"
    assert (folder / "data" / "sessions.db").is_file()
    assert cli("chat", "--session", "s", "What is my name?").out == "Your name is Ada.\n"
    assert "I do not know" in cli("chat", "What is my name?").out  # another session
    assert cli("sessions", "show", "s", "--last", "1").out == "[4] assistant: Your name is Ada.\n"


def test_chat_reads_lines_until_they_end(cli: Callable[..., Ended], url: str) -> None:
    ended = cli(
        "chat", "--session", "s", "--store", url, stdin=f"{HELLO}\n\n  \nWhat is my name?\nWhat did I say first?"
    )
    assert ended.code == 0
    assert ended.out.splitlines()[1:] == ["Your name is Ada.", f'You said first: "{HELLO}".']
    assert cli("sessions", "list", "--store", url, "--json").json[0]["count"] == 6


def test_chat_without_a_word_says_nothing(cli: Callable[..., Ended]) -> None:
    ended = cli("chat", "--store", "memory://", stdin="\n")
    assert (ended.code, ended.out) == (0, "")
    assert re.search(r"^session: chat-[0-9a-f]{8}, model: demo$", ended.err, re.MULTILINE)


def test_chat_in_two_tenants_is_two_conversations(cli: Callable[..., Ended]) -> None:
    url = "sqlite:///s.db"
    cli("chat", "--store", url, "--session", "s", "--tenant", "acme", HELLO)
    assert "I do not know" in cli("chat", "--store", url, "--session", "s", "What is my name?").out
    assert "Ada" in cli("chat", "--store", url, "--session", "s", "--tenant", "acme", "What is my name?").out


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["--model", "gemini-2.0-flash", "Hi"], "", 1, "GEMINI_API_KEY"),
        (["--model", "no-such-model", "Hi"], "", 1, "no-such-model"),
        (["--session", "a\nb", "Hi"], "", 2, "control characters"),
        (["--session", "", "Hi"], "", 2, "--session must not be empty"),
        (["--url", "localhost:6969", "Hi"], "", 2, "--url must be an http:// or https:// URL"),
        (["--url", "http://[::1", "Hi"], "", 2, "--url must be an http:// or https:// URL"),
        (["--url", "http://h:99999", "Hi"], "", 2, "--url must be an http:// or https:// URL"),
        (["--store", "mongodb://h", "Hi"], "", 2, "unknown store scheme"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_chat_cannot_do_is_one_line(
    cli: Callable[..., Ended], arguments: list[str], stdin: str | bytes, code: int, says: str
) -> None:
    ended = cli("chat", *(["--store", "memory://"] if "--store" not in arguments else []), *arguments, stdin=stdin)
    assert says in one_line(ended, code)
    assert ended.out == ""


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_input_that_is_no_text_is_one_line(cli: Callable[..., Ended], errors: str) -> None:
    ended = cli("chat", "--store", "memory://", stdin=b"\xff\xfe\n", PYTHONIOENCODING=f"utf-8:{errors}")
    assert "not text" in one_line(ended, 2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, WEBAI_API_KEYS="acme:the-key") as running:
        yield running


def test_chat_speaks_to_a_running_server(cli: Callable[..., Ended], server: ServerProcess, folder: Path) -> None:
    for url in (server.url, f"{server.url}/", f"{server.url}/v1", f"{server.url}/v1/"):
        said = cli("chat", "--url", url, "--session", url, HELLO, WEBAI_API_KEY="the-key")
        assert (said.code, said.err) == (0, f"session: {url}, model: demo\n")
    asked = cli("chat", "--url", server.url, "--session", server.url, stdin="What is my name?", WEBAI_API_KEY="the-key")
    assert asked.out == "Your name is Ada.\n"
    assert list(folder.iterdir()) == []  # the server keeps it
    refused = cli("chat", "--url", server.url, HELLO, WEBAI_API_KEY="wrong-s3cret")
    assert "API key" in one_line(refused, 1)
    assert "s3cret" not in refused.err


def test_a_server_that_is_not_there_is_one_line(cli: Callable[..., Ended]) -> None:
    assert "does not answer" in one_line(cli("chat", "--url", f"http://127.0.0.1:{free_port()}", HELLO), 1)


# What may be shown


def test_a_table_has_columns() -> None:
    assert table(("A", "LONGER"), [("1", "2"), ("three", "")]) == "A      LONGER\n1      2\nthree"


def test_text_is_shown_without_what_a_terminal_obeys() -> None:
    assert printable("a\x1b[31mb\x9bc\u202ed\n\té\U0001f642") == "a\ufffd[31mb\ufffdc\ufffdd\n\té\U0001f642"
    value = {"a": f"x{CONTROLS}é\U0001f642"}
    escaped = json_escaped(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(escaped) == value
    assert "é\U0001f642" in escaped
