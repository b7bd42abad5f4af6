"""A run that diverges stops with advice that works, and leaves no checkpoint of that state."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from support.rank_runs import as_ranks, finish, start_program
from support.small_runs import main_log, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.checkpoint.state_file import Progress, TrainState
from cupygpt.planning.schedule import Schedule
from cupygpt.train import main
from cupygpt.training import loop
from cupygpt.training.diverged import has_finite_moments
from cupygpt.training.keeper import Keeper

HUGE = ["-l", "1e30", "-n", "3", "--grad-clip", "0"]


def fail_on_constant(name: str) -> None:
    pytest.fail(f"{name} is no JSON")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-v", "1"], "step 1: validation loss nan"),
        (["-v", "0", "-s", "1", "-g", "4"], "step 1: the loss is "),
        (["-v", "0", "--checkpoint-every", "1"], "step 1: the loss is "),
        (["-v", "0", "--checkpoint-every", "0"], "step 1: loss "),
        (["-v", "0", "--checkpoint-every", "0", "-n", "1"], "step 1: the loss is "),
    ],
)
def test_the_first_bad_update_is_noticed_whatever_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), *HUGE, *flags, "-o", str(run)]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert "No checkpoint was saved yet. Start again with a lower learning rate (-l 0.001)" in err
    assert checkpoint_steps(run) == []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=fail_on_constant)
    assert len([line for line in main_log(run) if "trl" in line]) == 1
    assert "nan" not in (run / "main.log").read_text()


def test_the_advice_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "the run"
    assert main([*write_files(tmp_path), "-n", "4", "-v", "2", "-o", str(run)]) == 0
    record = json.loads((run / "run.json").read_text())
    record["config"] |= {"learning_rate": 1e30, "steps": 9}
    del record["checksum"]
    (run / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["--resume", str(run)]) == 1
    err = capsys.readouterr().err
    assert "To resume would repeat the same numbers" in err
    assert checkpoint_steps(run) == [2, 4]
    command = re.search(r"python -m cupygpt\.train (.*)", err)
    assert command is not None
    words = shlex.split(command[1])
    assert words[words.index("-e") + 1] == str(run / "model_00000004.bin")
    assert float(words[words.index("-l") + 1]) == 1e-3
    assert main([*words, "-n", "3", "--device", "cpu", "-o", str(tmp_path / "next")]) == 0


def test_moments_that_overflow_count_as_diverged() -> None:
    fine, bad = np.ones(5, np.float32), np.full(5, np.inf, np.float32)
    assert has_finite_moments(TrainState(Progress(1), m=fine, v=fine))
    assert not has_finite_moments(TrainState(Progress(1), m=fine, v=bad))
    assert has_finite_moments(TrainState(Progress(1)))


def test_the_best_weights_in_memory_are_saved_before_the_run_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    flags = write_files(tmp_path)
    del flags[flags.index("--checkpoint-every") :]  # the clock decides: never, in this test
    monkeypatch.setattr(Keeper, "_is_affordable", lambda _: False)
    monkeypatch.setattr(Schedule, "__call__", lambda _, step: 1e-3 if step < 4 else 1e30)
    assert main([*flags, "-n", "9", "-v", "2", "-o", str(run)]) == 1
    assert "Start a new run from the weights of step 4" in capsys.readouterr().err
    assert checkpoint_steps(run) == [4]


@pytest.mark.parametrize("steps", ["9", "6"])
def test_the_best_weights_in_memory_are_saved_when_the_moments_diverge(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    steps: str,
) -> None:
    """Those of step 6 do, when a better validation is to be kept, or the last step saved."""
    run = tmp_path / "run"
    flags = write_files(tmp_path)
    del flags[flags.index("--checkpoint-every") :]
    monkeypatch.setattr(Keeper, "_is_affordable", lambda _: False)
    monkeypatch.setattr(loop, "has_finite_moments", lambda state: state.progress.step < 6)
    assert main([*flags, "-n", steps, "-v", "2", "-o", str(run)]) == 1
    err = capsys.readouterr().err
    assert "step 6: AdamW's moments are not finite" in err
    assert "Start a new run from the weights of step 4" in err
    assert checkpoint_steps(run) == [4]


DIVERGING_RANK = """
import os, sys
from cupygpt.train import main
from cupygpt.training import loop
from cupygpt.training.keeper import Keeper

Keeper._is_affordable = lambda _: False
if os.environ["RANK"] == "1":
    loop.has_finite_moments = lambda state: state.progress.step < 6
sys.exit(main(sys.argv[1:]))
"""


def test_the_moments_of_one_rank_end_all_ranks_with_the_best_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = write_files(tmp_path)
    del flags[flags.index("--checkpoint-every") :]
    flags += ["-n", "9", "-v", "2", "-b", "2", "-z", "1", "-o", str(run)]
    ranks = [start_program(DIVERGING_RANK, *flags, **environ) for environ in as_ranks(2)]
    ends = [finish(process) for process in ranks]
    assert [code for code, _, _ in ends] == [1, 1]
    assert ends[0][2].startswith("error: step 6: AdamW's moments are not finite.")
    assert "Start a new run from the weights of step 4" in ends[0][2]
    assert "--resume" not in ends[0][2]
    assert ends[1][2] == ""
    assert checkpoint_steps(run) == [4]
