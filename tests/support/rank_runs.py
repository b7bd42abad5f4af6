"""Whole runs of several ranks, each rank in its own process, on the CPU or on GPUs."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.distributed.launcher_env import LOOPBACK, free_port
from support.small_runs import main_log


def start(*arguments: str, **environ: str) -> "subprocess.Popen[str]":
    """Start `python -m cupygpt.train` in the background and capture its output."""
    return _start("-m", "cupygpt.train", *arguments, **environ)


def start_program(text: str, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
    """Start a Python program in the background and capture its output."""
    return _start("-c", text, *arguments, **environ)


def _start(*arguments: str, **environ: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def finish(process: "subprocess.Popen[str]", timeout: float = 60.0) -> tuple[int, str, str]:
    """Wait for a process; its exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{out}\n{err}") from None
    return process.returncode, out, err


def train(*arguments: str, timeout: float = 120.0) -> str:
    """Run `python -m cupygpt.train`, which must succeed; its stdout."""
    code, out, err = finish(start(*arguments), timeout)
    assert code == 0, err
    assert err == ""
    return out


def as_ranks(world: int) -> list[dict[str, str]]:
    """The environment of each rank, as torchrun sets it."""
    port = str(free_port(LOOPBACK))
    return [
        {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": LOOPBACK, "MASTER_PORT": port,
        }
        for rank in range(world)
    ]  # fmt: skip


def wait_for(ready: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Wait for a condition while the process runs."""
    deadline = time.monotonic() + 60.0
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rank_pids(launcher: "subprocess.Popen[str]") -> list[int]:
    """The ids of the processes that --gpus has started, in rank order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return sorted(int(pid) for pid in children)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def kill_and_time(launcher: "subprocess.Popen[str]", rank: int) -> tuple[float, str]:
    """Kill one rank by SIGKILL; the seconds until all ranks have ended, and stderr."""
    pids = rank_pids(launcher)
    started = time.monotonic()
    os.kill(pids[rank], signal.SIGKILL)
    code, _, err = finish(launcher, 30.0)
    elapsed = time.monotonic() - started
    assert code == 128 + signal.SIGKILL
    assert not any(is_alive(pid) for pid in pids)
    return elapsed, err


def losses(folder: Path) -> np.ndarray:
    """From main.log: training losses by step, gradient norms by step, then validation losses."""
    lines = main_log(folder)
    train = [
        [float(x) for x in re.fullmatch(r"s:\d+ trl:(\S+) lr:\S+ norm:(\S+)", line).groups()]  # type: ignore[union-attr]
        for line in lines
        if " trl:" in line
    ]
    val = [float(line.split("tel:")[1]) for line in lines if " tel:" in line]
    return np.concatenate([np.array(train).T.reshape(-1), val])


def parameters(folder: Path) -> np.ndarray:
    """The parameters of the newest checkpoint, which is verified."""
    return load_checkpoint(folder, checkpoint_steps(folder)[-1]).state.params
