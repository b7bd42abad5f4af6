"""One process at a time owns a run folder."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_runs import main_log, write_files

from cupygpt.errors import ConfigError
from cupygpt.run_folder import lock as lock_module
from cupygpt.run_folder.lock import LOCK, FolderLock
from cupygpt.train import main

HOLD = """
import sys, time
from pathlib import Path
from cupygpt.run_folder.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock of tmp_path / "run"."""
    run = tmp_path / "run"
    run.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process  # type: ignore[misc]
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_with_who_has_it(
    tmp_path: Path, holder: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-n", "2", "-o", str(run)]
    before = sorted(path.name for path in run.iterdir())
    for arguments in (flags, [*flags, "--overwrite"], ["--resume", str(run)]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert f"{run} is in use by process {holder.pid} on " in err
        assert "-c" in err  # its command
    assert sorted(path.name for path in run.iterdir()) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert main(flags) == 0


def test_a_resume_of_a_running_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-o", str(run)]) == 0
    log = main_log(run)
    with FolderLock(run):
        assert main(["--resume", str(run), "-n", "9"]) == 2
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert main_log(run) == log
    assert main(["--resume", str(run), "-n", "9"]) == 0


def test_the_file_is_gone_when_the_lock_is_free(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(tmp_path)
        assert (tmp_path / LOCK).exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_was_removed_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two processes could each hold a lock, on two files of one name."""
    real, calls = lock_module._lock, []

    def removed_before(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        real(descriptor)

    monkeypatch.setattr(lock_module, "_lock", removed_before)
    with FolderLock(tmp_path):
        assert len(calls) == 2
        monkeypatch.undo()
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock_module, "_lock", refuse)
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "3", "-v", "0", "-o", str(run)]) == 0
    assert main(["--resume", str(run), "-n", "5"]) == 0
    assert capsys.readouterr().out.count("has no locks") == 2


def test_the_text_of_another_process_cannot_control_the_terminal(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        (tmp_path / LOCK).write_text(
            '{"pid": 7, "host": "a\\u001b[2Jb", "since": "now", "command": "c"}'
        )
        with pytest.raises(ConfigError) as raised:
            FolderLock(tmp_path)
        assert "process 7" in str(raised.value)
        assert "\x1b" not in str(raised.value)
        (tmp_path / LOCK).write_text("half")
        with pytest.raises(ConfigError, match="in use by another process"):
            FolderLock(tmp_path)
