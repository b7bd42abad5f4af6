"""The lines of README run as they stand there, only shorter: in a program, and in a notebook."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

SHORTER = {
    "steps=1000": 'steps=6, model="L4:H1:C16", seq_len=32, batch_size=2, sample_every=3',
    "tokens=80": "tokens=8",
    '"L4:H4:C64", batch_size=16, seq_len=64': '"L1:H1:C16", batch_size=16, seq_len=64',
}
"""What README says, and what the tests run instead of it."""


def blocks() -> list[str]:
    """The lines of README for Python: those for a notebook, and the loop."""
    section = (ROOT / "README.md").read_text().partition("## In Python")[2].partition("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(found) == 2
    return found


def shorter(lines: str) -> str:
    for text, other in SHORTER.items():
        lines = lines.replace(text, other)
    return lines


def test_the_notebook_of_the_readme_has_ten_lines() -> None:
    assert len([line for line in blocks()[0].splitlines() if line]) == 10
    for text in SHORTER:
        assert any(text in block for block in blocks()), text


def test_the_lines_run_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "mytext.txt").write_text("It was a quick brown fox. " * 400)
    words = ["-m", "cupygpt.prepare", "mytext.txt", "--tokenizer", "bytes"]
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, capture_output=True)
    program = shorter(blocks()[0]) + "\nimport cupygpt\n" + shorter(blocks()[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for wanted in ("validation loss", "The file", "To open", "(23, 23)", "(23, 257)", "It was"):
        assert wanted in done.stdout, wanted
    assert re.search(r"^2 \d\.\d+ \d\.\d+$", done.stdout, re.MULTILINE)
    assert (tmp_path / "mygpt.gguf").is_file()
    assert (tmp_path / "mymodel.bin").is_file()


def run_cells(folder: Path, *cells: str) -> list[Any]:
    """Run cells in a kernel of this Python; skips the test where Jupyter is missing."""
    reason = "nbclient and ipykernel, of Jupyter, are not installed"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(made, timeout=300, resources=resources, allow_errors=True)
    return list(client.execute().cells)


def texts_of(cell: Any) -> list[str]:
    """What a cell shows, by output: printed text, what was displayed, errors."""
    return [
        output.get("text", "") + "".join(output.get("data", {}).values()) + output.get("evalue", "")
        for output in cell.outputs
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter itself
def test_a_notebook_runs_the_lines(tmp_path: Path) -> None:
    small = 'model="L1:H1:C16", seq_len=16, batch_size=2, out="a"'
    cells = run_cells(
        tmp_path,
        shorter(blocks()[0]),
        f"cupygpt.train_model(steps=5, {small}, quiet=True)",
        f"cupygpt.train_model(steps=5, {small})",
        """
        import os, signal, threading
        def stop(event):
            if event.kind == "step" and event.step == 3:
                os.kill(os.getpid(), signal.SIGINT)  # what the stop button does
        run = cupygpt.train_model(minutes=5, on_event=stop, seq_len=16)
        print(run.stopped_by, len(run.steps) >= 4, run.load("newest"))
        """,
        f"""
        runs = []
        for name in "xy":
            work = lambda: runs.append(cupygpt.train_model(steps=5, {small[:-1]}" + name))
            threading.Thread(target=work, name=name).start()
        for thread in threading.enumerate():
            if thread.name in ("x", "y"):
                thread.join()
        print(len(runs), (runs[0].losses == runs[1].losses).all())
        """,
        "print(model.logits(ids).shape, next(model.generate(stream=True)) != '')",
    )
    first, second, twice, stopped, threads, after = map(texts_of, cells)
    assert not any("\x1b" in text for cell in cells for text in texts_of(cell))
    assert any("step 6/6" in text and "<pre" in text for text in first)  # the bar
    printed = "".join(first)
    for wanted in ("validation loss", "The file", "To open", "(23, 23)", "(23, 257)"):
        assert wanted in printed, printed
    assert (tmp_path / "mygpt.gguf").is_file()
    assert "<cupygpt.TrainedRun a: 5 steps" in second[-1]
    assert "overwrite=True" in twice[-1]
    assert "SIGINT True <cupygpt.Model step" in "".join(stopped)
    assert "2 True" in "".join(threads)
    assert "(23, 257) True" in "".join(after)
