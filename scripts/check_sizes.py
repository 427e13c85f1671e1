"""Fail when a source file is longer than its folder allows, given as FOLDER=LINES."""

import sys
from pathlib import Path

SUFFIXES = {".py", ".lua"}


def main() -> int:
    """Print every file that is too long; it holds a second idea that wants a file of its own."""
    too_long = []
    for rule in sys.argv[1:]:
        folder, _, ceiling = rule.partition("=")
        for path in sorted(path for path in Path(folder).rglob("*") if path.suffix in SUFFIXES):
            lines = len(path.read_bytes().splitlines())
            if lines > int(ceiling):
                too_long.append(f"{path}: {lines} lines, allowed are {ceiling}")
    print("\n".join(too_long) or "no file is too long")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
