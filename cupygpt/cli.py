"""What every command does with errors: one message on stderr, an exit code, no traceback."""

import os
import sys
from collections.abc import Callable

from cupygpt.errors import CupyGPTError

INTERRUPTED = 130  # As shells report a process that SIGINT ended.


def run_cli(main: Callable[[], None], *, debug: bool = False) -> int:
    """Call `main` and return the exit code of the process.

    0 after a normal end. A CupyGPTError prints `error: <message>` to stderr and gives its own
    code, 2 for bad input and 1 for a run that failed; so do running out of memory and a system
    error that nobody translated (1). Ctrl-C gives 130, a closed pipe 1 in silence. With `debug`
    errors keep their traceback. Anything else is our own mistake and is not caught.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _report("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # Python flushes stdout once more when it exits; give it somewhere to go.
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
