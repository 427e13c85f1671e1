"""Which store a command works on, and where it says so."""

import sys
from argparse import Namespace
from pathlib import Path
from urllib.parse import unquote

from webai_api.settings import EMBEDDED_STORE, ServerSettings, StoreSettings
from webai_api.urls import redacted

__all__ = ["chosen_store", "missing_file", "server_settings"]


def chosen_store(arguments: Namespace, settings: StoreSettings) -> str:
    """Return the URL of ``--store``, else the configured store, else the file that ``make run`` uses; say which."""
    if arguments.store:
        url, why = arguments.store, "--store"
    elif settings.store_url:
        url, why = (
            settings.store_url,
            "the REDIS_* variables" if settings.store_url == settings.redis_url else "SESSION_STORE",
        )
    else:
        url, why = EMBEDDED_STORE, "the default"
    print(f"store: {redacted(url)} ({why})", file=sys.stderr)
    return str(url)


def server_settings(arguments: Namespace) -> ServerSettings:
    """Return the server's settings with the store of `chosen_store`."""
    settings = ServerSettings.from_env()
    return settings.with_store(chosen_store(arguments, settings.store))


def missing_file(url: str) -> str | None:
    """Return the SQLite file that *url* names, if there is none: looking at it must not create it."""
    scheme, _, path = url.strip().partition(":///")
    return unquote(path) if scheme == "sqlite" and path and not Path(unquote(path)).exists() else None
