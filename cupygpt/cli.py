"""What every command does with errors: one message on stderr, an exit code, no traceback."""

import os
import sys
from collections.abc import Callable

from cupygpt.console.stream import say
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
        say("interrupted.")
        return INTERRUPTED
    except (CupyGPTError, MemoryError, OSError) as error:
        lost = _give_up_stdout()
        if isinstance(error, BrokenPipeError):
            return 1
        if debug:
            raise
        message, code = _message(error, lost)
        say(f"error: {message}")
        return code
    finally:
        _give_up_stdout()
    return 0


def _message(error: Exception, lost: OSError | None) -> tuple[str, int]:
    if isinstance(error, CupyGPTError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"out of memory{detail}. Use smaller sizes, or close other programs.", 1
    if lost is not None:
        return f"stdout could not be written: {lost.strerror or lost}.", 1
    return f"{error}. Run again with --debug to see where this happened.", 1


def _give_up_stdout() -> OSError | None:
    """If stdout cannot take what is still unwritten, drop it; returns the error.

    Python flushes stdout again when it exits, and reports an error there in its own words.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
