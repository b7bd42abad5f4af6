"""When a checkpoint is worth its time, and what is kept when the disk refuses."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import StillTime, main_log, still_time, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.checkpoint.state_file import Progress, TrainState
from cupygpt.distributed.ranks import ONE_RANK
from cupygpt.run_folder.log import RunLog
from cupygpt.train import main
from cupygpt.training.clock import Clock
from cupygpt.training.keeper import Keeper

GIGABYTE = 10**9
"""At the guessed 500 MB a second a checkpoint of this size takes 2 seconds."""

LOG = RunLog(None)


class Bench:
    """A run that stands at `step`, with weights that say so; saving takes `cost` seconds."""

    def __init__(self, still: StillTime, *, is_timed: bool = True) -> None:
        self.still, self.step, self.cost = still, 0, 2.0
        self.weights = np.zeros(1, np.float32)
        self.saved_step: int | None = None
        self.written: list[tuple[int, float]] = []
        self.keeper = Keeper(
            self,  # type: ignore[arg-type]
            lambda: TrainState(Progress(self.step), params=self.weights),
            Clock(began=0.0),
            ONE_RANK,
            is_timed=is_timed,
            num_bytes=GIGABYTE,
        )

    def save(self, state: TrainState, log: RunLog, best_step: int | None) -> None:
        """In place of the saver's."""
        assert state.params is not None
        self.still.now += self.cost
        self.saved_step = state.progress.step
        self.written.append((state.progress.step, float(state.params[0])))

    def train_to(self, step: int) -> None:
        self.step = step
        self.weights[:] = step


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> StillTime:
    return still_time(monkeypatch)


def test_a_best_validation_that_is_too_dear_is_written_with_the_last_checkpoint(
    still: StillTime,
) -> None:
    run = Bench(still)
    for seconds, step in ((10.0, 5), (50.0, 7)):
        still.now = seconds
        run.train_to(step)
        run.keeper.keep_best(LOG, step)
    assert run.written == []
    run.train_to(9)
    run.keeper.save(LOG, 9, best_step=7)
    assert run.written == [(7, 7.0), (9, 9.0)]


def test_a_copy_that_is_no_longer_the_best_is_dropped(still: StillTime) -> None:
    run = Bench(still)
    still.now = 10.0
    run.train_to(5)
    run.keeper.keep_best(LOG, 5)
    still.now = 100.0
    run.train_to(6)
    run.keeper.keep_best(LOG, 6)  # two seconds of a hundred: saved at once
    assert run.written == [(6, 6.0)]
    run.keeper.save(LOG, 6, best_step=6)
    assert run.written == [(6, 6.0)]


def test_saving_stays_within_its_share(still: StillTime) -> None:
    """A hundred best validations, one every ten seconds: at most 2 % of the time is saving."""
    run = Bench(still)
    for step in range(1, 101):
        still.now += 10.0
        run.train_to(step)
        run.keeper.keep_best(LOG, step)
    assert len(run.written) >= 5
    assert run.cost * len(run.written) <= 0.021 * still.now


def test_a_checkpoint_is_due_after_ten_minutes(still: StillTime) -> None:
    run = Bench(still)
    still.now = 599.0
    assert not run.keeper.is_due()
    still.now = 601.0
    assert run.keeper.is_due()
    run.train_to(1)
    run.keeper.save(LOG, 1, best_step=None)
    assert not run.keeper.is_due()
    run.cost = 1000.0
    still.now = 2000.0
    assert run.keeper.is_due()
    run.train_to(2)
    run.keeper.save(LOG, 2, best_step=None)
    still.now += 700.0
    assert not run.keeper.is_due()  # it has had its share for a while


def test_with_a_cadence_from_the_flags_every_best_validation_is_saved(still: StillTime) -> None:
    run = Bench(still, is_timed=False)
    for step in (1, 2, 3):
        run.train_to(step)
        run.keeper.keep_best(LOG, step)
    assert run.written == [(1, 1.0), (2, 2.0), (3, 3.0)]
    still.now = 10**6
    assert not run.keeper.is_due()


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
