"""Data of any size begins to train as soon as a small file does, and in as much memory."""

import re
import resource
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cupygpt.data.token_files import open_shards
from cupygpt.data.validation import ValidationBatches, ValidationRows
from cupygpt.train import main

MORE_SECONDS, MORE_MIB = 3.0, 200
SMALL, LARGE = 2**19, 2**31 - 1
"""Tokens of a file of 1 MiB, and of one of 4 GiB, the largest that there is."""

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc"
)


def write_sparse(path: Path, num_tokens: int) -> Path:
    """A token file of zeros that takes no room on the disk."""
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, num_tokens
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.truncate(1024 + 2 * num_tokens)
    return path


def run_of_two_steps(folder: Path, *flags: str) -> tuple[float, float]:
    """Its processor seconds, whatever else this machine does, and its peak of anonymous MiB."""
    shape = ["-e", "L1:H2:C32", "--tokenizer", "bytes", "-b", "2", "-n", "2", "-s", "0"]
    peak, before = 0, resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(
        [sys.executable, "-m", "cupygpt.train", *shape, *flags, "--device", "cpu", "-o", folder],
        stdout=subprocess.DEVNULL,
    ) as run:
        while run.poll() is None:
            status = Path(f"/proc/{run.pid}/status").read_text()
            peak = max(peak, *map(int, re.findall(r"RssAnon:\s+(\d+)", status)), 0)
            time.sleep(0.01)
    assert run.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, peak / 1024


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("flags", [["-t", "1024"], ["-t", "128"], ["-t", "16"]])
def test_a_file_of_4_gib_begins_like_a_small_one(tmp_path: Path, flags: list[str]) -> None:
    """Both as training and as validation data."""
    figures = []
    for size in (SMALL, LARGE):
        path = write_sparse(tmp_path / f"{size}.bin", size)
        # The validation data is another file: the same one would be doubted, not refused.
        val = write_sparse(tmp_path / f"{size}_val.bin", size - 1)
        run = tmp_path / f"run_{size}"
        figures.append(run_of_two_steps(run, "-i", str(path), "-j", str(val), *flags))
    (small_s, small_mib), (large_s, large_mib) = figures
    assert large_s < small_s + MORE_SECONDS
    assert large_mib < small_mib + MORE_MIB


@pytest.mark.slow
@needs_proc
def test_thousands_of_files_begin_soon(tmp_path: Path) -> None:
    """2,000 files of 10**8 tokens, 373 GiB; each has its own content at its end."""
    for i in range(2000):
        path = write_sparse(tmp_path / f"{i:04}.bin", 10**8)
        with path.open("r+b") as file:
            file.seek(-8, 2)
            file.write(np.array([i % 250, i // 250], "<u2").tobytes())
    small_s, small_mib = run_of_two_steps(tmp_path / "one", "-i", str(path), "-t", "128")
    many_s, many_mib = run_of_two_steps(
        tmp_path / "all", "-i", str(tmp_path / "*.bin"), "-t", "128"
    )
    assert many_s < small_s + 3 * MORE_SECONDS
    assert many_mib < small_mib + MORE_MIB


def test_a_bad_id_beyond_what_is_read_at_the_start_is_found_when_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sparse(tmp_path / "large.bin", 2**27)
    with path.open("r+b") as file:
        for token in range(2**26 + 512, 2**27, 2**20):
            file.seek(1024 + 2 * token)
            file.write(np.full(2**10, 300, "<u2").tobytes())
    flags = ["-e", "L1:H1:C8", "--tokenizer", "bytes", "-b", "512", "-t", "16", "-s", "0"]
    flags += ["--device", "cpu", "-o", str(tmp_path / "run")]
    assert main(["-i", str(path), *flags, "-n", "500"]) == 2
    assert re.search(
        r"large\.bin: token [\d,]+ is id 300, but the model's vocabulary has 257 ids",
        capsys.readouterr().err,
    )


def test_all_rows_of_a_large_validation_file_are_not_listed(tmp_path: Path) -> None:
    """268 million rows, all of them validated (-m -1); their numbers alone would take 2 GiB."""
    shards = open_shards(str(write_sparse(tmp_path / "val.bin", LARGE)))
    tracemalloc.start()
    try:
        rows = ValidationRows(shards, 8, None, evenly=False)
        inputs, _, num_rows = next(iter(ValidationBatches(rows, 4, 257)))
        share = rows.share_of(2**20)
        assert (rows.num_rows, num_rows, inputs.shape) == ((LARGE - 1) // 8, 4, (4, 8))
        assert share.num_rows == 2**17
        last = share.rows_at(share.num_rows - 1, share.num_rows)
        assert rows.num_rows - 2**12 < int(last[0]) < rows.num_rows
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
