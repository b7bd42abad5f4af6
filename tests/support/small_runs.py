"""Small training runs for tests: data, a model file, and commands in another process."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.data.token_writer import write_shard
from cupygpt.model.init_weights import initial_parameters

TINY = GPTConfig(maxT=16, V=65, L=2, NH=2, C=16)


def write_tokens(path: Path, count: int, V: int, seed: int = 0) -> Path:
    """A shard of tokens with something to learn: most of them follow from the one before."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, V, count)
    tokens = np.empty(count, np.uint16)
    tokens[0] = 1
    for i in range(1, count):
        tokens[i] = noise[i] if noise[i] % 4 == 0 else (3 * int(tokens[i - 1]) + 1) % V
    write_shard(path, tokens)
    return path


def write_files(
    folder: Path, config: GPTConfig = TINY, count: int = 1200, device: str = "cpu"
) -> list[str]:
    """A model and its data in `folder`; returns the flags that use them."""
    save_model(folder / "tiny.bin", config, initial_parameters(config, 42), "fp32")
    write_tokens(folder / "train.bin", count, config.V)
    write_tokens(folder / "val.bin", 200, config.V, seed=1)
    return [
        "-e", str(folder / "tiny.bin"),
        "-i", str(folder / "train.bin"),
        "-j", str(folder / "val.bin"),
        "--device", device, "-b", "4", "-t", "8", "-l", "1e-2", "-v", "5", "-s", "0",
        "--checkpoint-every", "5",
    ]  # fmt: skip


def train_without_cupy(flags: list[str]) -> str:
    """A program that trains, and fails if that has imported CuPy."""
    return (
        "import sys\n"
        "from cupygpt.train import main\n"
        f"assert main({flags!r}) == 0\n"
        "assert not any(name.split('.')[0] == 'cupy' for name in sys.modules)\n"
    )


def command(
    module: str, *arguments: str, cwd: Path, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` as a user would, its output captured."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # a model may write any byte
        timeout=timeout,
        check=False,
    )


def main_log(folder: Path) -> list[str]:
    return (folder / "main.log").read_text().splitlines()


def metrics(folder: Path, kind: str) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def change_record(
    run: Path, change: Callable[[dict[str, Any]], object], *, keep_checksum: bool = True
) -> None:
    """Edit run.json by hand, or as a version without a checksum would have written it."""
    record = json.loads((run / "run.json").read_text())
    change(record)
    if not keep_checksum:
        del record["checksum"]
    (run / "run.json").write_text(json.dumps(record))


class StillTime:
    """A clock that stands still: nothing passes but what a test adds to `now`, in seconds."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def still_time(monkeypatch: pytest.MonkeyPatch) -> StillTime:
    """Let time.perf_counter stand still in this test."""
    fake = StillTime()
    monkeypatch.setattr(time, "perf_counter", fake.perf_counter)
    return fake
