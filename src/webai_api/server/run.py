"""Serve the application with uvicorn: bind, say where, run, and end in an orderly way."""

import asyncio
import errno
import ipaddress
import signal
import socket
import sys
from contextlib import aclosing
from functools import partial
from typing import Any

from webai_api.errors import InvalidInput, StoreError, StoreUnavailable
from webai_api.protocol import SessionStore
from webai_api.server.app import create_app
from webai_api.settings import ServerSettings
from webai_api.urls import open_store, redacted

try:
    import uvicorn
    from uvicorn.supervisors import Multiprocess
except ImportError as error:
    msg = "webai_api.server needs: pip install 'webai-api[server]'"
    raise ImportError(msg) from error

__all__ = ["serve"]

DRAIN_SECONDS = 30  # for requests in flight at SIGTERM; orchestrators kill after some 30 s, too
BACKLOG = 2048
USAGE, FAILURE = 2, 1  # exit codes
LOOK_SECONDS = 1.0  # for the store to answer at the start


def serve(settings: ServerSettings, *, workers: int = 1) -> int:
    """Serve until SIGTERM or Ctrl-C; return the process's exit code: 0, 1 for a failure, 2 for a usage error."""
    try:
        _check(settings, workers)
        listener = _bind(settings.host, settings.port)
    except InvalidInput as error:
        return _refuse(str(error), USAGE)
    except (ImportError, OSError, StoreError) as error:
        return _refuse(str(error), FAILURE)
    with listener:
        sys.stdout.write(_greeting(settings, listener, workers))
        sys.stdout.flush()
        return _run(settings, listener, workers)


def _check(settings: ServerSettings, workers: int) -> None:
    url = settings.store.store_url or "memory://"
    if workers < 1:
        raise InvalidInput("--workers must be at least 1")
    if workers > 1 and url.strip().startswith("memory:"):
        raise InvalidInput(
            "--workers above 1 needs a store that processes can share: each worker would have a memory of its own. "
            "Give --store sqlite:///sessions.db or redis://..., or use one worker"
        )
    if not settings.api_keys and not _is_loopback(settings.host):
        raise InvalidInput(
            f"without API keys the server listens on loopback only, not on {settings.host}: "
            "set WEBAI_API_KEYS=tenant:key, or use --host 127.0.0.1"
        )
    asyncio.run(_look(open_store(url, limits=settings.store.limits)))


async def _look(store: SessionStore) -> None:
    """Look whether the store can be used; one that is only away may come back."""
    async with aclosing(store):
        try:
            await store.with_options(namespace="probe", deadline=LOOK_SECONDS).read("start", last=0)
        except StoreUnavailable as error:
            sys.stderr.write(f"webai-api: warning: {error}; serving all the same, /readyz tells when it is there\n")


def _is_loopback(host: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that whoever connects after the greeting is answered."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"cannot listen on {host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        remedy = "; give another port with --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}{remedy}") from error
    listener.set_inheritable(True)
    return listener


def _greeting(settings: ServerSettings, listener: socket.socket, workers: int) -> str:
    host, port = settings.host.strip("[]"), listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  # where to reach it
    url = f"http://{name}:{port}"
    ready = [u for u in settings.upstreams if u.key is not None or u.name not in ("gemini", "openai")]
    models = ["demo", *(f"{', '.join(u.models)} ({u.name})" for u in ready)]
    lacking = [u.key_variable for u in settings.upstreams if u not in ready]
    store = redacted(settings.store.store_url or "memory://")
    lines = [
        f"webai-api serves {url}/v1" + (f" with {workers} workers" if workers > 1 else ""),
        f"  sessions  {store}" + (" (lost when the server ends)" if store.startswith("memory:") else ""),
        f"  models    {'; '.join(models)}" + (f"   (more with {', '.join(lacking)})" if lacking else ""),
        f"  keys      {len(settings.api_keys)}, each with a tenant's sessions"
        if settings.api_keys
        else "  keys      none: loopback only",
        "Try it:",
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -H 'X-Session-Id: my-first' "
        + ("-H 'Authorization: Bearer YOUR-KEY' " if settings.api_keys else "")
        + '-d \'{"model":"demo","messages":[{"role":"user","content":"Hello, my name is Ada."}]}\'',
    ]
    return "\n".join(lines) + "\n"


def _run(settings: ServerSettings, listener: socket.socket, workers: int) -> int:
    config = uvicorn.Config(
        partial(create_app, settings),
        factory=True,
        http="httptools",  # refuses Content-Length together with Transfer-Encoding
        ws="none",
        lifespan="on",
        log_config=_log_config(settings.log_level),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        backlog=BACKLOG,
        workers=workers,
    )
    if workers > 1:
        Multiprocess(config, sockets=[listener]).run()
        return 0
    signal.signal(signal.SIGTERM, _already_handled)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    except SystemExit as error:  # the application did not start; the log says why
        return error.code if isinstance(error.code, int) else FAILURE
    return 0


def _already_handled(number: int, frame: object) -> None:
    """Let the process end by itself: uvicorn raises a signal again once it has obeyed it."""


def _log_config(level: str) -> dict[str, Any]:
    upper = level.upper()
    server = upper if upper in ("DEBUG", "ERROR") else "WARNING"  # uvicorn's own start and stop are no news
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"webai_api": {"level": upper}, "uvicorn": {"level": server}},
    }


def _refuse(message: str, code: int) -> int:
    sys.stderr.write(f"webai-api: {message}\n")
    return code
