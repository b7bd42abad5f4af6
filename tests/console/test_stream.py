"""Output that fails does not stop the program; what an encoding lacks is replaced."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cupygpt.console.bar import StepLine
from cupygpt.console.console import Console
from cupygpt.console.stream import SafeStream

TEXT = "4 × 8 · naïve – 日本 …"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", TEXT),
        ("latin-1", "4 × 8 · naïve - ?? ..."),
        ("cp1252", "4 × 8 · naïve – ?? …"),
        ("ascii", "4 x 8 . na?ve - ?? ..."),
    ],
)
def test_what_the_encoding_lacks_is_replaced(encoding: str, shown: str) -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding)
    SafeStream(stream).write(TEXT)
    assert data.getvalue().decode(encoding) == shown


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, "utf-8")
    SafeStream(stream).write("caf\udce9")
    assert data.getvalue() == b"caf?"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_of_any_encoding_shows_a_run(encoding: str, *, terminal: bool) -> None:
    data = io.BytesIO()
    console = Console(io.TextIOWrapper(data, encoding), terminal=terminal, width=80)
    console.header([("batch", TEXT)])
    console.start(0, 2)
    console.step(StepLine(1, 0.5, 2.5, 1e-3, 0.75, 0.1, 1024))
    console.sample(1, TEXT)
    console.finish()
    assert "sample at step 1" in data.getvalue().decode(encoding)


class FullDisk(io.RawIOBase):
    """A file that takes `room` bytes, and more when there is `room` again."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        taken = bytes(data)[: self.room]  # type: ignore[call-overload]
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.taken += taken
        self.room -= len(taken)
        return len(taken)


def test_a_full_disk_is_told_once_and_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    raw = FullDisk(room=8)
    console = Console(io.TextIOWrapper(io.BufferedWriter(raw), "utf-8"))
    for text in ("first", "second", "third"):
        console.note(text)
    assert not console.reader_gone
    raw.room = 100
    console.note("fourth")
    assert raw.taken == b"first\nsefourth\n"
    assert capsys.readouterr().err.count("stdout cannot be written to (No space left") == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_pipe_that_its_reader_has_closed_is_noticed() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        console = Console(stream)
        console.note("read")
        assert os.read(reader, 100) == b"read\n"
        assert not console.reader_gone
        os.close(reader)
        console.note("lost")
        console.note("lost too")
        assert console.reader_gone


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_pipe_that_does_not_block_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    program = "import sys, time; time.sleep(0.2); sys.stdout.write(str(len(sys.stdin.read())))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=reader, stdout=subprocess.PIPE
    ) as process:
        os.close(reader)
        with os.fdopen(writer, "w", encoding="utf-8") as stream:
            SafeStream(stream).write("x" * 300_000)
        assert process.communicate()[0] == b"300000"


def test_a_stream_that_was_closed_is_no_error() -> None:
    stream = io.StringIO()
    safe = SafeStream(stream)
    stream.close()
    safe.write("lost")
    assert isinstance(safe.error, ValueError)


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_process_without_streams_keeps_their_numbers_free(tmp_path: Path, closed: str) -> None:
    """Otherwise the next file that is opened would receive what is printed."""
    program = (
        "import os, sys\n"
        "from cupygpt.console.stream import say, set_up_streams\n"
        "set_up_streams()\n"
        "with open('log', 'w') as log:\n"
        "    print('out'); say('err'); os.write(1, b'library')\n"
        "    log.write(str(log.fileno() > 2 and sys.stdout.writable()))\n"
    )
    command = f'"{sys.executable}" -c "{program}" {closed}'
    result = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "log").read_text() == "True"
