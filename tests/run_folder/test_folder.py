"""Which run is meant where no name is given."""

import os
import shutil
from pathlib import Path

import pytest
from support.small_runs import write_files

from cupygpt.errors import ConfigError
from cupygpt.run_folder.folder import newest_run
from cupygpt.train import main


def test_a_run_without_its_log_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose main.log is gone is still a run; one without a checkpoint is none."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no run with a checkpoint"):
        newest_run()
    assert main([*write_files(tmp_path), "-n", "1", "--no-bar", "-o", "runs/a"]) == 0
    shutil.copytree("runs/a", "runs/b")
    shutil.copytree("runs/a", "runs/c")
    Path("runs/b/main.log").unlink()
    for done in Path("runs/c").glob("DONE_*"):
        done.unlink()
    newer = Path("runs/a/main.log").stat().st_mtime + 100
    for path in Path("runs/b").iterdir():
        os.utime(path, (newer, newer))
    assert newest_run() == Path("runs/b")
    shutil.rmtree("runs/b")
    assert newest_run() == Path("runs/a")
