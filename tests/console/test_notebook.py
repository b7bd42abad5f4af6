import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from console.test_console import Clock, line

from cupygpt.console.console import Console
from cupygpt.console.notebook import NotebookBar, in_notebook


class Cell:
    """The output of a cell: what was displayed, and what it became."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> "Cell":
        assert raw
        assert display_id
        assert not self.shown
        self.shown.append(content)
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(content)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A kernel as far as the bar knows it: ipykernel is loaded, and IPython displays."""
    cell = Cell()
    modules: dict[str, Any] = {name: ModuleType(name) for name in ("ipykernel", "IPython")}
    modules["IPython.display"] = ModuleType("IPython.display")
    modules["IPython"].get_ipython = lambda: SimpleNamespace(kernel="kernel")
    modules["IPython.display"].display = cell.display
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return cell


def test_a_notebook_shows_a_bar_beside_the_lines(cell: Cell) -> None:
    assert in_notebook()
    stream = io.StringIO()
    console = Console(stream, notebook=NotebookBar(), clock=Clock())
    console.start(0, 30)
    for step in range(1, 31):
        console.step(line(step))
    console.validation(30, 2.25, None, best=True)
    console.finish()
    assert stream.getvalue() == "step   30 | validation loss 2.2500 | best so far\n"
    assert len(cell.shown) < 10  # not one for each step
    assert "first step" in cell.shown[0]["text/plain"]
    last = cell.shown[-1]
    assert "step 30/30" in last["text/plain"]
    assert "loss 2.5000" in last["text/plain"]
    assert "<pre" in last["text/html"]
    assert not any("\x1b" in text for shown in cell.shown for text in shown.values())


def test_ipython_on_a_terminal_is_no_notebook(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace())
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert not in_notebook()
