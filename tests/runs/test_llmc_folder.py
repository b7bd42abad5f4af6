"""A folder that llm.c wrote: its run goes on here, once the command says what llm.c records not."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import TINY, main_log, write_files

from cupygpt.arrays import to_bfloat16
from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.model.init_weights import initial_parameters
from cupygpt.train import main

STEP = 20
SETTINGS = ["-b", "4", "-t", "8", "-l", "1e-3"]


def write_llmc_folder(
    folder: Path, *, step: int = STEP, precision: str = "fp32", master: bool = False
) -> dict[str, np.ndarray]:
    """model_, state_ and DONE_ of one process as train_gpt2.cu writes them, with a shuffled loader.

    Returns what a run goes on with.
    """
    rng = np.random.default_rng(7)
    P = TINY.num_parameters
    weights = initial_parameters(TINY, 3)
    m = (1e-3 * rng.standard_normal(P)).astype(np.float32)
    m[TINY.V * TINY.C : TINY.Vp * TINY.C] = 0  # the padding rows of wte have no gradient
    v = np.square(m) + np.float32(1e-6)
    folder.mkdir(exist_ok=True)
    header = np.zeros(256, "<i4")
    header[:2] = 20240326, {"fp32": 3, "bf16": 5}[precision]
    header[2:8] = TINY.maxT, TINY.V, TINY.L, TINY.NH, TINY.C, TINY.Vp
    body = weights if precision == "fp32" else to_bfloat16(weights)
    (folder / f"model_{step:08d}.bin").write_bytes(header.tobytes() + body.tobytes())
    header = np.zeros(256, "<i4")
    header[:6] = 20240527, 1, 1, 0, master, 1
    header[10] = step
    header[20:24] = 13371337, 0, 13371337, 0
    header[30:34] = 0, 0, 5, 0
    parts = [header, m, v, *([weights] if master else [])]
    order = rng.permutation(37).astype("<i4")
    loader = [np.array([1], "<u8"), np.zeros(1, "<i4"), np.array([37], "<u8"), order]
    raw = b"".join(part.tobytes() for part in (*parts, *loader)) + bytes(2520)
    (folder / f"state_{step:08d}_00000.bin").write_bytes(raw)
    (folder / f"DONE_{step:08d}").write_bytes(b"")
    (folder / "main.log").write_text(
        "s:0 tel:4.2000\n"
        + "".join(f"s:{i} trl:4.1000 lr:0.001000 norm:1.00\n" for i in range(step))
        + f"s:{step} tel:4.0000\n"
    )
    return {"weights": weights, "m": m, "v": v}


def data_flags(folder: Path) -> list[str]:
    flags = write_files(folder)
    return ["-i", flags[3], "-j", flags[5], "--device", "cpu"]


@pytest.mark.parametrize(("precision", "master"), [("fp32", False), ("bf16", True)])
def test_a_run_of_llmc_goes_on_with_its_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str, master: bool
) -> None:
    run = tmp_path / "log"
    began = write_llmc_folder(run, precision=precision, master=master)
    flags = [*data_flags(tmp_path), *SETTINGS, "-v", "0", "-s", "0"]
    assert main(["--resume", str(run), *flags, "-n", "21", "--no-shuffle"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "written by llm.c" in out
    assert "the data order starts anew" in out
    assert "lines of" not in out  # nothing is missing: llm.c has no metrics
    assert checkpoint_steps(run) == [20, 21]  # llm.c keeps all checkpoints
    state = load_checkpoint(run, 21).state
    # The gradient follows from m; it gives v, and AdamW's 21st step from llm.c's float32 weights.
    m, weights = began["m"].astype(np.float64), began["weights"].astype(np.float64)
    gradient = (state.m - 0.9 * m) / 0.1
    v = 0.95 * began["v"] + 0.05 * np.square(gradient)
    np.testing.assert_allclose(state.v, v, rtol=1e-3, atol=1e-12)
    m_hat, v_hat = state.m / (1 - 0.9**21), state.v / (1 - 0.95**21)
    moved = weights - 1e-3 * m_hat / (np.sqrt(v_hat) + 1e-8)
    np.testing.assert_allclose(state.params, moved, atol=1e-6)
    assert np.abs(gradient).max() > 1e-3
    log = main_log(run)
    assert sum(" trl:" in line for line in log) == 21
    assert re.match(r"s:20 trl:\S+ lr:0\.001000 ", log[-1])
    assert json.loads((run / "run.json").read_text())["source"]["kind"] == "run of llm.c"


def test_from_then_on_it_is_a_run_like_any_other(tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "log"
    for folder in (straight, run):
        write_llmc_folder(folder)
    flags = [*data_flags(tmp_path), *SETTINGS, "-v", "5", "-s", "0"]
    assert main(["--resume", str(straight), *flags, "-n", "30"]) == 0
    assert main(["--resume", str(run), *flags, "-n", "25"]) == 0
    assert main(["--resume", str(run), "-n", "30"]) == 0
    assert main_log(run) == main_log(straight)
    ends = [load_checkpoint(folder, 30).state for folder in (straight, run)]
    np.testing.assert_array_equal(ends[0].params, ends[1].params)
    np.testing.assert_array_equal(ends[0].v, ends[1].v)


def test_llmcs_own_command_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "log"
    write_llmc_folder(run)
    flags = [*data_flags(tmp_path), *SETTINGS, "-e", str(tmp_path / "tiny.bin"), "-k", "cosine"]
    assert main([*flags, "-o", str(run), "-x", "24", "-n", "2", "-y", "1", "-u", "2"]) == 0
    assert checkpoint_steps(run) == [20, 22, 24]
    assert main([*flags, "-o", str(run), "-x", "24", "-n", "2", "-y", "1", "-u", "2"]) == 2


def test_all_that_is_missing_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "log"
    write_llmc_folder(run)
    before = sorted(path.name for path in run.iterdir())
    assert main(["--resume", str(run)]) == 2
    err = capsys.readouterr().err
    for flag in ("-i/--train-data", "-b/--batch-size", "-t/--seq-len", "-l/", "-n/-x/--steps"):
        assert flag in err
    assert main(["--resume", str(run), *data_flags(tmp_path), "-n", "25", "-t", "8"]) == 2
    err = capsys.readouterr().err
    assert "-b/--batch-size (there 4 by default), -l/--learning-rate" in err
    assert "-t/" not in err
    assert "-i/" not in err
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_finished_run_of_llmc_is_extended(tmp_path: Path) -> None:
    run = tmp_path / "log"
    write_llmc_folder(run)
    flags = [*data_flags(tmp_path), *SETTINGS, "-v", "0", "-s", "0"]
    assert main(["--resume", str(run), *flags, "-n", "20"]) == 2
    assert main(["--resume", str(run), *flags, "--extend", "5"]) == 0
    assert checkpoint_steps(run)[-1] == 25
    assert main(["--resume", str(run), "--extend", "3"]) == 0
    assert checkpoint_steps(run)[-1] == 28


def test_a_shape_that_does_not_fit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "log"
    write_llmc_folder(run)
    flags = [*data_flags(tmp_path), "-b", "4", "-l", "1e-3", "-n", "25"]
    assert main(["--resume", str(run), *flags, "-t", "1024"]) == 2
    assert "made for at most 16 positions" in capsys.readouterr().err


def test_our_own_run_without_its_record_is_not_taken_for_one_of_llmc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-o", str(run)]) == 0
    (run / "run.json").unlink()
    assert main(["--resume", str(run), *data_flags(tmp_path), *SETTINGS, "-n", "9"]) == 2
    err = capsys.readouterr().err
    assert "run.json is missing" in err
    assert f"-e {run}" in err
