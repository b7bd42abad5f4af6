"""The lines of a kernel's file, as a report shows them."""

from pathlib import Path

from cupygpt.console.safe_text import safe_text


class SourceLines:
    """The text of a file; empty lines where it cannot be read."""

    def __init__(self, file: Path) -> None:
        try:
            self._rows = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            self._rows = []

    def short(self, line: int, width: int) -> str:
        """The beginning of a line, counted from 1, in at most `width` letters."""
        if not 1 <= line <= len(self._rows):
            return ""
        return " ".join(safe_text(self._rows[line - 1]).split())[:width]
