"""What a run keeps when the disk is full or refuses to delete."""

import errno
import os
import sys
from pathlib import Path

import pytest
from support.small_runs import main_log, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.train import main


@pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")
def test_a_full_disk_gets_the_newest_checkpoint_in_the_place_of_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if name.startswith("model") and len(checkpoint_steps(run)) == 2:  # there is room for two
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert main([*write_files(tmp_path), "-n", "20", "-v", "0", "--keep", "3", "-o", str(run)]) == 1
    assert checkpoint_steps(run) == [5, 10]  # the flags keep three: nothing may go
    assert main([*write_files(tmp_path), "-n", "20", "-v", "0", "--overwrite", "-o", str(run)]) == 0
    assert checkpoint_steps(run) == [15, 20]
    assert len(main_log(run)) == 20


def test_a_checkpoint_that_cannot_be_deleted_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, real = tmp_path / "run", Path.unlink

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == "DONE_00000005" and path.exists():
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert main([*write_files(tmp_path), "-n", "15", "-v", "0", "-o", str(run)]) == 0
    assert f"an old checkpoint stays: {run / 'DONE_00000005'}: could not be deleted" in (
        capsys.readouterr().out
    )
    assert checkpoint_steps(run) == [5, 10, 15]
