"""Real servers for the tests, each a process of its own on a loopback port."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

START_SECONDS = 10.0  # a start takes some 20 ms; a loaded machine may need a hundred times that
STOP_SECONDS = 10.0  # an orderly end may have to write an append-only file


def free_port() -> int:
    """Return a loopback port that nobody listens on now. Someone may take it before you do: then try another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def redis_binary() -> str:
    """Return the path of the redis-server to test with: WEBAI_REDIS_SERVER, which `make test` sets, else from PATH."""
    chosen = os.environ.get("WEBAI_REDIS_SERVER") or "redis-server"
    found = shutil.which(chosen)
    if found is None:
        msg = f"no program {chosen!r}: run `make test`, or install redis-server, or set WEBAI_REDIS_SERVER to its path"
        raise FileNotFoundError(msg)
    return found


class RedisServer:
    """A redis-server process, running and answering once it is made.

    It lives in a folder of its own, so what it saved is there again after `stop()` or `kill()` and `start()`: with
    *appendonly* every acknowledged write, otherwise nothing. *config* holds further directives by name, such as
    ``{"maxmemory": "2mb"}``. Used as a context manager it stops at the end; it never outlives the test process's exit.
    """

    def __init__(
        self, *, password: str | None = None, appendonly: bool = False, config: Mapping[str, str] | None = None
    ) -> None:
        self.password = password
        self.folder = Path(tempfile.mkdtemp(prefix="webai-redis-"))
        self.port = free_port()
        self._directives = {
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": '""',
            "appendonly": "yes" if appendonly else "no",
            **({"requirepass": _quoted(password)} if password else {}),
            **(config or {}),
        }
        self._processes: list[subprocess.Popen[bytes]] = []  # the one that runs, or none
        # Even when a test forgets it, the process ends with the test run, and its folder goes.
        self._discard = weakref.finalize(self, _discard, self._processes, self.folder)
        while not self._started():  # another process was quicker to take the port
            self.port = free_port()

    @property
    def url(self) -> str:
        """The URL of database 0, the password included."""
        credentials = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The id of the running process."""
        return self._running().pid

    def start(self) -> None:
        """Start again, on the same port and in the same folder; return when it answers. No effect while it runs."""
        if not self._processes and not self._started():
            msg = f"port {self.port} was taken while redis-server was stopped"
            raise RuntimeError(msg)

    def stop(self) -> None:
        """End the process in an orderly way, as SIGTERM does. No effect when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once, as a crash does. No effect when it does not run."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Keep the process from answering, as a machine that hangs does, until `resume()`."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._running().send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and remove the folder. The server cannot be started again."""
        self.stop()
        self._discard()

    def _running(self) -> "subprocess.Popen[bytes]":
        if not self._processes:
            msg = "this redis-server does not run"
            raise RuntimeError(msg)
        return self._processes[0]

    def _started(self) -> bool:
        """Start the process and wait for its first answer; False when its port is in use."""
        lines = [f"{name} {text}" for name, text in {"port": str(self.port), **self._directives}.items()]
        config = self.folder / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        log = self.folder / "redis.log"
        with log.open("wb") as output:
            process = subprocess.Popen([redis_binary(), str(config)], stdout=output, stderr=output)
        self._processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if process.poll() is not None:
                self._processes.clear()
                said = log.read_text(errors="replace")
                if "in use" in said:
                    return False
                msg = f"redis-server ended with {process.returncode}:\n{said}"
                raise RuntimeError(msg)
            if time.monotonic() > deadline:
                self.kill()
                msg = f"redis-server did not answer within {START_SECONDS:.0f} s:\n{log.read_text(errors='replace')}"
                raise RuntimeError(msg)
            time.sleep(0.01)
        return True

    def _answers(self) -> bool:
        """Tell whether a PING is answered, by this server and not while it still loads."""
        hello = f"AUTH {_quoted(self.password)}\r\nPING\r\n" if self.password else "PING\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(hello.encode())
                reply = b""
                while b"PONG" not in reply:
                    received = connection.recv(4096)
                    if not received or b"-" in received[:1]:
                        return False
                    reply += received
        except OSError:
            return False
        return self._running().poll() is None

    def _end(self, number: signal.Signals) -> None:
        if self._processes:
            _end(self._processes.pop(), number)


def _end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # a paused process is deaf to SIGTERM
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _discard(processes: "list[subprocess.Popen[bytes]]", folder: Path) -> None:
    for process in processes:
        _end(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _quoted(text: str) -> str:
    """Quote *text* for redis.conf and inline commands, which read the same escapes."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'
