"""The only reader of the environment.

`StoreSettings` is what the library needs, `ServerSettings` what the server adds. Values come from the environment,
then from ``./.env``; an empty value counts as not set. Every secret can also be given as ``NAME_FILE``, a file that
holds it. Errors name the variable and what it accepts, never its value.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlsplit

from dotenv import dotenv_values

from webai_api.errors import InvalidInput
from webai_api.limits import DEFAULT_LIMITS, Limits, check_ttl

__all__ = [
    "DEFAULT_TTL",
    "EMBEDDED_STORE",
    "Environment",
    "ServerSettings",
    "StoreSettings",
    "UpstreamSettings",
    "client_key",
]

DEFAULT_TTL = 30 * 86400.0  # seconds
EMBEDDED_STORE = "sqlite:///data/sessions.db"
"""The file that ``make run`` and the commands use where no store is configured."""
GUIDE_TTL = 3600.0  # seconds; REDIS_TTL's default in the guide
GEMINI_URL = "https://generativelanguage.googleapis.com/v1beta/openai"
OPENAI_URL = "https://api.openai.com/v1"

_COMMENT = re.compile(r"\s+#.*$")  # docker's --env-file hands `3600  # one hour` over as it is
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UPSTREAM = re.compile(r"WEBAI_UPSTREAM_([A-Z0-9]+(?:_[A-Z0-9]+)*)_URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where sessions are kept, for how long, and how large they may be."""

    store_url: str | None = field(repr=False)
    """SESSION_STORE, else the REDIS_* variables, else None: memory."""
    redis_url: str | None = field(repr=False)
    """What the REDIS_* variables say; None unless REDIS_ENABLED."""
    session_ttl: float | None
    """SESSION_TTL in seconds, `math.inf` for "none"; None if it is not set."""
    redis_ttl: float
    """SESSION_TTL, else REDIS_TTL, else an hour: the expiry of the guide's class."""
    limits: Limits = DEFAULT_LIMITS

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read *environ*, or the process's environment and ``./.env``.

        Raises:
            InvalidInput: a variable cannot be understood; names it.
        """
        return cls.read(Environment.of(environ))

    @property
    def ttl(self) -> float:
        """Seconds a session lives after its last message; `math.inf` for ever."""
        from_redis = self.redis_url is not None and self.store_url == self.redis_url
        return self.session_ttl or (self.redis_ttl if from_redis else DEFAULT_TTL)

    @classmethod
    def read(cls, env: "Environment") -> Self:
        redis_url = _redis_url(env) if env.flag("REDIS_ENABLED") else None
        session_ttl = env.ttl("SESSION_TTL")
        return cls(
            store_url=env.secret("SESSION_STORE") or redis_url,
            redis_url=redis_url,
            session_ttl=session_ttl,
            redis_ttl=session_ttl or env.ttl("REDIS_TTL") or GUIDE_TTL,
            limits=Limits(
                id_bytes=env.number("WEBAI_MAX_ID_BYTES", DEFAULT_LIMITS.id_bytes, 64, 4096),
                content_bytes=env.number("WEBAI_MAX_CONTENT_BYTES", DEFAULT_LIMITS.content_bytes, 1, 1 << 28),
                metadata_bytes=env.number("WEBAI_MAX_METADATA_BYTES", DEFAULT_LIMITS.metadata_bytes, 2, 1 << 24),
                depth=env.number("WEBAI_MAX_DEPTH", DEFAULT_LIMITS.depth, 4, 200),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """One model provider with an OpenAI-compatible API."""

    name: str
    url: str = field(repr=False)  # may hold credentials
    key: str | None = field(repr=False)
    models: tuple[str, ...]
    """Globs of the models it serves."""
    key_variable: str
    """The variable that would give *key*, for error messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What `webai-api serve` needs."""

    store: StoreSettings
    host: str
    port: int
    log_level: str
    api_keys: tuple[tuple[str, bytes], ...] = field(repr=False)
    """Pairs of tenant and SHA-256 digest of the key; the key itself is not kept."""
    max_body_bytes: int
    history_limit: int | None
    """At most so many messages go upstream, in whole turns; None for all."""
    on_interrupt: str
    """``discard`` or ``finish``: what becomes of an answer whose client has gone."""
    upstreams: tuple[UpstreamSettings, ...]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read *environ*, or the process's environment and ``./.env``.

        Raises:
            InvalidInput: a variable cannot be understood; names it.
        """
        env = Environment.of(environ)
        return cls(
            store=StoreSettings.read(env),
            host=env.text("WEBAI_HOST") or "127.0.0.1",
            port=env.number("WEBAI_PORT", 6969, 0, 65535),
            log_level=env.choice("WEBAI_LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
            api_keys=_api_keys(env),
            max_body_bytes=env.number("WEBAI_MAX_BODY_BYTES", 4 << 20, 1024, 1 << 30),
            history_limit=env.number("WEBAI_HISTORY_LIMIT", 0, 1, 1_000_000) or None,
            on_interrupt=env.choice("WEBAI_ON_INTERRUPT", "discard", ("discard", "finish")),
            upstreams=_upstreams(env),
        )

    def with_store(self, url: str) -> Self:
        """Return these settings with the store at *url*, as ``--store`` says."""
        return replace(self, store=replace(self.store, store_url=url))


def client_key(environ: Mapping[str, str] | None = None) -> str | None:
    """Return WEBAI_API_KEY, the key that ``webai-api chat --url`` brings to a server.

    Raises:
        InvalidInput: WEBAI_API_KEY_FILE cannot be read, or both are set.
    """
    env = Environment.of(environ)
    return env.secret("WEBAI_API_KEY")


class Environment:
    """Variables, and the words for what is wrong with them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values

    @classmethod
    def of(cls, environ: Mapping[str, str] | None) -> Self:
        if environ is not None:
            return cls(environ)
        try:
            # interpolate=False: a `$` in a password is a `$`.
            from_file = dotenv_values(".env", interpolate=False) if Path(".env").is_file() else {}
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput("the file .env in the working directory cannot be read as UTF-8 text") from error
        # A variable of the real environment also beats its twin with or without _FILE.
        given = {name.removesuffix("_FILE") for name, value in os.environ.items() if value}
        kept = {k: v for k, v in from_file.items() if v is not None and k.removesuffix("_FILE") not in given}
        return cls({**kept, **os.environ})

    def text(self, name: str) -> str | None:
        return _COMMENT.sub("", self.values.get(name, "")).strip() or None

    def secret(self, name: str) -> str | None:
        value, file = self.values.get(name) or None, self.text(f"{name}_FILE")
        if file is None:
            return value
        if value is not None:
            raise InvalidInput(f"{name} and {name}_FILE are both set; set one of them")
        try:
            text = Path(file).read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidInput(f"{name}_FILE names a file that cannot be read: {why}") from error
        return text or None

    def source(self, name: str) -> str | None:
        """Return which variable gives a secret; None if none does."""
        return name if self.values.get(name) else f"{name}_FILE" if self.text(f"{name}_FILE") else None

    def flag(self, name: str) -> bool:
        value = (self.text(name) or "").lower()
        if value in ("1", "true", "yes", "on"):
            return True
        if value in ("", "0", "false", "no", "off"):
            return False
        raise InvalidInput(f"{name} must be true or false (also 1/0, yes/no, on/off)")

    def number(self, name: str, default: int, minimum: int, maximum: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,12}", value) or not minimum <= int(value) <= maximum:
            raise InvalidInput(f"{name} must be a whole number from {minimum} to {maximum}")
        return int(value)

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = (self.text(name) or default).lower()
        if value not in choices:
            raise InvalidInput(f"{name} must be one of {', '.join(choices)}")
        return value

    def ttl(self, name: str) -> float | None:
        value = self.text(name)
        if value is None:
            return None
        if value.lower() == "none":
            return inf
        try:
            return check_ttl(float(value) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", value) else None)
        except InvalidInput as error:
            raise InvalidInput(
                f"{name} must be a number of seconds above 0 and at most ten years, or 'none'"
            ) from error

    def url(self, name: str) -> str | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise InvalidInput(f"{name} must be an http:// or https:// URL")
        return value.rstrip("/")


def _redis_url(env: Environment) -> str:
    if url := env.secret("REDIS_URL"):
        if not url.strip().lower().startswith(("redis://", "rediss://", "redis+")):
            raise InvalidInput("REDIS_URL must be a redis:// or rediss:// URL")
        return url.strip()
    host, port = env.text("REDIS_HOST"), 6379
    given = env.text("REDIS_PORT")
    if given and given.startswith("tcp://"):  # Kubernetes injects this for a Service called redis
        try:
            parts = urlsplit(given)
            host, port = host or parts.hostname, parts.port or 0
        except ValueError:
            port = 0
        if not 1 <= port <= 65535:
            raise InvalidInput("REDIS_PORT must be a port (1 to 65535) or tcp://host:port")
    elif given:
        port = env.number("REDIS_PORT", 6379, 1, 65535)
    host = host or "localhost"
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise InvalidInput("REDIS_HOST must be a host name or an address")
    user, password = env.secret("REDIS_USERNAME"), env.secret("REDIS_PASSWORD")
    account = f"{quote(user or '', safe='')}:{quote(password, safe='')}@" if password else ""
    if user and not password:
        raise InvalidInput("REDIS_USERNAME needs REDIS_PASSWORD")
    database = env.number("REDIS_DB", 0, 0, 1_000_000)
    return f"redis://{account}{f'[{host}]' if ':' in host else host}:{port}/{database}"


def _api_keys(env: Environment) -> tuple[tuple[str, bytes], ...]:
    pairs: list[tuple[str, bytes]] = []
    given = env.secret("WEBAI_API_KEYS")
    for part in re.split(r"[,\n]", given or ""):
        if not part.strip():
            continue
        tenant, colon, key = part.strip().partition(":")
        if not colon or not _TENANT.fullmatch(tenant) or not key or any(c.isspace() for c in key):
            raise InvalidInput("WEBAI_API_KEYS must be tenant:key,tenant:key with tenants of A-Z a-z 0-9 _ - (1 to 64)")
        # Bytes that are no UTF-8 come out of the environment as surrogates, and go back as the bytes they were.
        pairs.append((tenant, sha256(key.encode(errors="surrogateescape")).digest()))
    if not pairs and (name := env.source("WEBAI_API_KEYS")):  # meant to be protected: never go on without keys
        raise InvalidInput(f"{name} is set but has no key; remove it, or give tenant:key")
    if len({key for _, key in pairs}) != len(pairs):
        raise InvalidInput("WEBAI_API_KEYS has the same key twice")
    return tuple(pairs)


def _upstreams(env: Environment) -> tuple[UpstreamSettings, ...]:
    found = []
    for name in sorted(env.values):
        if (match := _UPSTREAM.fullmatch(name)) and (url := env.url(name)):
            prefix = f"WEBAI_UPSTREAM_{match[1]}"
            models = tuple(m.strip() for m in (env.text(f"{prefix}_MODELS") or "*").split(",") if m.strip())
            key = env.secret(f"{prefix}_KEY")
            found.append(
                UpstreamSettings(name=match[1].lower(), url=url, key=key, models=models, key_variable=f"{prefix}_KEY")
            )
    gemini_key, gemini_url = env.secret("GEMINI_API_KEY"), env.url("GEMINI_BASE_URL") or GEMINI_URL
    found.append(
        UpstreamSettings(
            name="gemini", url=gemini_url, key=gemini_key, models=("gemini-*",), key_variable="GEMINI_API_KEY"
        )
    )
    openai_models = ("gpt-*", "chatgpt-*", "o1*", "o3*", "o4*")
    openai_key = env.secret("OPENAI_API_KEY")
    found.append(
        UpstreamSettings(
            name="openai", url=OPENAI_URL, key=openai_key, models=openai_models, key_variable="OPENAI_API_KEY"
        )
    )
    if ollama_url := env.url("OLLAMA_BASE_URL"):
        url = ollama_url if ollama_url.endswith("/v1") else f"{ollama_url}/v1"
        found.append(
            UpstreamSettings(name="ollama", url=url, key="ollama", models=("*",), key_variable="OLLAMA_BASE_URL")
        )
    return tuple(found)
