"""What may be shown on a terminal, and how."""

import json
import unicodedata
from collections.abc import Sequence

__all__ = ["json_escaped", "printable", "table"]


def printable(text: str) -> str:
    """Return *text* without what a terminal would obey: stored messages are not ours to trust."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text)


def json_escaped(text: str) -> str:
    """Return JSON with the same meaning in which what a terminal would obey is escaped."""
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else json.dumps(c)[1:-1] for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows under their heads, in columns."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )
