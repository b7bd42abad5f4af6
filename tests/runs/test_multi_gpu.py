"""Whole runs on two and more GPUs with NCCL. All of them: python -m pytest -m multi_gpu"""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import require_cupy
from support.rank_runs import (
    as_ranks,
    finish,
    kill_and_time,
    losses,
    parameters,
    rank_pids,
    start,
    start_program,
    train,
    wait_for,
)
from support.small_runs import main_log, metrics, write_files, write_tokens

from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.train import main

pytestmark = pytest.mark.multi_gpu


@pytest.fixture(autouse=True)
def num_gpus() -> int:
    """How many GPUs there are; the test is skipped with fewer than two."""
    count = int(require_cupy().cuda.runtime.getDeviceCount())
    if count < 2:
        pytest.skip(f"needs two GPUs, this machine shows {count}")
    return count


def files(tmp_path: Path, *more: str, precision: str = "fp32") -> list[str]:
    return [*write_files(tmp_path, device="cuda"), "--precision", precision, "-v", "10", *more]


def train_losses(run: Path) -> list[float]:
    return [event["loss"] for event in metrics(run, "train")]


def sizes(num_gpus: int) -> list[int]:
    return [n for n in (2, 3, 4, 8) if n <= num_gpus]


@pytest.mark.parametrize("zero", ["0", "1"])
@pytest.mark.parametrize("more", [[], ["--no-graph"]], ids=["graph", "eager"])
def test_several_gpus_train_as_one_gpu_with_all_rows(
    tmp_path: Path, num_gpus: int, zero: str, more: list[str]
) -> None:
    """With accumulation, dropout, weight decay and validation."""
    flags = files(tmp_path, "-d", "384", "--dropout", "0.1", "-c", "0.1", "-n", "20")
    one = tmp_path / "one"
    assert main([*flags, "-b", "24", "-o", str(one)]) == 0
    for gpus in sizes(num_gpus):
        run = tmp_path / f"run{gpus}"
        train(*flags, *more, "-b", str(24 // gpus), "--gpus", str(gpus), "-z", zero, "-o", str(run))
        np.testing.assert_allclose(train_losses(run), train_losses(one), rtol=0, atol=1e-4)
        np.testing.assert_allclose(losses(run), losses(one), atol=1e-3)  # norms and validation too


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("gpus", [2, 4])
def test_runs_repeat_bit_for_bit_with_and_without_graph_and_zero1(
    tmp_path: Path, num_gpus: int, gpus: int, precision: str
) -> None:
    """Two equal runs, one without the graph and one with ZeRO-1 give the same weights and log."""
    if num_gpus < gpus:
        pytest.skip(f"needs {gpus} GPUs, this machine shows {num_gpus}")
    flags = files(tmp_path, "-d", "128", "--dropout", "0.1", "-n", "20", precision=precision)
    variants = [["-z", "0"], ["-z", "0"], ["-z", "0", "--no-graph"], ["-z", "1"]]
    ends = []
    for number, variant in enumerate(variants):
        run = tmp_path / str(number)
        train(*flags, *variant, "--gpus", str(gpus), "-o", str(run))
        ends.append((main_log(run), parameters(run)))
    for log, weights in ends[1:]:
        assert log == ends[0][0]
        np.testing.assert_array_equal(weights, ends[0][1])


def test_bf16_without_master_weights_rounds_alike_in_zero_shards(tmp_path: Path) -> None:
    flags = files(tmp_path, "-w", "0", "-n", "10", "--gpus", "2", precision="bf16")
    ends = []
    for zero in ("0", "1"):
        train(*flags, "-z", zero, "-o", str(tmp_path / zero))
        ends.append(parameters(tmp_path / zero))
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", ["0", "1"])
def test_all_ranks_hold_the_same_parameters(
    tmp_path: Path, num_gpus: int, zero: str, precision: str
) -> None:
    flags = files(
        tmp_path, "-n", "50", "-z", zero, "-o", str(tmp_path / "run"), precision=precision
    )
    program = f"""
import os, sys
import numpy as np
from cupygpt import train
from cupygpt.training.loop import Run
close = Run.close
def close_and_keep(self):
    weights = self.plan.device.download(self.trainer.params.flat)
    np.save({str(tmp_path)!r} + "/params" + os.environ["RANK"], weights)
    close(self)
Run.close = close_and_keep
sys.exit(train.main({flags!r}))
"""
    gpus = sizes(num_gpus)[-1]
    ranks = [start_program(program, **environ) for environ in as_ranks(gpus)]
    for rank in ranks:
        code, _, err = finish(rank, 120.0)
        assert code == 0, err
    everyone = [np.load(tmp_path / f"params{rank}.npy") for rank in range(gpus)]
    assert everyone[0].any()
    for weights in everyone[1:]:
        np.testing.assert_array_equal(weights, everyone[0])


@pytest.mark.parametrize("zero", ["0", "1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_one_that_never_stopped(
    tmp_path: Path, zero: str, precision: str
) -> None:
    flags = files(tmp_path, "--dropout", "0.2", "-d", "128", precision=precision)
    ranks = ["--gpus", "2", "-z", zero]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(*flags, *ranks, "-n", "25", "-o", str(straight))
    train(*flags, *ranks, "-n", "13", "-o", str(resumed))
    train("--resume", str(resumed), *ranks, "-n", "25")
    wanted, got = main_log(straight), main_log(resumed)
    assert [line for line in got if "trl" in line] == [line for line in wanted if "trl" in line]
    np.testing.assert_array_equal(parameters(resumed), parameters(straight))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_can_continue_with_another_number_of_gpus(
    tmp_path: Path, num_gpus: int, precision: str
) -> None:
    most = 4 if num_gpus >= 4 else 2
    flags = files(tmp_path, "-d", "128", "--dropout", "0.1", precision=precision)
    straight, changing = tmp_path / "straight", tmp_path / "changing"
    assert main([*flags, "-b", "16", "-n", "20", "-o", str(straight)]) == 0
    assert main([*flags, "-b", "16", "-n", "4", "-o", str(changing)]) == 0
    # With four GPUs: 2 → 4 and 4 → 2, each with and without ZeRO-1.
    for steps, gpus, zero in (
        (7, 2, "1"), (10, most, "0"), (13, 2, "0"), (16, most, "1"), (18, 2, "1"),
    ):  # fmt: skip
        resume = ["--resume", str(changing), "-n", str(steps)]
        train(*resume, "-b", str(16 // gpus), "--gpus", str(gpus), "-z", zero)
    assert main(["--resume", str(changing), "-n", "20", "-b", "16", "-z", "0"]) == 0
    got, wanted = train_losses(changing), train_losses(straight)
    np.testing.assert_allclose(got, wanted, atol=1e-3 if precision == "fp32" else 0.05)


def endless(tmp_path: Path, run: Path) -> "Any":
    """A run on two GPUs that has saved twice, and is still running when a test ends it."""
    flags = files(tmp_path, "-n", "1000000", "-v", "0", "--checkpoint-every", "20", "-z", "1")
    launcher = start(*flags, "--gpus", "2", "-o", str(run))
    wait_for(lambda: len(checkpoint_steps(run)) >= 2, launcher)
    return launcher


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_ranks_at_the_same_step(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    launcher = endless(tmp_path, run)
    if number == signal.SIGINT:
        launcher.send_signal(number)
    else:
        os.kill(rank_pids(launcher)[1], number)
    code, out, err = finish(launcher, 60.0)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], err
    assert f"stopped by {number.name}" in out
    step = checkpoint_steps(run)[-1]
    assert main_log(run)[-1].startswith(f"s:{step - 1} trl:")
    train("--resume", str(run), "--gpus", "2", "-n", str(step + 5))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_ranks_within_seconds(tmp_path: Path, victim: int) -> None:
    """At that moment the other ranks wait for it inside NCCL."""
    run = tmp_path / "run"
    launcher = endless(tmp_path, run)
    elapsed, err = kill_and_time(launcher, victim)
    assert elapsed < 10.0
    assert f"error: rank {victim} (process" in err
    assert "Traceback" not in err
    newest = checkpoint_steps(run)[-1]
    assert load_checkpoint(run, newest).state.progress.step == newest
    train("--resume", str(run), "--gpus", "2", "-n", str(newest + 5))


def test_a_killed_rank_ends_the_others_without_a_launcher(tmp_path: Path) -> None:
    """Only the watchdog can notice it, as under mpirun on several hosts."""
    run = tmp_path / "run"
    flags = files(tmp_path, "-n", "1000000", "-v", "0", "--checkpoint-every", "20", "-o", str(run))
    first, second = [start(*flags, **environ) for environ in as_ranks(2)]
    wait_for(lambda: len(checkpoint_steps(run)) >= 2, first)
    second.kill()
    code, _, err = finish(first, 10.0)
    finish(second)
    assert code == 1
    assert "rank 1 is lost" in err
    assert f"continue from it with --resume {run}" in err


def test_more_ranks_than_gpus_are_refused(tmp_path: Path, num_gpus: int) -> None:
    flags = files(tmp_path, "-n", "5", "-o", str(tmp_path / "run"))
    code, _, err = finish(start(*flags, "--gpus", str(num_gpus + 1)), 120.0)
    assert code == 2
    assert f"which shows {num_gpus} GPUs" in err
    assert f"Start at most {num_gpus} ranks there" in err
    assert err.count("error:") == 1


def test_two_ranks_on_the_same_gpu_are_refused(tmp_path: Path) -> None:
    flags = files(tmp_path, "-n", "5", "-o", str(tmp_path / "run"))
    code, _, err = finish(start(*flags, "--gpus", "2", CUDA_VISIBLE_DEVICES="0"), 120.0)
    assert code == 2
    assert "ranks 0 and 1 both have GPU" in err


def test_a_gpu_that_is_named_by_number_is_refused(tmp_path: Path) -> None:
    flags = files(tmp_path, "-n", "5", "-o", str(tmp_path / "run"))
    code, _, err = finish(start(*flags, "--device", "cuda:1", "--gpus", "2"), 120.0)
    assert code == 2
    assert "CUDA_VISIBLE_DEVICES" in err


@pytest.mark.gpu_alone
def test_zero1_frees_memory(tmp_path: Path) -> None:
    """By the memory that the run reports, for a model whose optimizer state is 2 × 116 MiB."""
    flags = files(tmp_path, "-e", "d6", "-n", "3", "--checkpoint-every", "0", "--log-every", "1")
    flags = [*flags, "-i", str(gpt2_tokens(tmp_path)), "-j", str(tmp_path / "val.bin")]
    taken = {}
    for zero in ("0", "1"):
        out = train(*flags, "-z", zero, "--gpus", "2", "-o", str(tmp_path / zero))
        line = next(line for line in out.splitlines() if line.startswith("step    3/3"))
        number, unit = line.rsplit("|", 1)[1].split()
        taken[zero] = float(number) * {"MiB": 1.0, "GiB": 1024.0}[unit]
    assert 100 < taken["0"] - taken["1"] < 160


def gpt2_tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "gpt2.bin", 4000, 50257)
