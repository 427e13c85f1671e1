"""Work that outlives the request that began it, kept in sight until it ends."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Background"]

CANCEL_SECONDS = 5.0
_logger = logging.getLogger("webai_api.server")
_T = TypeVar("_T")


class Background:
    """A set of tasks that are waited for when the server ends."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Start *work*. If it fails, that is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do *work* to its end, also when whoever waits for it is cancelled meanwhile; then the cancelling goes on."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                _logger.warning("what was finished after its client had gone failed: %s", type(error).__name__)
            raise

    async def drain(self, seconds: float) -> None:
        """Wait until all is done; cancel what is not done after *seconds*, and give it a moment to clean up."""
        for patience in (seconds, CANCEL_SECONDS):
            until = asyncio.get_running_loop().time() + patience
            while self._tasks and (left := until - asyncio.get_running_loop().time()) > 0:
                await asyncio.wait(set(self._tasks), timeout=left)  # one may begin another while it ends
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            _logger.warning("%d tasks did not end", len(self._tasks))

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("a background task failed", exc_info=error)
