"""A resumed run is the run that never stopped: same lines in main.log, same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import change_record, command, main_log, metrics, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.data.row_order import COMPUTED
from cupygpt.run_folder.record import read_record
from cupygpt.train import main

# 1200 tokens in rows of 8 are about 149 rows, 37 steps of 4 rows: -n 60 crosses an epoch.
VARIANTS = {
    "plain": [],
    "dropout": ["--dropout", "0.2"],
    "accumulation": ["-d", "96"],
    "decayed": ["-c", "0.1", "-k", "wsd", "--grad-clip", "0.5"],
    "in-order": ["--no-shuffle"],
    "recompute": ["-r", "2"],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("middle", "end"), [("10", "20"), ("33", "45")])
def test_straight_equals_stopped_and_resumed(
    tmp_path: Path, variant: str, middle: str, end: str
) -> None:
    flags = write_files(tmp_path) + VARIANTS[variant]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert main([*flags, "-n", end, "-o", str(straight)]) == 0
    assert main([*flags, "-n", middle, "-o", str(resumed)]) == 0
    assert main(["--resume", str(resumed), "-n", end]) == 0
    assert main_log(resumed) == main_log(straight)
    if (middle, variant) == ("33", "plain"):
        assert metrics(straight, "train")[-1]["epoch"] > 1.0
    ends = [load_checkpoint(folder, int(end)) for folder in (straight, resumed)]
    np.testing.assert_array_equal(ends[0].state.params, ends[1].state.params)
    np.testing.assert_array_equal(ends[0].state.m, ends[1].state.m)
    assert ends[0].state.progress == ends[1].state.progress


def test_another_batch_size_sees_the_rest_of_the_epoch_once(tmp_path: Path) -> None:
    flags = write_files(tmp_path)
    run = tmp_path / "run"
    assert main([*flags, "-n", "10", "-o", str(run)]) == 0
    assert load_checkpoint(run, 10).state.progress.position.rows == 40
    assert read_record(run)["row_order"] == COMPUTED
    assert main(["--resume", str(run), "-n", "20", "-b", "7", "-d", "56"]) == 0
    # That each remaining row comes once is a property test of the loader; here: 10 × 4 + 10 × 7.
    assert load_checkpoint(run, 20).state.progress.position.rows == 110


def steps_and_rows(run: Path) -> tuple[int, int]:
    """Where a run ended, by its newest checkpoint; in epochs of 149 or 150 rows."""
    progress = load_checkpoint(run, checkpoint_steps(run)[-1]).state.progress
    assert progress.position is not None
    return progress.step, 149 * progress.position.epoch + progress.position.rows


def test_epochs_stay_epochs_when_a_resume_changes_the_batch(tmp_path: Path) -> None:
    """298 rows of two epochs: 35 steps of 4 rows, then as many of 8 or 2 as there are left."""
    flags = write_files(tmp_path)
    flags[flags.index("--checkpoint-every") + 1] = "35"
    flags += ["--epochs", "2", "-v", "0", "--keep", "0"]
    whole = tmp_path / "whole"
    assert main([*flags, "-o", str(whole)]) == 0
    assert steps_and_rows(whole) == (74, 296)
    for batch, steps in ((8, 35 + 19), (2, 35 + 79)):
        part = tmp_path / f"part{batch}"
        shutil.copytree(whole, part)
        for path in [*part.glob("*_00000070*"), *part.glob("*_00000074*")]:
            path.unlink()
        resume = ["--resume", str(part), "--device", "cpu"]
        assert main([*resume, "-b", str(batch), "-d", str(8 * batch)]) == 0
        assert steps_and_rows(part) == (steps, 140 + batch * (steps - 35))
        for path in part.glob(f"*_{steps:08d}*"):  # as if it had been killed before its end
            path.unlink()
        assert main(resume) == 0
        assert steps_and_rows(part)[0] == steps
    assert main(["--resume", str(whole), "-b", "8", "-d", "64", "--extend", "3"]) == 0
    assert steps_and_rows(whole) == (77, 296 + 24)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-l", "1e-4"], "-l/--learning-rate: 0.01 in the run, 0.0001 asked for"),
        (["--dropout", "0.5"], "--dropout"),
        (["--seed", "1"], "--seed"),
        (["-t", "16"], "-t/--seq-len"),
        (["-c", "0.3"], "-c/--weight-decay"),
        (["--no-shuffle"], "--no-shuffle"),
    ],
)
def test_a_changed_run_is_refused_with_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-o", str(run)]) == 0
    assert main(["--resume", str(run), "-n", "9", *flags]) == 2
    assert named in capsys.readouterr().err


def test_a_schedule_that_depends_on_the_length_keeps_its_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "6", "-q", "0.1", "-o", str(run)]) == 0
    assert main(["--resume", str(run), "-n", "12"]) == 2
    assert "the cosine schedule depends on it" in capsys.readouterr().err


def test_changed_data_and_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = write_files(tmp_path)
    assert main([*flags, "-n", "5", "-o", str(run)]) == 0
    raw = bytearray((tmp_path / "train.bin").read_bytes())
    raw[1500] ^= 1
    (tmp_path / "train.bin").write_bytes(raw)
    assert main(["--resume", str(run), "-n", "9"]) == 2
    assert "the data is not the one this run was started with" in capsys.readouterr().err
    write_files(tmp_path)
    change_record(run, lambda record: record["model"].update(L=3), keep_checksum=False)
    assert main(["--resume", str(run), "-n", "9"]) == 2
    assert "L: 3 in the run, 2 now" in capsys.readouterr().err


def test_a_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-o", str(run)]) == 0
    assert main(["--resume", str(run)]) == 2
    assert "already has its 5 steps" in capsys.readouterr().err


def test_resume_alone_takes_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = write_files(tmp_path)
    for name in ("b-older", "a-newer"):
        assert main([*flags, "-n", "5", "-o", f"runs/{name}"]) == 0
        time.sleep(0.05)
    assert main(["--resume", "-n", "8"]) == 0
    assert main_log(Path("runs/a-newer"))[-1].startswith("s:8 tel:")
    assert main_log(Path("runs/b-older"))[-1].startswith("s:5 tel:")


def start(tmp_path: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cupygpt.train", *write_files(tmp_path), "-o", str(run), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_continue(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    process = start(tmp_path, run, "-n", "100000", "-v", "0", "--checkpoint-every", "0")
    wait_for(lambda: run.joinpath("main.log").exists() and len(main_log(run)) > 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"continue:  python -m cupygpt.train --resume {run}" in out
    step = checkpoint_steps(run)[-1]
    assert main_log(run)[-1].startswith(f"s:{step - 1} trl:")
    assert "Traceback" not in err


def wait_for(ready: object, process: subprocess.Popen[str], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not ready():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform == "win32", reason="uses SIGKILL")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_resumes(tmp_path: Path, kills: int) -> None:
    """kill -9 at random moments of a run that saves every step; the end equals an unkilled run."""
    run, rng = tmp_path / "run", np.random.default_rng(kills)
    steps = str(15 * kills)
    flags = ["-n", steps, "--checkpoint-every", "1", "-v", "4", "--keep", "2"]
    arguments = [*write_files(tmp_path), *flags, "-o", str(run)]
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "cupygpt.train", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        before = checkpoint_steps(run)[-1] if checkpoint_steps(run) else 0
        wait_for(
            lambda before=before: checkpoint_steps(run) and checkpoint_steps(run)[-1] > before,
            process,
        )
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        newest = checkpoint_steps(run)[-1]
        assert newest > before
        load_checkpoint(run, newest)
        arguments = ["--resume", str(run)]
    finished = command("cupygpt.train", "--resume", str(run), cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert not list(run.glob("*.partial"))
    straight = tmp_path / "straight"
    assert main([*write_files(tmp_path), *flags, "-o", str(straight)]) == 0
    assert main_log(run) == main_log(straight)


def test_a_resumed_run_overfits_the_same_batch(tmp_path: Path) -> None:
    flags = [*write_files(tmp_path), "-a"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert main([*flags, "-n", "10", "-o", str(straight)]) == 0
    assert main([*flags, "-n", "5", "-o", str(resumed)]) == 0
    assert main(["--resume", str(resumed), "-n", "10"]) == 0
    assert main_log(resumed) == main_log(straight)


def test_a_resumed_run_prints_as_often_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "--log-every", "1", "-o", str(run)]) == 0
    capsys.readouterr()
    assert main(["--resume", str(run), "-n", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(" | loss " in line for line in lines) == 4


def test_what_a_resume_changes_holds_from_then_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-o", str(run)]) == 0
    first = json.loads((run / "run.json").read_text())
    assert main(["--resume", str(run), "-n", "20", "--keep", "0", "-b", "2", "-d", "16"]) == 0
    for path in run.glob("*_00000020*"):  # as if it had been killed before its end
        path.unlink()
    assert main(["--resume", str(run)]) == 0
    record = json.loads((run / "run.json").read_text())
    assert checkpoint_steps(run) == [5, 10, 15, 20]
    assert {**first["config"], "steps": 20, "keep": 0, "batch_size": 2, "total_batch": 16} == (
        record["config"]
    )
    assert record["tokens_per_step"] == 16
    changes = [resume["changes"] for resume in record["resumes"]]
    assert changes[0]["steps"] == [5, 20]  # the first settings can be read
    assert (changes[0]["batch_size"], changes[1]) == ([4, 2], {})
    assert [resume["step"] for resume in record["resumes"]] == [5, 15]


def test_damaged_logs_do_not_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "8", "-v", "0", "-o", str(run)]) == 0
    lines = (run / "main.log").read_bytes().splitlines(keepends=True)
    lines[3] = b"s:3 t\377l\n"
    (run / "main.log").write_bytes(b"".join([*lines, b"\377"]))
    (run / "metrics.jsonl").write_bytes(b"")
    capsys.readouterr()
    assert main(["--resume", str(run), "-n", "10"]) == 0
    out = capsys.readouterr().out
    assert (
        "main.log: 1 damaged line was removed; the lines of 1 training steps are missing (3)"
        in (" ".join(out.split()))
    )
    assert "metrics.jsonl: the lines of 8 training steps are missing (0 to 7)" in out
    steps = [int(line.split()[0][2:]) for line in main_log(run)]
    assert steps == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_files_of_an_unfinished_checkpoint_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-v", "0", "-o", str(run)]) == 0
    for name in ("model_00000003.bin", "state_00000003_00001.bin", "DONE_00000007.partial"):
        (run / name).write_bytes(b"left by a kill")
    (run / "model_mine.bin").write_bytes(b"not of a checkpoint")
    assert main(["--resume", str(run)]) == 2  # it has all its steps
    names = {path.name for path in run.iterdir()}
    assert "model_mine.bin" in names
    assert not [name for name in names if "00000003" in name or name.endswith(".partial")]
    assert ".lock" not in names
