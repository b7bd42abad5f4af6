"""Whole runs of several ranks on the CPU, which are started, stopped, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.rank_runs import (
    as_ranks,
    finish,
    is_alive,
    kill_and_time,
    losses,
    parameters,
    rank_pids,
    start,
    start_program,
    train,
    wait_for,
)
from support.small_runs import TINY, main_log, metrics, train_without_cupy, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.device import cuda_check
from cupygpt.device.cpu import available_memory_bytes
from cupygpt.model.memory_plan import RunShape, memory_plan
from cupygpt.train import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses signals and /proc")


def test_two_ranks_with_zero1_train_as_one_process(tmp_path: Path) -> None:
    """With accumulation, dropout, validation and a schedule; the ranks share the tokens of -d."""
    flags = [*write_files(tmp_path), "-d", "192", "--dropout", "0.1", "-c", "0.1", "-n", "20"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*flags, "-b", "8", "-o", str(one)]) == 0
    out = train(*flags, "-b", "4", "--gpus", "2", "-z", "1", "-o", str(two))
    assert "4 × 8 tokens × 3 × 2 ranks = 192 tokens a step" in out
    assert out.count("20 of 20 steps") == 1
    np.testing.assert_allclose(losses(two), losses(one), atol=2e-4)
    assert np.abs(parameters(two) - parameters(one)).max() < 0.02
    assert len(list(two.glob("state_00000020_*"))) == 2
    done = json.loads((two / "DONE_00000020").read_text())["crc32"]
    assert sorted(done) == [
        "model_00000020.bin", "state_00000020_00000.bin", "state_00000020_00001.bin",
    ]  # fmt: skip
    assert [event["step"] for event in metrics(two, "train")] == list(range(20))


def test_a_run_can_continue_with_another_number_of_ranks(tmp_path: Path) -> None:
    """1 rank, 2 with ZeRO-1, 4 without, 2 with it, 1: the losses equal those of one rank."""
    flags = [*write_files(tmp_path), "-d", "128", "--dropout", "0.1", "-v", "10"]
    straight, changing = tmp_path / "straight", tmp_path / "changing"
    assert main([*flags, "-b", "16", "-n", "20", "-o", str(straight)]) == 0
    assert main([*flags, "-b", "16", "-n", "4", "-o", str(changing)]) == 0
    for steps, ranks, zero in ((8, 2, "1"), (12, 4, "0"), (16, 2, "1")):
        resume = ["--resume", str(changing), "-n", str(steps)]
        train(*resume, "-b", str(16 // ranks), "--gpus", str(ranks), "-z", zero)
        assert len(list(changing.glob(f"state_{steps:08d}_*"))) == (ranks if zero == "1" else 1)
    assert main(["--resume", str(changing), "-n", "20", "-b", "16", "-z", "0"]) == 0
    wanted = [line for line in main_log(straight) if "trl" in line]
    got = [line for line in main_log(changing) if "trl" in line]
    assert len(got) == len(wanted) == 20
    np.testing.assert_allclose(
        [event["loss"] for event in metrics(changing, "train")],
        [event["loss"] for event in metrics(straight, "train")],
        rtol=1e-5,
    )
    assert load_checkpoint(changing, 20).state.progress.position.rows == (
        load_checkpoint(straight, 20).state.progress.position.rows
    )


def test_a_resumed_run_warns_if_a_step_takes_another_number_of_tokens(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "3", "-o", str(run)]) == 0
    out = train("--resume", str(run), "-n", "5", "--gpus", "2")
    assert "a step takes 64 tokens, it took 32 when the run began" in out
    assert "pass -d 32 to keep the old step size" in out
    assert load_checkpoint(run, 5).state.progress.position.rows == 3 * 4 + 2 * 8


def endless(tmp_path: Path, *more: str) -> list[str]:
    """Flags of a run that saves after every step, and is still running when a test ends it."""
    return [*write_files(tmp_path), "-n", "100000", "-v", "0", "--checkpoint-every", "1", *more]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_one_rank_stops_all_ranks_at_the_same_step(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """SIGTERM goes to one rank, as Slurm may send it; the launcher passes SIGINT on to all."""
    run = tmp_path / "run"
    launcher = start(*endless(tmp_path), "--gpus", "2", "-z", "1", "-o", str(run))
    wait_for(lambda: len(checkpoint_steps(run)) >= 2, launcher)
    if number == signal.SIGINT:
        launcher.send_signal(number)
    else:
        os.kill(rank_pids(launcher)[1], number)
    exit_code, out, err = finish(launcher)
    assert exit_code == code, err
    assert err == ""
    assert f"stopped by {number.name}; continue:  python -m cupygpt.train --resume {run}" in out
    step = checkpoint_steps(run)[-1]
    assert main_log(run)[-1].startswith(f"s:{step - 1} trl:")
    assert load_checkpoint(run, step).state.progress.step == step


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def suspended(launcher: "subprocess.Popen[str]") -> list[int]:
    """Send Ctrl-Z's signal to the launcher, and wait until all have stopped; the ranks' ids."""
    pids = rank_pids(launcher)
    launcher.send_signal(signal.SIGTSTP)
    wait_for(lambda: [state_of(pid) for pid in (launcher.pid, *pids)] == ["T"] * 3, launcher)
    return pids


def test_ctrl_z_suspends_all_ranks_and_fg_continues_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = start(*endless(tmp_path), "--gpus", "2", "-o", str(run))
    wait_for(lambda: len(checkpoint_steps(run)) >= 2, launcher)
    suspended(launcher)
    length = len(main_log(run))
    time.sleep(0.3)
    assert len(main_log(run)) == length
    launcher.send_signal(signal.SIGCONT)
    wait_for(lambda: len(main_log(run)) > length, launcher)
    launcher.send_signal(signal.SIGINT)
    code, _, err = finish(launcher)
    assert (code, err) == (130, "")


def test_suspended_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = start(*endless(tmp_path), "--gpus", "2", "-o", str(run))
    wait_for(lambda: len(checkpoint_steps(run)) >= 1, launcher)
    pids = suspended(launcher)
    launcher.kill()
    finish(launcher, 20.0)  # reads what the ranks write, until they close their ends
    deadline = time.monotonic() + 10.0
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_that_the_launcher_repeats_counts_once() -> None:
    program = """
import os, signal, sys, time
from cupygpt.console.stop_signal import StopSignal
with StopSignal(echo_s=30.0) as stop:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
assert stop.received == "SIGINT"
"""
    code, _, err = finish(start_program(program))
    assert code == 0, err


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_ranks_and_no_checkpoint_is_lost(
    tmp_path: Path, victim: int
) -> None:
    run = tmp_path / "run"
    launcher = start(*endless(tmp_path), "--gpus", "2", "-z", "1", "-o", str(run))
    wait_for(lambda: len(checkpoint_steps(run)) >= 2, launcher)
    elapsed, err = kill_and_time(launcher, victim)
    assert elapsed < 10.0
    assert f"error: rank {victim} (process" in err
    assert "was killed by SIGKILL" in err
    assert "Traceback" not in err
    if victim:
        assert "rank 1 is lost" in err
        assert f"continue from it with --resume {run}" in err
    newest = checkpoint_steps(run)[-1]
    assert load_checkpoint(run, newest).state.progress.step == newest


@pytest.mark.slow
def test_a_run_resumes_after_ranks_were_killed_at_random_moments_of_saving(tmp_path: Path) -> None:
    """30 times a random rank of 3, in a run that saves all the time; the result equals that of a
    run without kills."""
    run, rng = tmp_path / "run", np.random.default_rng(5)
    flags = [*write_files(tmp_path), "-n", "400", "-v", "0", "--checkpoint-every", "1", "-d", "96"]
    arguments = [*flags, "-b", "4", "-o", str(run)]
    for _ in range(30):
        launcher = start(*arguments, "--gpus", "3", "-z", "1")
        before = checkpoint_steps(run)[-1] if checkpoint_steps(run) else 0
        wait_for(
            lambda before=before: checkpoint_steps(run) and checkpoint_steps(run)[-1] > before,
            launcher,
        )
        time.sleep(rng.uniform(0, 0.1))
        kill_and_time(launcher, int(rng.integers(3)))
        newest = checkpoint_steps(run)[-1]
        assert newest > before
        load_checkpoint(run, newest)
        arguments = ["--resume", str(run)]
    train("--resume", str(run), "--gpus", "3", "-z", "1")
    assert not list(run.glob("*.partial"))
    straight = tmp_path / "straight"
    train(*flags, "-b", "4", "-o", str(straight), "--gpus", "3", "-z", "1")
    assert main_log(run) == main_log(straight)
    np.testing.assert_array_equal(parameters(run), parameters(straight))


def test_ranks_with_different_flags_are_refused(tmp_path: Path) -> None:
    """Each rank is started by itself, with the variables of torchrun; the learning rates differ."""
    flags = [*write_files(tmp_path), "-n", "5", "-o", str(tmp_path / "run")]
    rates = (["-l", "1e-2"], ["-l", "1e-3"])
    ranks = [
        start(*flags, *rate, **environ) for rate, environ in zip(rates, as_ranks(2), strict=True)
    ]
    (code, _, err), (other_code, _, other_err) = [finish(rank) for rank in ranks]
    assert (code, other_code) == (2, 2)
    assert "the ranks differ in their flags" in err
    assert "learning_rate: 0.01 on rank 0, 0.001 on rank 1" in err
    assert other_err == ""
    assert not (tmp_path / "run").exists()


def test_an_error_of_all_ranks_is_reported_once(tmp_path: Path) -> None:
    flags = [*write_files(tmp_path), "-n", "5", "-o", str(tmp_path / "run")]
    code, _, err = finish(start(*flags, "-d", "40", "--gpus", "2"))
    assert code == 2
    assert err.count("-d/--total-batch is 40 tokens, not a multiple of 4 × 8 × 2 ranks = 64") == 1
    assert err.count("error:") == 1


def test_a_failure_on_one_rank_names_it_and_the_last_checkpoint(tmp_path: Path) -> None:
    """The disk of rank 1 is full at step 10."""
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-n", "20", "-v", "0", "-z", "1", "-o", str(run)]
    program = f"""
import os, sys
from cupygpt.train import main
real = os.fsync
def fsync(descriptor):
    if "state_00000010_00001" in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        raise OSError(28, "No space left on device")
    real(descriptor)
os.fsync = fsync
sys.exit(main({flags!r}))
"""
    first, second = as_ranks(2)
    ranks = [start(*flags, **first), start_program(program, **second)]
    (code, _, err), (other_code, _, other_err) = [finish(rank) for rank in ranks]
    assert (code, other_code) == (1, 1)
    assert err.count("error:") == 1
    assert err.startswith("error: rank 1: ")
    assert "state_00000010_00001.bin: could not be written (No space left on device)" in err
    assert "The last complete checkpoint is step 5" in err
    assert other_err == ""
    assert checkpoint_steps(run) == [5]


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (["--gpus", "0"], {}, "--gpus is 0"),
        (["--gpus", "2", "-b", "0"], {}, "-b/--batch-size is 0"),
        (
            ["--gpus", "2"],
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4",
             "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            "--gpus 2 starts ranks, but mpirun has already started 4",
        ),
        ([], {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "not MASTER_ADDR"),
        (["--rank-timeout", "0"], {}, "--rank-timeout is 0"),
    ],
)  # fmt: skip
def test_wrong_ways_to_start_ranks_are_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    environ: dict[str, str],
    message: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main([*write_files(tmp_path), "-n", "5", "-o", str(tmp_path / "run"), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")


@pytest.mark.parametrize("launched", [True, False])
def test_the_plan_counts_all_ranks_of_the_host(tmp_path: Path, launched: bool) -> None:
    """A batch that fits the memory once, but not twice, is refused before anything is allocated."""
    free = available_memory_bytes()
    assert free
    shape = RunShape(TINY, 1, 8)
    per_row = sum(memory_plan(replace(shape, B=2)).values()) - sum(memory_plan(shape).values())
    flags = [*write_files(tmp_path), "-b", str(int(0.7 * free) // per_row), "-n", "1"]
    flags += ["-o", str(tmp_path / "run")]
    ranks = (
        [start(*flags, "--gpus", "2")] if launched else [start(*flags, **e) for e in as_ranks(2)]
    )
    for number, rank in enumerate(ranks):
        code, _, err = finish(rank)
        assert code == 2
        assert ("GiB are free for each of the 2 ranks of a host. The largest" in err) == (
            number == 0
        )


def test_gpus_without_a_gpu_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_check, "driver_cuda_version", lambda: None)
    flags = write_files(tmp_path)
    flags = [flag for flag in flags if flag not in ("--device", "cpu")]
    assert main([*flags, "-n", "1", "--gpus", "4", "-o", str(tmp_path / "run")]) == 2
    assert "--gpus 4 needs 4 GPUs: no NVIDIA driver was found" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_several_ranks_on_the_cpu_import_no_cupy(tmp_path: Path) -> None:
    flags = [*write_files(tmp_path), "-n", "2", "-o", str(tmp_path / "run")]
    program = train_without_cupy(flags)
    for rank in [start_program(program, **environ) for environ in as_ranks(2)]:
        code, _, err = finish(rank)
        assert code == 0, err
