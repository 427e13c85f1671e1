"""A TCP proxy that loses, holds and cuts what passes, so that faults are real bytes on real connections."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK = 1 << 16


class FaultProxy:
    """Stands between a client and a server on loopback; as a context manager it listens on `port`.

    Faults are attributes, which may be changed at any time and count from then on:

        lose: probability that an answer is lost: the server has executed, the client is cut off
        cut_request, cut_reply: once, cut both ends after so many bytes of what clients sent (the server answered)
            since `reset`
        delay: seconds that an answer is held back
    """

    def __init__(self, target_port: int, *, seed: int = 1) -> None:
        self.target_port = target_port
        self.port = 0
        self.lose = 0.0
        self.delay = 0.0
        self.cut_request: int | None = None
        self.cut_reply: int | None = None
        self.requested = self.replied = self.lost = 0
        self.has_lost = asyncio.Event()
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    def reset(self) -> None:
        """Behave from now on; count from zero."""
        self.lose, self.delay, self.cut_request, self.cut_reply = 0.0, 0.0, None, None
        self.requested = self.replied = self.lost = 0
        self.has_lost.clear()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
            requests = asyncio.create_task(self._pass(reader, back, self._request))
            replies = asyncio.create_task(self._pass(there, writer, self._reply))
            try:
                await asyncio.wait([requests, replies], return_when=asyncio.FIRST_COMPLETED)
            finally:
                requests.cancel()
                replies.cancel()
                await asyncio.gather(requests, replies, return_exceptions=True)
                back.close()
        except (OSError, asyncio.CancelledError):
            pass  # the connection ends, which is this proxy's business
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._running.discard(task)

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, fault: Callable[[bytes], tuple[bytes, bool]]
    ) -> None:
        while piece := await source.read(CHUNK):
            if fault == self._reply and self.delay:
                await asyncio.sleep(self.delay)
            passed, cut = fault(piece)
            target.write(passed)
            await target.drain()
            if cut:
                return

    def _request(self, piece: bytes) -> tuple[bytes, bool]:
        self.requested += len(piece)
        kept = _before(self.cut_request, self.requested, piece)
        self.cut_request = self.cut_request if kept is None else None
        return (piece, False) if kept is None else (kept, True)

    def _reply(self, piece: bytes) -> tuple[bytes, bool]:
        self.replied += len(piece)
        if self.lose and self._random.random() < self.lose:
            self.lost += 1
            self.has_lost.set()
            return b"", True
        kept = _before(self.cut_reply, self.replied, piece)
        self.cut_reply = self.cut_reply if kept is None else None
        return (piece, False) if kept is None else (kept, True)


def _before(cut: int | None, passed: int, piece: bytes) -> bytes | None:
    """Return what of *piece*, which ends at *passed*, lies before the cut; None if the cut is not in it."""
    return None if cut is None or passed < cut else piece[: max(0, cut - (passed - len(piece)))]
