"""A bar in the output of a notebook's cell, which is drawn anew in its place."""

import io
import sys
import time
from typing import Any

from rich.console import Console as RichConsole
from rich.console import RenderableType

WIDTH = 100
INTERVAL_S = 0.5

_HTML = '<pre style="line-height:1.2;margin:0">{code}</pre>'


def in_notebook() -> bool:
    """Whether this program runs in the kernel of a notebook, which can change its output."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class NotebookBar:
    """What was drawn last, below the cell in which the bar was made."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn_at = -INTERVAL_S

    def draw(self, bar: RenderableType, *, at_once: bool = False) -> None:
        """Show the bar. Twice a second is enough; `at_once` does not wait."""
        now = time.perf_counter()
        if now - self._drawn_at < INTERVAL_S and not at_once:
            return
        self._drawn_at = now
        from IPython.display import display

        content = as_output(bar)
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def as_output(bar: RenderableType) -> dict[str, str]:
    """The bar by MIME type: in colours for a browser, and as plain text, without control codes."""
    recording = RichConsole(
        file=io.StringIO(),
        record=True,
        width=WIDTH,
        force_terminal=True,
        force_jupyter=False,
        color_system="truecolor",
        legacy_windows=False,
        highlight=False,
    )
    recording.print(bar)
    return {
        "text/plain": recording.export_text(clear=False).rstrip(),
        "text/html": recording.export_html(code_format=_HTML, inline_styles=True),
    }
