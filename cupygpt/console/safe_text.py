"""Text that a terminal can show without being controlled by it."""

import re

_CONTROLLING = re.compile("\r\n|[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and those that turn the direction of what follows."""


def safe_text(text: str) -> str:
    """`text` with a dot for each character that would control the terminal.

    A model may write any byte, ESC too. All other characters stay as they are: tabs, blanks of any
    kind, joiners. A carriage return stays before a newline, where it does nothing.
    """
    return _CONTROLLING.sub(lambda found: found[0] if found[0] == "\r\n" else "·", text)


class SafeTextStream:
    """`safe_text` of a text that comes in pieces."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """The safe form of the text so far; a carriage return waits for what follows it."""
        text = self._held + piece
        self._held = "\r" if text.endswith("\r") else ""
        return safe_text(text.removesuffix(self._held))

    def flush(self) -> str:
        """The safe form of what is left at the end of the text."""
        text, self._held = self._held, ""
        return safe_text(text)
