"""What every command does with errors: one message on stderr, an exit code, no traceback."""

import os
import sys
from collections.abc import Callable

from cupygpt.console.stream import say, set_up_streams, stdout_error
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
    | stdout cannot be written to | `error: stdout ...` | 1 |

    With `debug`, errors keep their traceback. Any other exception is a mistake in this program and
    is not caught.
    """
    set_up_streams()
    try:
        main()
    except KeyboardInterrupt:
        say("interrupted.")
        return _flush_stdout(INTERRUPTED)
    except BrokenPipeError:
        return _flush_stdout(1)
    except (CupyGPTError, MemoryError, OSError) as error:
        if debug:
            raise
        message, code = _message(error)
        say(f"error: {message}")
        return _flush_stdout(code)
    return _flush_stdout(0)


def _message(error: Exception) -> tuple[str, int]:
    if isinstance(error, CupyGPTError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"out of memory{detail}. Use smaller sizes, or close other programs.", 1
    return f"{error}. Run again with --debug to see where this happened.", 1


def _flush_stdout(code: int) -> int:
    """Write what is still in the buffers; returns `code`, or 1 for 0 if that fails.

    Python would do it when it exits, and report an error in its own words. So stdout is given up
    then.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"error: {stdout_error(error)}")
        return code or 1
    return code
