"""Runs whose length is given in minutes, and runs that stop when nothing improves."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import main_log, metrics, write_tokens

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.train import main

SHAPE = "L1:H1:C16:V65"


def flags(folder: Path, out: str, *more: str) -> list[str]:
    data = ["-i", str(folder / "train.bin"), "-j", str(folder / "val.bin")]
    return [*data, "-e", SHAPE, "--device", "cpu", "--no-bar", "-s", "0", "-o", out, *more]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tokens(tmp_path / "train.bin", 3000, 65)
    write_tokens(tmp_path / "val.bin", 400, 65, seed=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "run.json").read_text())
    return found


def test_the_steps_of_some_minutes_are_fixed_and_repeated(folder: Path) -> None:
    """A copy that is resumed at a checkpoint in the middle ends with the same bits."""
    every = ["--checkpoint-every", "20", "--keep", "0", "-b", "4", "-t", "16"]
    assert main(flags(folder, "whole", "--minutes", "0.05", *every)) == 0
    whole = folder / "whole"
    steps = record(whole)["steps"]
    saved = checkpoint_steps(whole)
    assert saved[-1] == steps
    assert len(main_log(whole)) > 0
    middle = next(step for step in saved if step > 0.3 * saved[-1])
    shutil.copytree(whole, folder / "copy")
    for step in saved:
        if step > middle:
            for path in (folder / "copy").glob(f"*_{step:08d}*"):
                path.unlink()
    assert main(["--resume", "copy", "--no-bar"]) == 0
    assert record(folder / "copy")["steps"] == steps
    last = f"model_{steps:08d}.bin"
    assert (folder / "copy" / last).read_bytes() == (whole / last).read_bytes()
    assert main_log(folder / "copy") == main_log(whole)


def test_the_rate_follows_the_steps_that_were_fixed(folder: Path) -> None:
    assert main(flags(folder, "run", "--minutes", "0.05", "-b", "4", "-t", "16")) == 0
    rates = [float(line.split("lr:")[1].split()[0]) for line in main_log(folder / "run")
             if "trl" in line]  # fmt: skip
    assert rates[-1] < 0.3 * max(rates)
    assert 0 < int(np.argmax(rates)) < len(rates) - 1


@pytest.mark.slow
def test_a_run_ends_within_three_seconds_of_its_half_minute(folder: Path) -> None:
    """Three seconds are half of what two minutes allow at 5 %."""
    began = time.perf_counter()
    assert main(flags(folder, "run", "--minutes", "0.5")) == 0
    assert time.perf_counter() - began == pytest.approx(30, abs=3)


def test_patience_ends_a_run_that_no_longer_improves(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A rate of almost nothing: no validation improves on the first by training."""
    rate = ["-l", "1e-30", "-k", "constant", "-b", "4", "-t", "16"]
    assert main(flags(folder, "run", "-n", "200", "-v", "10", "--patience", "3", *rate)) == 0
    steps = [event["step"] for event in metrics(folder / "run", "val")]
    assert steps[0] == 0
    assert len(steps) <= 6
    assert checkpoint_steps(folder / "run")[-1] == steps[-1] < 200
    assert "--patience" in capfd.readouterr().out
    # It stays ended when it is resumed, and goes on with more patience.
    assert main(["--resume", "run", "--no-bar"]) == 0
    assert checkpoint_steps(folder / "run")[-1] == steps[-1]
    assert main(["--resume", "run", "--no-bar", "--patience", "100"]) == 0
    assert checkpoint_steps(folder / "run")[-1] == 200


@pytest.mark.parametrize("again", [[], ["--minutes", "0.05"]], ids=["plain", "the flag again"])
def test_a_run_that_stopped_before_its_steps_were_fixed_goes_on(
    folder: Path, again: list[str]
) -> None:
    """The record names no steps; those that a guess would give may lie below the saved step."""
    every = ["--checkpoint-every", "5", "--keep", "0", "-b", "4", "-t", "16"]
    assert main(flags(folder, "run", "--minutes", "0.05", *every)) == 0
    run = folder / "run"
    entries = record(run)
    del entries["checksum"]
    (run / "run.json").write_text(json.dumps({**entries, "steps": None}))
    saved = checkpoint_steps(run)[-1]
    assert main(["--resume", "run", "--no-bar", *again]) == 0
    assert checkpoint_steps(run)[-1] == record(run)["steps"] > saved


def test_the_same_minutes_again_keep_the_steps_that_were_fixed(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(folder, "run", "--minutes", "0.05", "-b", "4", "-t", "16")) == 0
    steps = record(folder / "run")["steps"]
    assert main(["--resume", "run", "--no-bar", "--minutes", "0.05"]) == 2
    assert f"already has its {steps} steps" in capfd.readouterr().err
