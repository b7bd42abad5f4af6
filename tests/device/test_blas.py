"""The record of a run names the BLAS that decides over its last bits."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_runs import write_files

from cupygpt.device.blas import blas_in_use
from cupygpt.train import main
from cupygpt.training import resume

needs_openblas = pytest.mark.skipif(
    not blas_in_use().startswith("OpenBLAS") or platform.machine() not in ("x86_64", "AMD64"),
    reason="NumPy uses another BLAS here, or other kernels",
)


def in_use(**environ: str) -> str:
    program = "from cupygpt.device.blas import blas_in_use; print(blas_in_use())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@needs_openblas
def test_kernels_and_threads_of_openblas_are_named() -> None:
    name = in_use(OPENBLAS_CORETYPE="Nehalem", OPENBLAS_NUM_THREADS="1")
    assert re.fullmatch(r"OpenBLAS \d[\w.]*, Nehalem kernels, 1 thread", name)
    assert name != in_use(OPENBLAS_CORETYPE="Prescott", OPENBLAS_NUM_THREADS="1")


def test_another_blas_is_said_when_a_run_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "3", "-v", "0", "-o", str(run)]) == 0
    assert main(["--resume", str(run), "-n", "4"]) == 0
    assert "another environment" not in capsys.readouterr().out
    monkeypatch.setattr(resume, "blas_in_use", lambda: "OpenBLAS 9.9, Zen9 kernels, 7 threads")
    assert main(["--resume", str(run), "-n", "5"]) == 0
    out = capsys.readouterr().out
    assert f"blas: {blas_in_use()} then, OpenBLAS 9.9, Zen9 kernels, 7 threads now" in out


def test_another_number_of_cores_is_said_when_a_run_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "3", "-v", "0", "-o", str(run)]) == 0
    monkeypatch.setattr("cupygpt.device.cpu.num_cores", lambda: 77)
    assert main(["--resume", str(run), "-n", "4"]) == 0
    assert "CPU, 77 cores" in capsys.readouterr().out.split("another environment")[1]
