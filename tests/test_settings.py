"""Every variable that is read, how it may be written, and what is said about it otherwise."""

import math
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webai_api import SessionManager
from webai_api.errors import InvalidInput
from webai_api.limits import DEFAULT_LIMITS, TTL_MAX
from webai_api.settings import DEFAULT_TTL, ServerSettings, StoreSettings
from webai_api.stores.redis.connect import connection_options

ON = {"REDIS_ENABLED": "true"}
PREFIXES = ("WEBAI_", "REDIS_", "SESSION_", "GEMINI_", "OPENAI_", "OLLAMA_")


def store(**environ: str) -> StoreSettings:
    return StoreSettings.from_env(environ)


def server(**environ: str) -> ServerSettings:
    return ServerSettings.from_env(environ)


def redis_url(**environ: str) -> str | None:
    return store(**{**ON, **environ}).redis_url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, in an environment that sets nothing of ours."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    return tmp_path


# What is refused


NOT_FLAGS = ["2", "enabled", "tru", "y", "t", "-1", "none", "null", "true false", "'true'", "1.0"]
NOT_PORTS = ["0", "70000", "65536", "-6379", "6379.0", "port", "63 79", "0x18eb", "1e3", "9" * 400, "٦٣٧٩", "tcp://"]
NOT_PORTS += [
    "tcp://10.0.0.1",
    "tcp://10.0.0.1:0",
    "tcp://10.0.0.1:99999",
    "tcp://10.0.0.1:abc",
    "tcp://[::1",
    "udp://h:1",
]
NOT_TTLS = [
    "0",
    "-1",
    "0.0",
    "junk",
    "1h",
    "nan",
    "inf",
    "Infinity",
    "1e9",
    "315360001",
    "9" * 400,
    "3600 # a # b c\nx",
    "٣٦",
]
NOT_NUMBERS = ["-1", "1.5", "many", "1e3", "0x10", "9" * 13, "9" * 400, "1 2", "١"]
BAD: list[tuple[str, str, dict[str, str]]] = [
    *(("REDIS_ENABLED", value, {}) for value in NOT_FLAGS),
    *(("REDIS_PORT", value, ON) for value in NOT_PORTS),
    *((name, value, {}) for name in ("REDIS_TTL", "SESSION_TTL") for value in NOT_TTLS),
    *(("REDIS_DB", value, ON) for value in [*NOT_NUMBERS, "1000001"]),
    *(("REDIS_HOST", value, ON) for value in ("a b", "host/path", "user@host", "host?x", "a\nb", "höst", "[::1]")),
    *(
        ("REDIS_URL", value, ON)
        for value in ("localhost:6379", "http://host", "memory://", "sqlite:///a.db", "//h", " ")
    ),
    ("REDIS_USERNAME", "ada-the-user", ON),
    *(
        (f"WEBAI_MAX_{name}", value, {})
        for name in ("ID_BYTES", "CONTENT_BYTES", "METADATA_BYTES", "DEPTH", "BODY_BYTES")
        for value in [*NOT_NUMBERS, "0", "999999999999"]
    ),
    ("WEBAI_MAX_ID_BYTES", "63", {}),
    *(("WEBAI_PORT", value, {}) for value in [*NOT_NUMBERS, "65536", "tcp://h:1"]),
    *(("WEBAI_HISTORY_LIMIT", value, {}) for value in [*NOT_NUMBERS, "0", "1000001"]),
    *(("WEBAI_LOG_LEVEL", value, {}) for value in ("loud", "20", "warn")),
    *(("WEBAI_ON_INTERRUPT", value, {}) for value in ("keep", "true")),
    *(
        ("WEBAI_API_KEYS", value, {})
        for value in ("just-a-key", "tenant:", ":the-key", "ten ant:the-key", "ténant:the-key", f"{'x' * 65}:the-key")
    ),
    *(("WEBAI_API_KEYS", value, {}) for value in ("a:the key", "a:the-key,b", "a:the-key,b:the-key", "a/b:the-key")),
    *(
        (name, value, {})
        for name in ("GEMINI_BASE_URL", "OLLAMA_BASE_URL", "WEBAI_UPSTREAM_LOCAL_URL")
        for value in ("localhost:11434", "ftp://h", "http://", "https://h:99999", "http://[::1", "http://h:0")
    ),
]


@pytest.mark.parametrize(("name", "value", "others"), BAD, ids=[f"{name}={value!a:.24}" for name, value, _ in BAD])
def test_what_cannot_be_understood_is_an_error_that_names_the_variable_and_not_its_value(
    name: str, value: str, others: Mapping[str, str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        server(**{**others, name: value})
    told = str(caught.value)
    assert name in told
    assert len(told) < 200
    if len(value.strip()) > 7:  # shorter ones may be a part of what is accepted, such as tcp://
        assert value.strip() not in told
        assert value.strip() not in repr(caught.value.__cause__)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=6))
def test_no_error_tells_what_was_in_a_variable(value: str) -> None:
    secret = f"s3cret{value}"
    for name in ("REDIS_ENABLED", "REDIS_PORT", "REDIS_DB", "REDIS_TTL", "REDIS_URL", "REDIS_HOST", "WEBAI_API_KEYS"):
        told = ""
        try:
            server(**{**ON, name: secret})
        except InvalidInput as error:
            told = f"{error} {error.__cause__!r}"
        assert "s3cret" not in told


# REDIS_*


@pytest.mark.parametrize(
    "value", ["1", "true", "yes", "on", "TRUE", "True", " yes ", "oN", "true  # as the guide says"]
)
def test_redis_is_on_however_that_is_written(value: str) -> None:
    assert store(REDIS_ENABLED=value).redis_url == "redis://localhost:6379/0"


@pytest.mark.parametrize("value", ["0", "false", "no", "off", "", "  ", "FALSE", " Off", "false # not yet"])
def test_redis_is_off_however_that_is_written(value: str) -> None:
    assert store(REDIS_ENABLED=value).store_url is None


def test_only_redis_enabled_enables_redis() -> None:
    others = {"REDIS_URL": "redis://h", "REDIS_HOST": "h", "REDIS_PORT": "1", "REDIS_PASSWORD": "p"}
    assert (store(**others).redis_url, store(**others).store_url) == (None, None)


def test_what_kubernetes_injects_does_no_harm_where_redis_is_off() -> None:
    assert store(REDIS_PORT="tcp://10.0.0.1:6379", REDIS_SERVICE_HOST="10.0.0.1").store_url is None
    assert store(REDIS_PORT="junk").store_url is None


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "redis://localhost:6379/0"),
        ({"REDIS_HOST": "redis"}, "redis://redis:6379/0"),
        ({"REDIS_HOST": " redis  # the service"}, "redis://redis:6379/0"),
        ({"REDIS_HOST": "10.0.0.1", "REDIS_PORT": "6380", "REDIS_DB": "3"}, "redis://10.0.0.1:6380/3"),
        ({"REDIS_HOST": "::1"}, "redis://[::1]:6379/0"),
        ({"REDIS_PORT": " 6380  # the other one"}, "redis://localhost:6380/0"),
        ({"REDIS_PORT": "06380"}, "redis://localhost:6380/0"),
        ({"REDIS_PORT": ""}, "redis://localhost:6379/0"),
        ({"REDIS_PORT": "tcp://10.0.0.1:6380"}, "redis://10.0.0.1:6380/0"),
        ({"REDIS_PORT": "tcp://[fd00::1]:6380"}, "redis://[fd00::1]:6380/0"),
        ({"REDIS_PORT": "tcp://10.0.0.1:6380", "REDIS_HOST": "redis"}, "redis://redis:6380/0"),
        ({"REDIS_DB": "0"}, "redis://localhost:6379/0"),
        ({"REDIS_PASSWORD": ""}, "redis://localhost:6379/0"),
        ({"REDIS_PASSWORD": "p"}, "redis://:p@localhost:6379/0"),
        ({"REDIS_PASSWORD": "p", "REDIS_USERNAME": "ada"}, "redis://ada:p@localhost:6379/0"),
        ({"REDIS_URL": "rediss://ada:p@h:1/2"}, "rediss://ada:p@h:1/2"),
        ({"REDIS_URL": "redis://h", "REDIS_HOST": "x", "REDIS_PORT": "9", "REDIS_DB": "9"}, "redis://h"),
        ({"REDIS_URL": "", "REDIS_HOST": "x"}, "redis://x:6379/0"),
    ],
    ids=str,
)
def test_the_parts_make_the_url_and_a_url_beats_the_parts(environ: dict[str, str], url: str) -> None:
    assert redis_url(**environ) == url
    assert store(**{**ON, **environ}).store_url == url


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    st.text(st.sampled_from("$#:@/?%[]{} \\\"'ä"), min_size=1),
)
def test_a_password_of_any_letters_reaches_redis_as_it_is(letters: str, signs: str) -> None:
    for password in (letters, signs, letters + signs):
        url = redis_url(REDIS_PASSWORD=password, REDIS_USERNAME=signs)
        assert url is not None
        options = connection_options(url)
        assert (options["password"], options["username"]) == (password, signs)
        assert (options["host"], options["port"]) == ("localhost", 6379)


# How long


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3600", 3600),
        ("3600  # Session TTL in seconds (1 hour)", 3600),
        ("3600\t# one hour", 3600),
        (" 60 ", 60),
        ("0.5", 0.5),
        ("none", math.inf),
        ("NONE", math.inf),
        ("315360000", TTL_MAX),
    ],
)
def test_a_ttl_is_a_number_of_seconds_or_the_word_none(value: str, seconds: float) -> None:
    assert store(REDIS_TTL=value).redis_ttl == seconds
    assert store(SESSION_TTL=value).session_ttl == seconds


@pytest.mark.parametrize(
    ("environ", "of_the_store", "of_the_guides_class"),
    [
        ({}, DEFAULT_TTL, 3600),
        ({"REDIS_TTL": "60"}, DEFAULT_TTL, 60),
        ({"REDIS_TTL": ""}, DEFAULT_TTL, 3600),
        (ON, 3600, 3600),
        ({**ON, "REDIS_TTL": "60"}, 60, 60),
        ({**ON, "REDIS_TTL": "none"}, math.inf, math.inf),
        ({"SESSION_TTL": "90"}, 90, 90),
        ({**ON, "SESSION_TTL": "90", "REDIS_TTL": "60"}, 90, 90),
        ({**ON, "SESSION_TTL": "none", "REDIS_TTL": "60"}, math.inf, math.inf),
        ({**ON, "SESSION_STORE": "sqlite:///a.db", "REDIS_TTL": "60"}, DEFAULT_TTL, 60),
        ({"SESSION_STORE": "sqlite:///a.db"}, DEFAULT_TTL, 3600),
    ],
    ids=str,
)
def test_session_ttl_wins_and_redis_ttl_holds_where_redis_was_chosen_by_its_variables(
    environ: dict[str, str], of_the_store: float, of_the_guides_class: float
) -> None:
    settings = store(**environ)
    assert (settings.ttl, settings.redis_ttl) == (of_the_store, of_the_guides_class)


def test_session_store_beats_the_redis_variables_and_leaves_them_to_the_guides_class() -> None:
    settings = store(**ON, SESSION_STORE="sqlite:///a.db")
    assert (settings.store_url, settings.redis_url) == ("sqlite:///a.db", "redis://localhost:6379/0")


def test_limits_are_the_documented_ones_unless_set() -> None:
    assert store().limits == DEFAULT_LIMITS
    limits = store(
        WEBAI_MAX_ID_BYTES="64", WEBAI_MAX_CONTENT_BYTES="1", WEBAI_MAX_METADATA_BYTES="2", WEBAI_MAX_DEPTH="4"
    ).limits
    assert (limits.id_bytes, limits.content_bytes, limits.metadata_bytes, limits.depth) == (64, 1, 2, 4)


# Secrets in files


SECRETS = ["REDIS_PASSWORD", "REDIS_URL", "SESSION_STORE", "WEBAI_API_KEYS", "GEMINI_API_KEY", "OPENAI_API_KEY"]


@pytest.mark.parametrize("name", [*SECRETS, "WEBAI_UPSTREAM_LOCAL_KEY", "REDIS_USERNAME"])
def test_every_secret_can_be_in_a_file(name: str, tmp_path: Path) -> None:
    secret = {"REDIS_URL": "redis://:s3cret@h", "SESSION_STORE": "redis://:s3cret@h", "WEBAI_API_KEYS": "a:s3cret"}
    value = secret.get(name, "s3cret  # not a comment")
    others = {**ON, "WEBAI_UPSTREAM_LOCAL_URL": "http://localhost:1"}
    if name == "REDIS_USERNAME":
        others["REDIS_PASSWORD"] = "x"
    file = tmp_path / "secret"
    for ending in ("", "\n", "\r\n"):
        file.write_bytes((value + ending).encode())
        assert server(**{**others, f"{name}_FILE": str(file)}) == server(**{**others, name: value})
    if name == "WEBAI_API_KEYS":
        return  # an empty file is refused: see below
    file.write_text("\n")
    others.pop("REDIS_PASSWORD", None)
    assert server(**{**others, f"{name}_FILE": str(file)}) == server(**others)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_and_its_file_are_not_both_accepted(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("redis://s3cret-in-file")
    with pytest.raises(InvalidInput, match=f"{name} and {name}_FILE are both set") as caught:
        server(**{**ON, name: "redis://s3cret", f"{name}_FILE": str(file)})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_the_variable(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s3cret"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match=f"{name}_FILE names a file that cannot be read") as caught:
        server(**{**ON, f"{name}_FILE": str(path)})
    assert "s3cret" not in str(caught.value)


# ./.env


def test_the_file_of_the_working_directory_is_read_and_the_environment_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text(
        "REDIS_ENABLED=true\nREDIS_HOST=from-file\nREDIS_TTL=60  # a minute\nexport REDIS_DB=2\n"
    )
    before = dict(os.environ)
    settings = StoreSettings.from_env()
    assert (settings.redis_url, settings.redis_ttl) == ("redis://from-file:6379/2", 60)
    assert dict(os.environ) == before
    monkeypatch.setenv("REDIS_HOST", "from-environment")
    assert StoreSettings.from_env().redis_url == "redis://from-environment:6379/2"
    monkeypatch.setenv("REDIS_ENABLED", "false")
    assert ServerSettings.from_env().store.store_url is None


def test_the_guides_own_file_is_understood(folder: Path) -> None:
    (folder / ".env").write_text(
        "# Redis Configuration (Optional)\n"
        "REDIS_ENABLED=false\n"
        "REDIS_HOST=localhost\n"
        "REDIS_PORT=6379\n"
        "REDIS_DB=0\n"
        "REDIS_PASSWORD=\n"
        "REDIS_TTL=3600  # Session TTL in seconds (1 hour)\n"
    )
    assert StoreSettings.from_env().store_url is None
    (folder / ".env").write_text((folder / ".env").read_text().replace("false", "true"))
    settings = StoreSettings.from_env()
    assert (settings.redis_url, settings.ttl) == ("redis://localhost:6379/0", 3600)


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ("pa$$word", "pa$$word"),
        ("${HOME}", "${HOME}"),
        ("$HOME", "$HOME"),
        ("a#b", "a#b"),
        ("a:b@c/d", "a:b@c/d"),
        ("'a # b'", "a # b"),
        ('"a # b $c"', "a # b $c"),
        ("a=b", "a=b"),
    ],
)
def test_a_password_in_the_file_is_taken_as_it_is(folder: Path, written: str, password: str) -> None:
    (folder / ".env").write_text(f"REDIS_ENABLED=1\nREDIS_PASSWORD={written}\n")
    url = StoreSettings.from_env().redis_url
    assert url is not None
    assert connection_options(url)["password"] == password


def test_a_name_without_a_value_is_not_set(folder: Path) -> None:
    (folder / ".env").write_text("REDIS_ENABLED\nSESSION_STORE=\nSESSION_TTL=\n")
    assert StoreSettings.from_env() == store()


def test_a_file_that_is_no_text_is_an_error(folder: Path) -> None:
    (folder / ".env").write_bytes("REDIS_ENABLED=true\n".encode("utf-16"))
    with pytest.raises(InvalidInput, match=r"\.env .* cannot be read as UTF-8"):
        StoreSettings.from_env()


def test_a_folder_of_that_name_is_no_file(folder: Path) -> None:
    (folder / ".env").mkdir()
    assert StoreSettings.from_env() == store()


def test_a_mapping_that_was_given_is_all_that_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("REDIS_ENABLED=true\n")
    monkeypatch.setenv("SESSION_STORE", "sqlite:///a.db")
    assert StoreSettings.from_env({}).store_url is None


# The server


def test_without_any_variable_the_server_is_on_loopback_and_keeps_sessions_in_memory() -> None:
    settings = server()
    assert (settings.host, settings.port, settings.log_level) == ("127.0.0.1", 6969, "info")
    assert (settings.store.store_url, settings.api_keys, settings.max_body_bytes) == (None, (), 4 << 20)
    assert (settings.history_limit, settings.on_interrupt) == (None, "discard")
    assert [upstream.name for upstream in settings.upstreams if upstream.key] == []


def test_the_server_is_what_its_variables_say() -> None:
    settings = server(
        WEBAI_HOST="0.0.0.0  # everywhere",
        WEBAI_PORT="8080",
        WEBAI_LOG_LEVEL="DEBUG",
        WEBAI_MAX_BODY_BYTES="1024",
        WEBAI_HISTORY_LIMIT="20",
        WEBAI_ON_INTERRUPT="Finish",
        SESSION_STORE="sqlite:///a.db",
    )
    assert (settings.host, settings.port, settings.log_level) == ("0.0.0.0", 8080, "debug")
    assert (settings.max_body_bytes, settings.history_limit, settings.on_interrupt) == (1024, 20, "finish")
    assert settings.with_store("memory://").store.store_url == "memory://"
    assert settings.store.store_url == "sqlite:///a.db"


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        ("", ()),
        ("a:k1", (("a", "k1"),)),
        ("a:k1,b:k2", (("a", "k1"), ("b", "k2"))),
        (" a:k1 , b:k2 ,", (("a", "k1"), ("b", "k2"))),
        ("a:k1\nb:k2\r\n\n", (("a", "k1"), ("b", "k2"))),
        ("a:k:with:colons", (("a", "k:with:colons"),)),
        ("a:k1,a:k2", (("a", "k1"), ("a", "k2"))),
        (f"{'x' * 64}:k", (("x" * 64, "k"),)),
        ("A_b-9:schlüssel#1", (("A_b-9", "schlüssel#1"),)),
    ],
)
def test_api_keys_are_split_at_the_first_colon(value: str, pairs: Any) -> None:
    digests = tuple((tenant, sha256(key.encode()).digest()) for tenant, key in pairs)
    assert server(WEBAI_API_KEYS=value).api_keys == digests


@pytest.mark.parametrize("value", [",", " ", "\n", " , ,"])
def test_api_keys_that_are_set_but_hold_none_are_refused(value: str) -> None:
    with pytest.raises(InvalidInput, match="WEBAI_API_KEYS"):
        server(WEBAI_API_KEYS=value)


def test_an_empty_file_of_secrets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(InvalidInput, match="WEBAI_API_KEYS_FILE"):
        server(WEBAI_API_KEYS_FILE=str(tmp_path / "keys"))


def test_upstreams_are_what_their_variables_say() -> None:
    settings = server(
        GEMINI_API_KEY="g-key",
        GEMINI_BASE_URL="http://localhost:9/v1beta/openai/",
        OPENAI_API_KEY="o-key",
        OLLAMA_BASE_URL="http://localhost:11434",
        WEBAI_UPSTREAM_LOCAL_URL="http://localhost:1234/v1  # LM Studio",
        WEBAI_UPSTREAM_LOCAL_KEY="l-key",
        WEBAI_UPSTREAM_LOCAL_MODELS="qwen*, llama-3 ,",
        WEBAI_UPSTREAM_MY_OTHER_URL="https://other.example/v1",
    )
    found = {u.name: (u.url, u.key, u.models, u.key_variable) for u in settings.upstreams}
    assert found["gemini"] == ("http://localhost:9/v1beta/openai", "g-key", ("gemini-*",), "GEMINI_API_KEY")
    assert found["openai"][:2] == ("https://api.openai.com/v1", "o-key")
    assert found["ollama"][0] == "http://localhost:11434/v1"
    assert found["local"] == ("http://localhost:1234/v1", "l-key", ("qwen*", "llama-3"), "WEBAI_UPSTREAM_LOCAL_KEY")
    assert found["my_other"][:3] == ("https://other.example/v1", None, ("*",))


def test_gemini_is_googles_unless_told_otherwise() -> None:
    (gemini,) = (u for u in server(GEMINI_API_KEY="k").upstreams if u.name == "gemini")
    assert gemini.url == "https://generativelanguage.googleapis.com/v1beta/openai"


def test_openai_base_url_is_not_read_for_it_often_points_at_us() -> None:
    assert server(OPENAI_BASE_URL="http://localhost:6969/v1") == server()
    assert server(OPENAI_BASE_URL="junk", OPENAI_API_BASE="junk") == server()


def test_nothing_that_is_shown_of_settings_holds_a_secret() -> None:
    settings = server(
        **ON,
        REDIS_PASSWORD="s3cret-1",
        SESSION_STORE="redis://:s3cret-2@h",
        WEBAI_API_KEYS="a:s3cret-3",
        GEMINI_API_KEY="s3cret-4",
        OPENAI_API_KEY="s3cret-5",
        WEBAI_UPSTREAM_LOCAL_URL="https://ada:s3cret-6@h/v1",
        WEBAI_UPSTREAM_LOCAL_KEY="s3cret-7",
    )
    assert "s3cret" in str(settings.store.store_url)
    for shown in (repr(settings), str(settings), repr(settings.store), repr(settings.upstreams), f"{settings.store}"):
        assert "s3cret" not in shown


async def test_nothing_that_is_shown_of_a_manager_holds_a_secret() -> None:
    async with SessionManager.from_env({**ON, "REDIS_PASSWORD": "s3cret"}) as manager:
        assert "s3cret" not in repr(manager) + repr(manager.store) + repr(vars(manager))
