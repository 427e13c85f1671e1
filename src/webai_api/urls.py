"""A store by its URL: the scheme picks the class, which is imported only then.

memory://                                   this process only
sqlite:///relative.db  sqlite:////abs.db    one file, durable, several processes
redis://[[user]:password@]host[:port][/db]  Redis or Valkey; rediss:// with TLS
"""

import re
from importlib import import_module
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from webai_api.errors import InvalidInput, InvalidType
from webai_api.limits import DEFAULT_LIMITS, Limits
from webai_api.protocol import SessionStore

__all__ = ["STORES", "open_store", "redacted"]

STORES = {
    "memory": "webai_api.stores.memory:MemoryStore",
    "sqlite": "webai_api.stores.sqlite:SQLiteStore",
    "redis": "webai_api.stores.redis:RedisStore",
    "rediss": "webai_api.stores.redis:RedisStore",
}
SQLITE_FORM = "a SQLite URL has three slashes and a file (sqlite:///sessions.db), four if it is absolute"
RESERVED = {"redis+sentinel": "Redis Sentinel", "redis+cluster": "Redis Cluster"}


def open_store(url: str, *, limits: Limits = DEFAULT_LIMITS) -> SessionStore:
    """Return the store that *url* names; nothing is connected before its first use. Whoever opens it closes it.

    Raises:
        InvalidInput: the URL is malformed, or its scheme unknown (the message lists the known ones).
        ImportError: the store needs an extra that is not installed; the message says which.
    """
    if not isinstance(url, str):
        raise InvalidType(f"a store URL must be a str, not {type(url).__name__}")
    url = url.strip()
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidInput("the store URL is malformed") from None  # the cause would show what the URL holds
    if not url.isprintable():  # urlsplit would leave line breaks out
        raise InvalidInput("the store URL contains control characters")
    if parts.scheme in RESERVED:
        raise InvalidInput(
            f"{parts.scheme}:// ({RESERVED[parts.scheme]}) is reserved and not supported yet; use redis://"
        )
    if parts.scheme not in STORES:
        raise InvalidInput(f"unknown store scheme {parts.scheme!r:.40}; known: {', '.join(f'{s}://' for s in STORES)}")
    module, _, name = STORES[parts.scheme].partition(":")
    store_class: Any = getattr(import_module(module), name)
    store: SessionStore
    if parts.scheme == "memory":
        store = store_class(limits=_nothing_more(parts, limits))
    elif parts.scheme == "sqlite":
        if not url[len("sqlite") :].startswith(":///"):
            raise InvalidInput(SQLITE_FORM)
        store = store_class(_file_path(parts), limits=limits)
    else:
        store = store_class.from_url(url, limits=limits)
    return store


def redacted(url: str) -> str:
    """Return *url* as it may be shown: without its password, also where it is malformed, and without its options."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return "(malformed URL)" if "@" in url else url.strip()
    if scheme.lower() == "sqlite" and rest.startswith("/"):
        return url.strip()  # a file's name has no password, and may have an @
    account, at, place = rest.rpartition("@")  # a password with a `/`, `?` or `#` in it ends nothing here
    place = re.split(r"[?#]", place)[0]
    user, *secret = re.split(r"[:/?#]", account, maxsplit=1)
    return f"{scheme}://{user}{':***' if secret else ''}{at}{place}"


def _nothing_more(parts: SplitResult, limits: Limits) -> Limits:
    if parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidInput("memory:// takes nothing after the scheme")
    return limits


def _file_path(parts: SplitResult) -> str:
    path = unquote(parts.path)[1:]  # the first slash only ends the (empty) host
    if parts.netloc or not path or path.endswith("/"):
        raise InvalidInput(SQLITE_FORM)
    if parts.query or parts.fragment:
        raise InvalidInput("a SQLite URL takes no options")
    return path
