"""A run whose output is closed, full or narrow trains and saves as any other."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import TINY, main_log, metrics, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.config import GPTConfig
from cupygpt.prepare import main as prepare
from cupygpt.sample import main as sample
from cupygpt.train import main

pty = pytest.importorskip("pty", reason="terminals and shells of POSIX")


def shell(command: str, folder: Path) -> "subprocess.CompletedProcess[bytes]":
    """`command` in a shell; `train` in it is the command."""
    line = f'train() {{ {shlex.quote(sys.executable)} -m cupygpt.train "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
    )


def flags(folder: Path, *more: str, config: GPTConfig = TINY) -> str:
    files = write_files(folder, config)
    return shlex.join([*files, "-n", "12", "--log-every", "1", "-o", "run", *more])


@pytest.mark.parametrize("where", [">/dev/full", ">&- 2>&-"])
def test_no_output_stops_no_run(tmp_path: Path, where: str) -> None:
    result = shell(f"train {flags(tmp_path, '-s', '6')} {where}", tmp_path)
    assert result.returncode == 0, result.stderr
    assert checkpoint_steps(tmp_path / "run")[-1] == 12
    assert sum(" trl:" in line for line in main_log(tmp_path / "run")) == 12
    if where == ">/dev/full":
        warning = "stdout cannot be written to (No space left on device). The run goes on"
        assert set(result.stderr.decode().splitlines()) == {f"warning: {warning} without it."}
    else:
        assert result.stderr == b""


def test_a_closed_pipe_saves_first_and_loses_nothing(tmp_path: Path) -> None:
    command = flags(tmp_path, "--checkpoint-every", "0", "-v", "0", "-n", "200")
    result = shell(f"train {command} | sed '/^step  *5\\//q'", tmp_path)  # quits at step 5
    assert result.returncode == 141
    said = result.stderr.decode()
    assert (
        "stopped by SIGPIPE (nobody reads the output any more); "
        "continue:  python -m cupygpt.train --resume run\n"
    ) in said
    assert "Traceback" not in said
    assert "Exception" not in said
    (step,) = checkpoint_steps(tmp_path / "run")
    assert 5 <= step < 200
    assert main([*shlex.split(command), "-o", str(tmp_path / "whole")]) == 0
    assert main(["--resume", str(tmp_path / "run")]) == 0
    ends = [load_checkpoint(tmp_path / name, 200).state.params for name in ("run", "whole")]
    np.testing.assert_array_equal(*ends)


def test_ctrl_c_reaches_the_reader_of_a_pipe_too(tmp_path: Path) -> None:
    """As with `| tee log`, which dies of it first: what follows is said on stderr."""
    command = flags(tmp_path, "--checkpoint-every", "0", "-v", "0", "-n", "100000")
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "cupygpt.train", *shlex.split(command), "--log-every", "100000"],
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    text = b""
    while b"step " not in text:
        text += os.read(reader, 4096)
    os.close(reader)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    (step,) = checkpoint_steps(tmp_path / "run")
    assert f"{step} of 100000 steps in" in said.decode().replace(",", "")
    assert "stopped by SIGINT; continue:  python -m cupygpt.train --resume run" in said.decode()


def test_a_terminal_that_is_gone_stops_no_run(tmp_path: Path) -> None:
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cupygpt.train",
            *shlex.split(flags(tmp_path, "-n", "100000", "-v", "0")),
        ],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
        stdout=other,
        stderr=other,
    )
    os.close(other)
    text = b""
    while b"ms/step" not in text:  # the bar is there
        text += os.read(terminal, 4096)
    os.close(terminal)
    first = len(main_log(tmp_path / "run"))
    while len(main_log(tmp_path / "run")) < first + 50:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert checkpoint_steps(tmp_path / "run")[-1] > first


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_encoding_of_stdout_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """The samples of the first steps are noise: few of their characters exist in cp1252."""
    config = GPTConfig(maxT=16, V=257, L=1, NH=1, C=8)
    monkeypatch.chdir(tmp_path)
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding))
    assert main(shlex.split(flags(tmp_path, "-s", "6", config=config))) == 0
    assert "sample at step 6" in data.getvalue().decode(encoding)
    samples = metrics(tmp_path / "run", "sample")
    assert [event["step"] for event in samples] == [6, 12]
    assert any("\ufffd" in str(event["text"]) for event in samples)  # the logs are UTF-8


def test_help_and_errors_need_no_unicode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, "ascii"))
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    sys.stdout.flush()
    assert b"B x T x GPUs" in out.getvalue()
    assert main(shlex.split(flags(tmp_path, "-d", "50"))) == 2
    assert b"4 x 8 = 32" in err.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_bar", [False, True])
def test_no_bar_gives_lines_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, no_bar: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("JPY_PARENT_PID", "PAGER", "GIT_PAGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(shlex.split(flags(tmp_path, *(["--no-bar"] if no_bar else [])))) == 0
    assert ("\x1b[" in stream.getvalue()) == (not no_bar)
    assert ("step   12/12 | epoch" in stream.getvalue()) == no_bar


def test_printed_commands_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's [my] run & (more)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "the text.txt").write_text("To be, or not to be. " * 100)

    def printed(program: str) -> list[str]:
        """The words of the last command that was printed, as a shell reads them."""
        out, err = capfd.readouterr()
        found = re.findall(rf"python -m cupygpt\.{program} .*", out + err)
        return shlex.split(found[-1])[3:]

    text = str(folder / "the text.txt")
    assert prepare([text, "--tokenizer", "bytes", "-o", str(folder)]) == 0
    words = printed("train")
    assert main([*words, "-e", "L1:H1:C16", "-t", "8", "-n", "1", "-o", str(folder / "a b")]) == 0
    assert sample([*printed("sample"), "--tokens", "3"]) == 0
    assert main(["-i", text]) == 2
    assert printed("prepare") == [text]
