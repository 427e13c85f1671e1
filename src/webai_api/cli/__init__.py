"""The command line: ``webai-api serve | chat | sessions``.

Errors are one line with the remedy; exit 2 for how it was called or configured, 1 for a failure.
"""

import os
import sys
from collections.abc import Sequence

from webai_api.cli.arguments import parser
from webai_api.errors import InvalidInput, SessionError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in *argv* (the process's own arguments if None) and return its exit code."""
    arguments = parser().parse_args(argv)
    try:
        exit_code: int = arguments.run(arguments)
        sys.stdout.flush()
    except InvalidInput as error:
        return _failed(error, 2)
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own flush fails, too
        return 1
    except (SessionError, ImportError, OSError) as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return 130
    return exit_code


def _failed(error: Exception, exit_code: int) -> int:
    print(f"webai-api: {' '.join(str(error).split())}", file=sys.stderr)
    return exit_code
