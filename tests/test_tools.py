"""Every tool runs, and says what is wrong with bad input."""

import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bench_kernels
import numpy as np
import profile_step
import pytest
import step_calls
import try_defaults
from bench import Ours
from support.emulated_gpu import EmulatedGPU, EmulatedHopper
from support.gpu import require_gpu
from support.small_runs import TINY, write_files

from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.config import GPTConfig
from cupygpt.device.precision import BF16, FP32
from cupygpt.model.memory_plan import shape_of_run
from cupygpt.train import main

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"


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


def test_bench_generate_times_and_checks(tmp_path: Path) -> None:
    flags = ["--layers", "1", "--heads", "2", "--channels", "16", "--seq-len", "16"]
    assert tool("create_small_model.py", *flags, "--vocab", "65", cwd=tmp_path).returncode == 0
    flags = ["bench_generate.py", "small_model.bin", "--device", "cpu"]
    result = tool(*flags, "--rows", "1", "3", "--windows", "2", "--seconds", "0", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("tok/s") == 4
    assert "3 × 8 tokens  cupygpt, greedy" in result.stdout
    result = tool(*flags, "--check", "40", cwd=tmp_path)
    assert "greedy text of 40 tokens, window 16: 0 differ" in result.stdout, result.stderr
    assert tool("bench_generate.py", "absent", cwd=tmp_path).returncode == 2


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


def test_bench_scaling_times_several_ranks_and_one(tmp_path: Path) -> None:
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


def test_plan_memory_prints_a_batch_for_each_card(tmp_path: Path) -> None:
    result = tool("plan_memory.py", "d12", "d48", "--gib", "8", "80", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["8", "GiB", "card", "80", "GiB", "card"]
    assert [line.split()[:3] for line in lines[2:]] == [
        [model, "-r", recompute] for model in ("d12", "d48") for recompute in "012"
    ]
    small, large = (int(lines[2].split()[i]) for i in (3, 5))
    assert 1 <= small < large
    assert lines[5].split()[3] == "none"


def test_plan_memory_refuses_an_unknown_model(tmp_path: Path) -> None:
    result = tool("plan_memory.py", "d13", cwd=tmp_path)
    assert result.returncode == 2
    assert "Known: small, d6" in result.stderr


def test_try_defaults_compares_a_grid_with_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve settings of equal work, here cut down to one; the last line is the defaults'."""
    all_of_them = try_defaults.settings(2.0)
    assert len(all_of_them) == 13
    steps = {s.name: int(s.flags[s.flags.index("-n") + 1]) for s in all_of_them}
    assert (
        steps["L4:H4:C64 rate 0.004 dropout 0.0"] > 2 * steps["L4:H4:C128 rate 0.004 dropout 0.0"]
    )
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    for name in ("CHANNELS", "RATES", "DROPOUTS"):
        monkeypatch.setattr(try_defaults, name, getattr(try_defaults, name)[:1])
    arguments = ["--minutes-of-work", "0.0002", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["try_defaults", str(tmp_path / "text.txt"), *arguments])
    try_defaults.main()
    header, grid, defaults = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert header == ["setting", "best", "last", "time"]
    assert grid[0] == "L4:H4:C64 rate 0.004 dropout 0.0"
    assert defaults[0] == "defaults"
    assert 0 < float(grid[1]) < 6


@pytest.mark.parametrize("name", ["bench_kernels.py", "profile_step.py"])
def test_the_tools_for_kernels_refuse_the_cpu(tmp_path: Path, name: str) -> None:
    result = tool(name, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 2
    assert "for the CPU use tools/bench.py" in result.stderr


def test_the_tools_for_kernels_time_the_step_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = EmulatedGPU()
    monkeypatch.setattr(step_calls, "choose_device", lambda name: SimpleNamespace(device=gpu))
    parser = argparse.ArgumentParser()
    step_calls.add_step_flags(parser)
    flags = ["--config", "d12", "-b", "4", "-t", "64", "-r", "1", "--precision", "fp32"]
    device, precision, shape = step_calls.step_asked_for(parser.parse_args(flags))
    assert device is gpu
    assert precision is FP32
    assert (shape.config.L, shape.B, shape.T, shape.recompute) == (12, 4, 64, 1)


def small_step(device: EmulatedGPU, *, hopper: bool) -> Ours:
    config = GPTConfig(maxT=8, V=65, L=2, NH=1, C=64) if hopper else TINY
    shape = shape_of_run(config, 1, 8, BF16 if hopper else FP32, on_gpu=True)
    return Ours(device, shape, graph=False, dropout_p=0.1)


def test_bench_kernels_times_what_a_step_executes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_kernels, "FLUSH_BYTES", 1 << 12)
    device = EmulatedHopper()
    calls = bench_kernels.calls_of_step(small_step(device, hopper=True))
    outer = [call.name for call, _ in calls if call.depth == 0]
    assert outer[:4] == ["encoder_forward", "dropout", "layernorm_forward", "linear_forward"]
    assert outer[-3:] == ["loss_mean", "global_norm", "adamw"]
    labels = [call.label for call, _ in calls]
    assert "matmul 8×256, 64 terms gelu" in labels
    assert "lm_head" in labels
    assert "classifier" not in labels  # the fused kernels store no logits
    bench_kernels.report(calls[:4], bench_kernels.Timer(device, 1), 1e12, 1e12)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[4].startswith("linear_forward 8 rows, 64 to 192")


@pytest.mark.parametrize("hopper", [False, True])
def test_profile_step_times_each_call_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hopper: bool
) -> None:
    monkeypatch.setattr(profile_step, "BUSY_BYTES", 16)
    device = EmulatedHopper() if hopper else EmulatedGPU()
    ours = small_step(device, hopper=hopper)
    clock = profile_step.Clock(device)
    clock.keep_busy()
    with step_calls.intercepted(clock.time):
        ours.step()
    times = clock.times()
    counts = {name: len(values) for name, values in times.items()}
    assert counts["attention_backward"] == 2
    assert counts["lm_head"] == counts["adamw"] == 1
    assert not any(name.startswith("matmul") for name in counts)
    profile_step.report(times, 1, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(times) + 3
    assert lines[-1].split()[-1] == "500.0"
    calls = len(clock.times()["adamw"])
    ours.step()
    assert len(clock.times()["adamw"]) == calls  # nothing goes through the clock any more


def test_every_op_of_a_step_has_its_cost() -> None:
    imported = {
        alias.name
        for room in ("model", "training")
        for file in (ROOT / "cupygpt" / room).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cupygpt.ops.")
        for alias in node.names
    }
    of_generation = {
        *("attention_decode", "encoder_decode", "linear_few_rows", "fits_few_rows"),
        *("decode_partials", "sample_token"),
    }
    ops = {name for name in imported if name.islower()} - of_generation
    assert ops <= step_calls.OPS.keys(), ops - step_calls.OPS.keys()


def test_costs_name_parameters_that_exist() -> None:
    found, scratch = {"matmul"}, set()
    for module in (ROOT / "cupygpt" / "ops").glob("*.py"):
        for node in ast.parse(module.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in step_calls.OPS:
                names = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
                assert set(step_calls.OPS[node.name].twice) <= names, node.name
                found.add(node.name)
                scratch |= names
    assert found == step_calls.OPS.keys()
    assert set(step_calls.SCRATCH) <= scratch


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("bench_kernels.py", ["--repeats", "2"], ["limits: copy", "attention_backward", "adamw"]),
        ("profile_step.py", ["--steps", "1"], ["the step as one CUDA graph", "attention_backward"]),
    ],
)
def test_the_tools_for_kernels_on_a_gpu(
    tmp_path: Path, name: str, flags: list[str], expected: list[str]
) -> None:
    require_gpu()
    result = tool(name, *flags, "-b", "2", "-t", "64", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in expected:
        assert text in result.stdout
