"""--extend trains a run longer; stopped and resumed, it gives the bits of one that went through."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import main_log, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.train import main


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run of ten steps, at its end, with a decaying rate and dropout."""
    run = tmp_path / "run"
    flags = ["-n", "10", "-q", "0.1", "-u", "2", "--dropout", "0.1", "--keep", "0"]
    assert main([*write_files(tmp_path), *flags, "-o", str(run)]) == 0
    return run


def rates(run: Path) -> list[float]:
    return [float(line.split()[2][3:]) for line in main_log(run) if " trl:" in line]


def test_stopped_and_resumed_equals_an_extension_without_a_stop(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = finished, Path(shutil.copytree(finished, tmp_path / "stopped"))
    capsys.readouterr()
    for run in (straight, stopped):
        assert main(["--resume", str(run), "--extend", "20"]) == 0
    assert "extended by 20 steps from step 10 to 30: the learning rate rises in 2 steps from" in (
        capsys.readouterr().out
    )
    for step in (20, 25, 30):  # as if it had been killed after step 15
        for path in stopped.glob(f"*_{step:08d}*"):
            path.unlink()
    assert main(["--resume", str(stopped)]) == 0
    assert checkpoint_steps(stopped) == checkpoint_steps(straight) == [5, 10, 15, 20, 25, 30]
    assert main_log(stopped) == main_log(straight)
    states = [load_checkpoint(run, 30).state for run in (straight, stopped)]
    for name in ("params", "m", "v"):
        np.testing.assert_array_equal(*(getattr(state, name) for state in states))
    assert len(rates(straight)) == 30
    assert max(rates(straight)[10:]) == pytest.approx(0.005)
    assert rates(straight)[9] < 0.002 > rates(straight)[29]
    record = json.loads((straight / "run.json").read_text())
    assert record["extensions"] == [20]
    assert record["resumes"][0]["extended_by"] == 20
    assert record["config"]["steps"] == 10


def test_a_run_is_extended_again_and_before_its_end(finished: Path) -> None:
    for path in finished.glob("*_00000010*"):
        path.unlink()
    assert main(["--resume", str(finished), "--extend", "4"]) == 0  # from step 5
    assert main(["--resume", str(finished), "--extend", "3"]) == 0
    assert checkpoint_steps(finished)[-1] == 17
    assert json.loads((finished / "run.json").read_text())["extensions"] == [4, 3]


def test_an_extension_begins_at_the_end_of_a_run_of_epochs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path, count=400), "--epochs", "1", "-o", str(run)]) == 0
    end = checkpoint_steps(run)[-1]
    assert main(["--resume", str(run), "--extend", "6"]) == 0
    assert checkpoint_steps(run)[-1] == end + 6
    config = json.loads((run / "run.json").read_text())["config"]
    assert (config["steps"], config["epochs"]) == (end, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "already has its 10 steps. Train it longer with --extend N"),
        (["--extend", "0"], "--extend is 0, but must be at least 1"),
        (["--extend", "5", "-n", "20"], "--extend and -n/-x/--steps both set the length"),
    ],
)
def test_what_does_not_fit_is_said(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--resume", str(finished), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_new_run_is_not_extended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*write_files(tmp_path), "--extend", "5", "-o", str(tmp_path / "run")]) == 2
    assert "--extend has no effect: it makes a run longer that is continued" in (
        capsys.readouterr().err
    )
