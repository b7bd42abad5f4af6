"""Commands as a person can paste them into a shell."""

import os
import re
import shlex
from collections.abc import Iterable

_PLAIN_ON_WINDOWS = re.compile(r"[\w./\\:+=@~-]+")


def shell_command(words: Iterable[object]) -> str:
    """`words` as one line for the shell of this system: `python -m cupygpt.sample 'my run'`."""
    return " ".join(shell_word(word) for word in words)


def shell_word(word: object) -> str:
    """One word of a command, quoted where it needs to be: a path with blanks, brackets or &."""
    text = str(word)
    if os.name != "nt":
        return shlex.quote(text)
    # Double quotes, which cmd.exe and PowerShell both read; a file name cannot contain them.
    return text if _PLAIN_ON_WINDOWS.fullmatch(text) else f'"{text}"'
