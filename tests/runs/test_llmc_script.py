"""Scripts written for llm.c: they start, are killed, go on by their own loop, and stop."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.small_runs import command, main_log, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.train import main

LOOP = """
folder=log
finished=$folder/DONE_{steps:08d}
while true; do
    if [ -f "$finished" ]; then
        echo "$finished is there."
        break
    fi
    ./train_gpt2cu -o $folder {flags}
    sleep 0.1
done
"""
FLAGS = (
    '-i "{data}/train*.bin" -j "{data}/val*.bin" -v {every} -s 20000 -g 144 -h 1 -b 4 -t 8 -d 64 '
    '-r 0 -z 1 -c 0.1 -l 0.006 -q 0.0 -u 700 -n {every} -y 1 -e "{data}/tiny.bin"'
)
"""The loop and all flags of run_gpt2_124M.sh, for a smaller model."""

PROGRAM = """#!/bin/sh
echo $$ > process
exec {python} -m cupygpt.train "$@"
"""


def write_script(folder: Path, *, steps: int, every: int, more: str = "") -> list[str]:
    """Returns the flags that the script gives, but for -o."""
    write_files(folder)
    flags = f"{FLAGS.format(data=folder, every=every)} {more}"
    (folder / "run.sh").write_text(LOOP.format(steps=steps, flags=flags))
    program = folder / "train_gpt2cu"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    return shlex.split(flags)


@contextmanager
def running_script(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The script, which is ended here if it would loop for ever."""
    script = subprocess.Popen(
        ["sh", "run.sh"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield script
    finally:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
            script.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script, and SIGKILL")
def test_a_killed_script_goes_on_by_its_loop_until_the_last_step(tmp_path: Path) -> None:
    flags = write_script(tmp_path, steps=120, every=20, more="-x 120")
    log = tmp_path / "log"
    with running_script(tmp_path) as script:
        deadline = time.monotonic() + 60
        while not checkpoint_steps(log):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(int((tmp_path / "process").read_text()), signal.SIGKILL)
        out, _ = script.communicate(timeout=60)
    assert script.returncode == 0
    assert out.rstrip().endswith("log/DONE_00000120 is there.")
    assert out.count("note: -h 1: dev/data/hellaswag/hellaswag_val.bin is not here") == 2
    assert "120 of 120 steps" in out
    assert main([*flags, "-o", str(tmp_path / "straight")]) == 0
    assert main_log(log) == main_log(tmp_path / "straight")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_without_x_the_script_takes_one_epoch_as_llmc_counts_it(tmp_path: Path) -> None:
    write_script(tmp_path, steps=1200 // 64, every=5)  # 1200 tokens, 64 a step
    with running_script(tmp_path) as script:
        out, _ = script.communicate(timeout=60)
    assert "-z 1 shares nothing out, because this run has one GPU" in out
    assert "-n 5 saves every 5 steps, as in llm.c" in out
    assert "the warm-up (-u 700) is longer than the run's 18 steps" in " ".join(out.split())
    assert 18 in checkpoint_steps(tmp_path / "log")


def test_an_evaluation_without_its_file_is_answered_and_training_goes_on(tmp_path: Path) -> None:
    flags = [*write_files(tmp_path), "-n", "4", "-h", "1", "-o", "run"]
    result = command("cupygpt.train", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "-h 1: dev/data/hellaswag/hellaswag_val.bin is not here, so HellaSwag" in result.stdout
    assert not any(" eval:" in line for line in main_log(tmp_path / "run"))
    assert 4 in checkpoint_steps(tmp_path / "run")


@pytest.mark.parametrize("leftover", ["nothing", "an empty folder", "a run without checkpoint"])
def test_y_1_starts_where_there_is_nothing_to_continue(tmp_path: Path, leftover: str) -> None:
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-n", "4", "-o", str(run), "-y", "1"]
    if leftover == "an empty folder":
        run.mkdir()
    if leftover == "a run without checkpoint":
        assert main(flags) == 0
        (run / "model_00000099.bin").write_bytes(b"somebody's")
        for done in run.glob("DONE_*"):
            done.unlink()
    assert main(flags) == 0
    if leftover == "a run without checkpoint":
        assert (run / "model_00000099.bin").read_bytes() == b"somebody's"
    assert sum(" trl:" in line for line in main_log(run)) == 4
    assert json.loads((run / "run.json").read_text())["config"]["resume"] is None


def test_y_1_continues_the_run_in_the_folder(tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    flags = write_files(tmp_path)
    assert main([*flags, "-x", "10", "-y", "0", "-o", str(straight)]) == 0
    assert main([*flags, "-x", "5", "-y", "1", "-o", str(run)]) == 0
    assert main([*flags, "-x", "10", "-y", "1", "-o", str(run)]) == 0
    assert main_log(run) == main_log(straight)


def test_y_0_does_not_continue_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*write_files(tmp_path), "-x", "4", "-y", "0", "-o", str(tmp_path / "run")]
    assert main(flags) == 0
    assert main(flags) == 2
    assert "already holds a run. Continue it with --resume" in capsys.readouterr().err


def test_major_checkpoints_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-v", "0", "-x", "20", "-n", "2", "-nk", "2", "-nm", "6"]
    assert main([*flags, "-o", str(run)]) == 0
    assert checkpoint_steps(run) == [6, 12, 18, 20]


def test_processes_that_no_launcher_started_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*write_files(tmp_path), "-x", "4", "-o", str(tmp_path / "run")]
    assert main([*flags, "-pn", "8", "-pr", "0"]) == 2
    assert "-pn is 8, but this process is 1 in all" in capsys.readouterr().err
    assert main([*flags, "-pn", "1", "-pr", "0", "-pi", "mpi"]) == 0
