"""Which store a URL names, and how it is shown."""

import os
import re
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webai_api import open_store
from webai_api.errors import InvalidInput, InvalidType
from webai_api.stores.memory import MemoryStore
from webai_api.stores.redis import RedisStore
from webai_api.stores.sqlite import SQLiteStore
from webai_api.types import Item
from webai_api.urls import STORES, redacted

GOOD: list[tuple[str, type]] = [
    ("memory://", MemoryStore),
    ("memory:///", MemoryStore),
    ("MEMORY://", MemoryStore),
    (" memory:// ", MemoryStore),
    ("sqlite:///relative.db", SQLiteStore),
    ("sqlite:////tmp/absolute.db", SQLiteStore),
    ("sqlite:///data/sessions.db", SQLiteStore),
    ("SQLite:///with%20space%3F.db", SQLiteStore),
    ("redis://localhost", RedisStore),
    ("redis://localhost:6380/15", RedisStore),
    ("redis://:p%40ss@host:6379/0", RedisStore),
    ("redis://user:p%2Fss@[::1]:6379/0", RedisStore),
    ("rediss://user:pass@host:6379/0?ssl_ca_certs=/ca.pem", RedisStore),
]
BAD: list[tuple[Any, str]] = [
    ("", "unknown store scheme"),
    ("sessions.db", "unknown store scheme"),
    ("/var/lib/sessions.db", "unknown store scheme"),
    ("postgres://localhost/db", "unknown store scheme 'postgres'; known: memory://, sqlite://, redis://, rediss://"),
    ("http://localhost", "unknown store scheme 'http'"),
    ("redis+sentinel://host:26379/mymaster", r"redis\+sentinel:// \(Redis Sentinel\) is reserved .*; use redis://"),
    ("redis+cluster://host:7000", r"redis\+cluster:// \(Redis Cluster\) is reserved .*; use redis://"),
    ("memory://name", "memory:// takes nothing"),
    ("memory:///name", "memory:// takes nothing"),
    ("memory://?a=b", "memory:// takes nothing"),
    ("memory://#a", "memory:// takes nothing"),
    ("sqlite://", "three slashes"),
    ("sqlite:///", "three slashes"),
    ("sqlite:////", "three slashes"),
    ("sqlite://relative.db", "three slashes"),
    ("sqlite://host/file.db", "three slashes"),
    ("sqlite:file.db", "three slashes"),
    ("sqlite:/tmp/file.db", "three slashes"),
    ("sqlite:///folder/", "three slashes"),
    ("sqlite:///a.db?mode=ro", "takes no options"),
    ("sqlite:///a.db#x", "takes no options"),
    ("sqlite:///:memory:", "must name a file"),
    ("sqlite:///a%00b.db", "must name a file"),
    ("sqlite:///a\nb.db", "control characters"),
    ("redis://", "redis://"),
    ("redis:///0", "redis://"),
    ("redis://host:0/0", "redis://"),
    ("redis://host:70000/0", "malformed"),
    ("redis://host:port/0", "malformed"),
    ("redis://host/zero", "redis://"),
    ("redis://host/-1", "redis://"),
    ("redis://host/0/1", "redis://"),
    ("redis://host/0#x", "redis://"),
    ("redis://host/0?decode_responses=true", "options that are not known; known: "),
    ("redis://[::1/0", "malformed"),
]


@pytest.mark.parametrize(("url", "kind"), GOOD, ids=[url for url, _ in GOOD])
async def test_the_scheme_names_the_store(
    url: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with aclosing(open_store(url)) as store:
        assert type(store) is kind
    assert not [*os.scandir()]  # nothing is made before the first use


@pytest.mark.parametrize(("url", "says"), BAD, ids=[str(url)[:40] for url, _ in BAD])
def test_a_url_that_names_no_store_is_refused_with_the_remedy(url: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        open_store(url)


@pytest.mark.parametrize("url", [None, 7, b"memory://", Path("a.db"), True], ids=lambda v: type(v).__name__)
def test_a_url_is_text(url: Any) -> None:
    with pytest.raises(InvalidType, match="a store URL must be a str"):
        open_store(url)


def test_an_unknown_scheme_is_answered_with_all_the_known() -> None:
    with pytest.raises(InvalidInput) as caught:
        open_store("mongodb://host/db")
    assert [f"{scheme}://" for scheme in STORES] == re.findall(r"\w+://", str(caught.value).split("known:")[1])


def test_a_very_long_scheme_is_not_echoed_whole() -> None:
    with pytest.raises(InvalidInput) as caught:
        open_store("x" * 100_000 + "://")
    assert len(str(caught.value)) < 200


async def test_three_slashes_are_relative_to_the_working_directory_at_that_time_and_four_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    stores = [open_store("sqlite:///new/a%20b@c.db"), open_store(f"sqlite:///{tmp_path}/absolute.db")]
    monkeypatch.chdir(tmp_path)
    for store in stores:
        async with aclosing(store):
            await store.append("s", [Item(data={"role": "user", "content": "hi"})])
    assert (there / "new" / "a b@c.db").is_file()
    assert (tmp_path / "absolute.db").is_file()


# How it is shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("sqlite:///data/sessions.db", "sqlite:///data/sessions.db"),
        ("sqlite:////srv/a@b:c.db", "sqlite:////srv/a@b:c.db"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@localhost:6379/0", "redis://:***@localhost:6379/0"),
        ("redis://ada:secret@localhost/1", "redis://ada:***@localhost/1"),
        ("redis://ada@localhost/1", "redis://ada@localhost/1"),
        ("rediss://ada:s@[::1]:6379/0?ssl_ca_certs=/ca.pem", "rediss://ada:***@[::1]:6379/0"),
        ("redis://localhost/0?password=secret", "redis://localhost/0"),
        ("redis://ada?password=secret@x", "redis://ada:***@x"),
        ("redis://:se/c@ret@localhost/0", "redis://:***@localhost/0"),
        ("redis://:se?c#ret@localhost/0", "redis://:***@localhost/0"),
        ("redis://:secret@[::1/0", "redis://:***@[::1/0"),
        ("sqlite://ada:secret@host/file.db", "sqlite://ada:***@host/file.db"),
        (":secret@localhost", "(malformed URL)"),
        ("sessions.db", "sessions.db"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert redacted(f" {url} ") == shown


_letters = st.sampled_from("#/?@:%[]&= aé") | st.characters(exclude_categories=["Cs"])
_secrets = st.text(_letters, max_size=20).map(lambda text: f"S3cr<{text}>t")
_accounts = st.sampled_from(["", "ada"])


@given(secret=_secrets, user=_accounts, scheme=st.sampled_from(["redis", "rediss", "redis+sentinel", "postgres", "x"]))
def test_no_password_is_ever_shown_however_it_is_written(secret: str, user: str, scheme: str) -> None:
    for written in (quote(secret, safe=""), secret):
        url = f"{scheme}://{user}:{written}@host:6379/0"
        shown = redacted(url)
        assert shown == f"{scheme}://{user}:***@host:6379/0"
        for options in ("?ssl_ca_certs=a", f"?password={quote(secret, safe='')}"):
            assert "S3cr" not in redacted(url + options)


@given(
    secret=_secrets, user=_accounts, rest=st.sampled_from(["host:6379/0", "host:port/0", "[::1/0", "host/0?a=b", ""])
)
def test_no_error_tells_the_password(secret: str, user: str, rest: str) -> None:
    for written in (quote(secret, safe=""), secret):
        for scheme in ("redis", "memory", "sqlite", "x"):
            told = ""
            try:
                open_store(f"{scheme}://{user}:{written}@{rest}")
            except InvalidInput as error:
                told = f"{error} {error.__cause__!r}"
            assert "S3cr" not in told
