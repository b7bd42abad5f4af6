"""What every command does with errors: one message on stderr, an exit code, no traceback."""

import os
import sys
from collections.abc import Callable

from cupygpt.errors import CupyGPTError

INTERRUPTED = 130
"""The exit code that shells report for a process that SIGINT ended."""


def run_cli(main: Callable[[], None], *, debug: bool = False) -> int:
    """Call `main` and return the exit code of the process.

    | what happened | printed to stderr | code |
    |---|---|---|
    | `main` returned | nothing | 0 |
    | CupyGPTError | `error: <message>` | its own: 2 for bad input, 1 for a failed run |
    | out of memory, a system error | `error: <message>` | 1 |
    | Ctrl-C | `interrupted.` | 130 |
    | the reader of a pipe has closed it | nothing | 1 |

    With `debug`, errors keep their traceback. Any other exception is a mistake in this program and
    is not caught.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _report("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # Python flushes stdout again when it exits, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CupyGPTError, MemoryError, OSError) as error:
        if debug:
            raise
        return _report(*_message(error))
    return 0


def _message(error: Exception) -> tuple[str, int]:
    if isinstance(error, CupyGPTError):
        return f"error: {error}", error.exit_code
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"error: out of memory{detail}. Use smaller sizes, or close other programs.", 1
    return f"error: {error}. Run again with --debug to see where this happened.", 1


def _report(message: str, code: int) -> int:
    sys.stderr.write(message + "\n")
    return code
