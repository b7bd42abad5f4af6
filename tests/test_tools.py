import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import write_files

from cupygpt.checkpoint.model_file import load_model
from cupygpt.train import main

TOOLS = Path(__file__).parents[1] / "tools"


def tool(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOLS / name), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_create_small_model_writes_what_it_says(tmp_path: Path, precision: str) -> None:
    flags = ["--layers", "2", "--heads", "2", "--channels", "32", "--seq-len", "64"]
    result = tool(
        "create_small_model.py", *flags, "--vocab", "257", "--precision", precision, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    model = load_model(tmp_path / "small_model.bin")
    assert (model.config.L, model.config.NH, model.config.C) == (2, 2, 32)
    assert (model.config.maxT, model.config.V, model.precision) == (64, 257, precision)
    assert model.warnings == ()  # the padding rows are zero
    assert f"{model.config.num_parameters:,} parameters" in result.stdout


def test_create_small_model_refuses_a_bad_shape(tmp_path: Path) -> None:
    result = tool("create_small_model.py", "--channels", "130", cwd=tmp_path)
    assert result.returncode == 2
    assert "130 channels do not divide by 4 heads" in result.stderr
    assert not (tmp_path / "small_model.bin").exists()


def test_plot_log_draws_several_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for name in ("a", "b"):
        assert main([*write_files(tmp_path), "-n", "6", "-o", str(tmp_path / name)]) == 0
    result = tool("plot_log.py", "a", "b", "-o", "out.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    png = (tmp_path / "out.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 5000


def test_plot_log_says_when_there_is_nothing_to_draw(tmp_path: Path) -> None:
    (tmp_path / "main.log").write_text("nothing here\n")
    result = tool("plot_log.py", ".", cwd=tmp_path)
    assert result.returncode == 2
    assert "no line like" in result.stderr


def test_bench_times_a_configuration(tmp_path: Path) -> None:
    flags = ["--config", "bytes", "--device", "cpu", "--steps", "1", "--windows", "1"]
    result = tool("bench.py", *flags, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["config"] == "bytes"
    assert np.isfinite(report["ms"]["cupygpt"])
    assert report["ms"]["cupygpt"] > 0


def test_bench_scaling_times_ranks_beside_one(tmp_path: Path) -> None:
    flags = ["--config", "bytes", "--device", "cpu", "-b", "2", "-t", "32", "--gpus", "1", "2"]
    result = tool(
        "bench_scaling.py",
        *flags,
        "--zero",
        "--steps",
        "1",
        "--windows",
        "1",
        "--json",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["contestant"], row["gpus"]) for row in rows] == [
        ("cupygpt", 1),
        ("cupygpt", 2),
        ("cupygpt-zero1", 2),
    ]
    assert rows[0]["linear"] == 1.0
    assert all(row["tok_s"] > 0 for row in rows)
