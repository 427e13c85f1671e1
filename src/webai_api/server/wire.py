"""Bytes of HTTP bodies: strict JSON in, JSON and server-sent events out."""

import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any

import msgspec

from webai_api.server.errors import ApiError, bad_request

__all__ = ["DONE", "FrameSplitter", "encode", "event", "event_data", "loads", "parse_object", "whole_events"]

DONE = b"data: [DONE]\n\n"
FRAME_BYTES = 4 << 20  # a longer event than this is no chat chunk

encode = msgspec.json.Encoder().encode
loads = msgspec.json.Decoder().decode


def event(value: object) -> bytes:
    """Return *value* as one server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def parse_object(body: bytes, depth: int) -> dict[str, Any]:
    """Return the JSON object in *body*, read strictly: UTF-8, no NaN, no key twice, no lone surrogate.

    Raises:
        ApiError: 400, saying what is wrong.
    """
    try:
        value = _decoder.decode(body.decode())
        if b"\\u" in body:
            encode(value)  # refuses lone surrogates, which only an escape can bring in
    except UnicodeDecodeError as error:
        raise bad_request("The body is not valid UTF-8.") from error
    except UnicodeEncodeError as error:
        raise bad_request("The body contains a lone surrogate, which is not valid text.") from error
    except RecursionError as error:
        raise bad_request(f"The body is nested deeper than {depth} levels.") from error
    except json.JSONDecodeError as error:
        raise bad_request(f"The body is not valid JSON: {error.msg} at character {error.pos}.") from error
    except ValueError as error:  # integers of more digits than Python reads
        raise bad_request("The body contains a number that cannot be read exactly.") from error
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.")
    if body.count(b"{") + body.count(b"[") > depth and _is_deeper(value, depth):
        raise bad_request(f"The body is nested deeper than {depth} levels.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise bad_request(f"The body has the key {key!r:.80} twice in one object.")
            seen.add(key)
    return found


def _no_constant(name: str) -> None:
    raise bad_request(f"The body contains {name}, which is not JSON.")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise bad_request("The body contains a number that is too large.")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _is_deeper(value: object, depth: int) -> bool:
    level: list[Any] = [value]
    for _ in range(depth):
        inner: list[Any] = []
        for container in level:
            values: Iterable[Any] = container.values() if isinstance(container, dict) else container
            inner += [v for v in values if isinstance(v, dict | list)]
        if not inner:
            return False
        level = inner
    return True


class FrameSplitter:
    r"""Cuts a stream of bytes into whole server-sent events, each ended by ``\n\n`` whatever line ends it came with."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that *data* completes."""
        data = self._rest + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")  # one that is cut between the two bytes is put together next time
        *frames, self._rest = data.split(b"\n\n")
        if len(self._rest) > FRAME_BYTES:
            raise ApiError(502, "The upstream sent an event that is too long.", code="upstream_error")
        return [frame + b"\n\n" for frame in frames if frame]

    def end(self) -> list[bytes]:
        """Return the event that the end of the stream completes, if there is one."""
        rest, self._rest = self._rest.strip(b"\r\n"), b""
        return [rest + b"\n\n"] if rest else []


def event_data(frame: bytes) -> bytes:
    """Return the data of an event; empty for a comment."""
    if frame.startswith(b"data: ") and frame.find(b"\n") == len(frame) - 2:
        return frame[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in frame.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


async def whole_events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a stream as they come, but never a part of an event: an error may have to follow."""
    rest = b""
    async for piece in pieces:
        data = rest + piece if rest else piece
        cut = len(data) if data.endswith(b"\n\n") else _end_of_events(data)
        if cut:
            yield data[:cut]
        rest = data[cut:]
        if len(rest) > FRAME_BYTES:
            raise ApiError(502, "The upstream sent an event that is too long.", code="upstream_error")
    if rest:
        yield rest


def _end_of_events(data: bytes) -> int:
    return max(data.rfind(end) + len(end) if end in data else 0 for end in (b"\n\n", b"\r\n\r\n"))
