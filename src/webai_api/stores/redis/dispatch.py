"""Calls to Redis: sent, and sent again until there is an answer or the deadline is over.

Re-sending is safe because every script is idempotent (item ids, operation tokens). What a caller sees is an answer,
or an error that says whether something may have happened.
"""

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from webai_api.errors import AuthenticationFailed, CorruptData, OutcomeUnknown, StoreError, StoreUnavailable
from webai_api.stores.redis.connect import Commands, Connections, NotSent
from webai_api.stores.redis.keys import PROBE
from webai_api.stores.redis.scripts import script

__all__ = ["Call", "Dispatcher"]

BACKOFF_FIRST, BACKOFF_LAST = 0.02, 1.0  # seconds; full jitter, doubling

# Refusals that pass: the server executed nothing. They come bare, or wrapped in a script's error.
PASSING = re.compile(r"\b(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|UNBLOCKED|BUSY|MISCONF)\b")
FORBIDDEN = re.compile(r"NOPERM|NOAUTH|WRONGPASS|ACL failure|no permissions|can't run this command|can't access")


@dataclass(frozen=True, slots=True)
class Call:
    """One script with its keys and arguments, or (with *script* None) a plain command."""

    script: str | None
    keys: Sequence[str]
    args: Sequence[Any]
    again: int | None = None
    """Which argument is 1 when an earlier try may have been executed."""

    def command(self, *, by_source: bool, again: bool) -> Sequence[Any]:
        if self.script is None:
            return self.args
        args = list(self.args)
        if again and self.again is not None:
            args[self.again] = "1"
        source = script(self.script)
        verb, which = ("EVAL", source.source) if by_source else ("EVALSHA", source.digest)
        return (verb, which, len(self.keys), *self.keys, *args)


class Dispatcher:
    """Gets calls answered."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._probed = False

    async def run(self, calls: Sequence[Call], *, deadline: float, write: bool) -> list[Any]:
        """Return the answers to *calls*, which travel together and in order, within *deadline* seconds.

        Raises:
            StoreUnavailable: none of them was executed.
            OutcomeUnknown: they may have been (only if *write*).
            AuthenticationFailed, CorruptData, StoreError: the server refused one of them.
        """
        end = asyncio.get_running_loop().time() + deadline
        if not self._probed:
            await self._run([Call("probe", PROBE, ())], end, write=False)
            self._probed = True
        return await self._run(calls, end, write=write)

    async def _run(self, calls: Sequence[Call], end: float, *, write: bool) -> list[Any]:
        loop = asyncio.get_running_loop()
        by_source = unknown = False
        pause = BACKOFF_FIRST
        cause: Exception | None = None
        while True:
            commands = Commands(call.command(by_source=by_source, again=unknown) for call in calls)
            try:
                async with asyncio.timeout_at(end):
                    replies = await self.connections.exchange(commands)
            except NotSent as error:
                cause = error.__cause__ if isinstance(error.__cause__, ResponseError | AuthenticationError) else error
                _raise_final(cause, unknown=unknown)
            except (RedisError, OSError, TimeoutError) as error:
                cause, unknown = (error if str(error) else cause or error), unknown or (write and commands.sent)
            else:
                refusals = [reply for reply in replies if isinstance(reply, Exception)]
                if not refusals:
                    return replies
                cause = refusals[0]
                if isinstance(cause, NoScriptError) and not by_source:
                    by_source = True
                    continue
                _raise_final(cause, unknown=unknown)
            # Full jitter: callers that failed together do not come back together.
            await asyncio.sleep(max(0.0, min(end - loop.time(), random.uniform(0, pause))))  # noqa: S311  # no secret
            pause = min(pause * 2, BACKOFF_LAST)
            if loop.time() >= end:  # not one more try, which would be sent and never be known
                raise _gave_up(self.connections, cause, unknown=unknown) from cause


def _raise_final(refusal: Exception, *, unknown: bool) -> None:
    """Raise for a refusal that no retry changes; return for one that may pass."""
    name, text = type(refusal).__name__, str(refusal)
    if isinstance(refusal, BusyLoadingError | NotSent) or PASSING.search(text):
        return
    if name in ("ReadOnlyError", "MasterDownError", "ClusterDownError", "TryAgainError"):
        return  # redis-py has taken the word from their text
    error: StoreError
    if isinstance(refusal, NoPermissionError) or FORBIDDEN.search(text):
        error = AuthenticationFailed(f"redis: {text:.200}")
    elif isinstance(refusal, AuthenticationError):
        error = AuthenticationFailed("redis: the user name or the password was refused")
    elif name == "OutOfMemoryError" or "OOM command" in text:
        error = StoreUnavailable("redis: its memory is full (maxmemory): free some or raise the limit")
    elif "WRONGTYPE" in text:
        error = CorruptData("redis: another kind of value is stored at a key of this session")
    elif "unknown command" in text.lower():
        error = StoreError(f"redis: the server lacks a command that is needed (Redis >= 6.2): {text:.100}")
    else:
        error = StoreError(f"redis: {text:.200}")
    if unknown:  # this try was refused, but an earlier one may have been executed
        raise OutcomeUnknown(f"{error}; an earlier try was not confirmed") from refusal
    raise error from refusal


def _gave_up(connections: Connections, cause: Exception, *, unknown: bool) -> StoreError:
    where = f"redis at {connections.host}:{connections.port}"
    why = str(cause) or type(cause).__name__
    if unknown:
        return OutcomeUnknown(f"{where} did not confirm in time; repeat with the same ids ({why:.200})")
    if isinstance(cause, NotSent):
        return StoreUnavailable(f"{where} cannot be reached ({why:.200})")
    return StoreUnavailable(f"{where} did not answer in time ({why:.200})")
