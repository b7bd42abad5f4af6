"""A run that is stopped at any moment goes on, or starts anew, to the same bits."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupygpt import prepare
from cupygpt.data.token_files import open_shards
from cupygpt.errors import RunError
from cupygpt.texts import prepare_texts
from cupygpt.texts.reading.documents import Documents
from cupygpt.texts.writing import write_tokens
from cupygpt.texts.writing.encode_blocks import blocks
from cupygpt.texts.writing.write_tokens import Split

BYTES = ["--tokenizer", "bytes"]

REQUESTS = {
    "one long document, its end held out": ["long.txt", "--shard-tokens", "1500"],
    "no validation": ["long.txt", "--val-fraction", "0"],
    "half of each document": ["m/*.txt", "--val-fraction", "0.5", "--shard-tokens", "700"],
    "whole documents": ["d/*.txt", "--shard-tokens", "1111", "--dedup"],
}


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with texts, which come in small pieces; a state after every few."""
    monkeypatch.chdir(tmp_path)
    choose = random.Random(3)
    for folder, count, most in (("d", 200, 100), ("m", 7, 4000)):
        Path(folder).mkdir()
        for i in range(count):
            words = (f"{choose.random():.3f}" for _ in range(choose.randint(1, most // 6)))
            Path(folder, f"{i}.txt").write_text("\n".join(words))
    Path("d/again.txt").write_text(Path("d/7.txt").read_text())
    Path("long.txt").write_text("".join(f"line {i} of a long text\n" for i in range(900)))
    monkeypatch.setattr(prepare_texts, "Documents", functools.partial(Documents, block_bytes=150))
    small = functools.partial(blocks, block_characters=400)
    monkeypatch.setattr(write_tokens, "blocks", small)
    monkeypatch.setattr(write_tokens, "SAVE_EVERY_BYTES", 1500)
    return tmp_path


def run(*args: str, name: str = "x") -> int:
    return prepare.main([*args, *BYTES, "-o", "out", "--name", name])


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("out").iterdir())}


def kill(_: Path) -> None:
    """What is on the disk at this moment stays, and nothing else."""
    shutil.copytree("out", "killed")
    raise KeyboardInterrupt


def interrupt(_: Path) -> None:
    raise KeyboardInterrupt


def fill_disk(_: Path) -> None:
    raise RunError("the disk is full.")


@pytest.mark.parametrize("stop", [kill, interrupt, fill_disk])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_stopped_run_goes_on_to_the_same_bits(
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request_name: str,
    stop: Callable[[Path], None],
) -> None:
    args = REQUESTS[request_name]
    assert run(*args) == 0
    want = written()
    assert not [name for name in want if name.endswith(".partial")]
    real_add, added = Split.add, 0
    stop_at = [-1]

    def add(split: Split, block: Any) -> None:
        nonlocal added
        if added == stop_at[0]:
            stop(texts)
        added += 1
        real_add(split, block)

    monkeypatch.setattr(Split, "add", add)
    for old in Path("out").iterdir():
        old.unlink()
    assert run(*args, "--workers", "3") == 0
    total = added
    assert total > 15
    went_on = 0
    for moment in random.Random(5).sample(range(total), 3):
        for old in Path("out").iterdir():
            old.unlink()
        added, stop_at[0] = 0, moment
        assert run(*args) in (1, 130)
        if Path("killed").exists():
            shutil.rmtree("out")
            Path("killed").rename("out")
        assert not [path for path in Path("out").iterdir() if path.suffix == ".bin"]
        stop_at[0], added = -1, 0
        capsys.readouterr()
        assert run(*args, "--workers", "2") == 0
        goes_on = "note: going on where an earlier run was stopped" in capsys.readouterr().out
        assert written() == want
        assert (added < total) == goes_on, "only what came after the last state is repeated"
        went_on += goes_on
    assert went_on >= 1


def test_what_was_stopped_with_other_settings_counts_for_nothing(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Split, "add", stopping_after(20, Split.add))
        assert run("long.txt") == 130
    assert "what was written so far stays" in capsys.readouterr().out
    left = sorted(path.name for path in Path("out").iterdir())
    assert left == ["x_prepare.json.partial", "x_train_000001.bin.partial"]
    journal = Path("out/x_prepare.json.partial").read_bytes()
    text = Path("long.txt").read_text()
    for change in (
        ["long.txt", "--val-fraction", "0.2"],
        ["long.txt", "--shard-tokens", "1000"],
    ):
        assert run(*change) == 0
        assert "going on" not in capsys.readouterr().out
        for path in Path("out").iterdir():
            path.unlink()
        Path("out/x_prepare.json.partial").write_bytes(journal)
    Path("long.txt").write_text(text.replace("line 5 ", "line 6 "))
    assert run("long.txt") == 0
    Path("out/x_prepare.json.partial").write_bytes(journal[:-9])
    Path("long.txt").write_text(text)
    assert run("long.txt") == 0
    assert "going on" not in capsys.readouterr().out
    assert not [path for path in Path("out").iterdir() if path.suffix == ".partial"]


def test_two_processes_do_not_write_the_same_files(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one says so at once, and the first is not disturbed."""
    assert run("long.txt") == 0
    want, real_add, codes = written(), Split.add, []

    def add(split: Split, block: Any) -> None:
        if not codes:
            codes.append(0)
            codes[:] = [run("long.txt"), run("long.txt", name="y")]
        real_add(split, block)

    monkeypatch.setattr(Split, "add", add)
    assert run("long.txt") == 0
    assert codes == [2, 0]
    errors = capsys.readouterr().err
    assert "error: out: another process is writing x_train.bin there" in errors
    assert {name: raw for name, raw in written().items() if name[0] != "y"} == want


def stopping_after(count: int, real: Any) -> Any:
    calls = iter(range(count))

    def add(*args: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        real(*args)

    return add


def test_a_file_that_changes_meanwhile_leaves_nothing(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def grow(split: Split, block: Any) -> None:
        with Path("long.txt").open("a") as file:
            file.write("more\n")

    monkeypatch.setattr(Split, "add", grow)
    assert run("long.txt") == 2
    assert "long.txt: changed while it was read" in capsys.readouterr().err
    assert not list(Path("out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_leaves_nothing_that_looks_whole(
    tmp_path: Path, number: signal.Signals
) -> None:
    text = "".join(
        f"{i} is followed by {i + 1}, and {i * i} is its square\n" for i in range(300_000)
    )
    (tmp_path / "a.txt").write_text(text)
    command = [
        sys.executable,
        "-m",
        "cupygpt.prepare",
        "a.txt",
        *BYTES,
        "--shard-tokens",
        "2000000",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[1])}
    run_it = functools.partial(subprocess.run, check=True, capture_output=True, env=environment)
    moments = [time.monotonic()]
    for more in (["--help"], []):  # no signal while Python imports: it has its own words then
        run_it([*command, *more], cwd=tmp_path)
        moments.append(time.monotonic())
    startup, duration = moments[1] - moments[0], moments[2] - moments[1]
    want = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in tmp_path.glob("a_*"):
        path.unlink()
    for attempt in range(10):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(startup + (duration - startup) * (attempt + 1) / 10)
        process.send_signal(number)
        _, errors = process.communicate()
        assert b"Traceback" not in errors
        for path in tmp_path.glob("a_*.bin"):
            open_shards(str(path))
    run_it(command, cwd=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == want
