"""The Lua scripts, by name: their source, their digest, and what Redis may answer."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

__all__ = ["Script", "script"]

WITH_SESSION = frozenset({"append", "read", "remove", "delete"})  # scripts that begin with session.lua


@dataclass(frozen=True, slots=True)
class Script:
    """A script as EVAL takes it, and the digest by which EVALSHA finds it."""

    name: str
    source: str
    digest: str


@cache
def script(name: str) -> Script:
    """Return the script in ``NAME.lua``."""
    folder = files(__package__)
    source = (folder / f"{name}.lua").read_text(encoding="utf-8")
    if name in WITH_SESSION:
        source = (folder / "session.lua").read_text(encoding="utf-8") + source
    return Script(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())
