"""The command as a user sees it: its output, its run folder, its messages about bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import (
    TINY,
    command,
    main_log,
    metrics,
    train_without_cupy,
    write_files,
    write_tokens,
)

from cupygpt import sample
from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.model.init_weights import initial_parameters
from cupygpt.train import main


def test_a_run_writes_its_files_and_says_how_to_sample(tmp_path: Path) -> None:
    flags = write_files(tmp_path)
    run = tmp_path / "run"
    result = command("cupygpt.train", *flags, "-n", "12", "-s", "6", "-o", str(run), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert checkpoint_steps(run) == [10, 12]
    lines = main_log(run)
    assert lines[0].startswith("s:0 tel:")
    assert sum(" trl:" in line for line in lines) == 12
    assert lines[-1].startswith("s:12 tel:")
    assert re.fullmatch(r"s:0 trl:\d\.\d{4} lr:0\.010000 norm:\d+\.\d\d", lines[1])
    assert len(metrics(run, "sample")) == 2
    record = json.loads((run / "run.json").read_text())
    assert {"model", "data", "config", "environment"} <= record.keys()
    for expected in ("CPU", "planned", "validation loss", "python -m cupygpt.sample"):
        assert expected in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_the_home_folder_is_expanded_wherever_a_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after `=`, where the shell does not do it: `--out='~/x'` made a folder named ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    flags = write_files(tmp_path)
    flags[1] = "~/tiny.bin"
    assert main([*flags, "-n", "2", "--out=~/run"]) == 0
    assert main(["--resume", "~/run", "--extend", "2"]) == 0
    assert sample.main(["~/run", "--tokens", "2", "--device", "cpu"]) == 2  # no tokenizer for V 65
    assert checkpoint_steps(tmp_path / "run") == [2, 4]
    assert list(elsewhere.iterdir()) == []


def test_overfitting_one_batch_learns_it(tmp_path: Path) -> None:
    flags = write_files(tmp_path)
    assert main([*flags, "-a", "-n", "60", "-v", "0", "-o", str(tmp_path / "run")]) == 0
    losses = [event["loss"] for event in metrics(tmp_path / "run", "train")]
    assert losses[0] > 3.5
    assert losses[-1] < 0.3


def bad_magic(tmp_path: Path) -> list[str]:
    (tmp_path / "train.bin").write_bytes(b"\1" * 4096)
    return []


def bad_version(tmp_path: Path) -> list[str]:
    raw = bytearray((tmp_path / "train.bin").read_bytes())
    raw[4] = 9
    (tmp_path / "train.bin").write_bytes(raw)
    return []


def truncated(tmp_path: Path) -> list[str]:
    path = tmp_path / "train.bin"
    path.write_bytes(path.read_bytes()[:-7])
    return []


def large_id(tmp_path: Path) -> list[str]:
    write_tokens(tmp_path / "train.bin", 500, 300)
    return []


def one_token(tmp_path: Path) -> list[str]:
    header = np.zeros(256, "<i4")
    header[:3] = [20240520, 1, 1]
    (tmp_path / "train.bin").write_bytes(header.tobytes() + b"\0\0")
    return []


def bad_model(tmp_path: Path) -> list[str]:
    path = tmp_path / "tiny.bin"
    path.write_bytes(path.read_bytes()[:5000])
    return []


def used_folder(tmp_path: Path) -> list[str]:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "main.log").write_text("s:0 trl:1.0000 lr:0.1 norm:1.00\n")
    return []


def file_as_folder(tmp_path: Path) -> list[str]:
    (tmp_path / "run").write_text("")
    return []


def other_tokenizer(_: Path) -> list[str]:
    return ["--tokenizer", "bytes"]


BAD_INPUT = [
    (lambda _: ["-i", "none.bin"], r"none\.bin"),
    (lambda _: ["-i", "none_*.bin"], r"none_\*\.bin"),
    (bad_magic, "magic"),
    (bad_version, "version 9"),
    (truncated, r"train\.bin"),
    (large_id, "vocabulary"),
    (one_token, "1 token"),
    (lambda _: ["-t", "17"], "at most 16 positions"),
    (lambda _: ["-e", "d13"], "Known: small, d6"),
    (lambda _: ["-e", "absent.bin"], r"absent\.bin: there is no such model"),
    (bad_model, "cut short"),
    (lambda _: ["-b", "0"], "-b/--batch-size is 0"),
    (lambda _: ["-t", "-8"], "-t/--seq-len is -8"),
    (lambda _: ["-n", "0"], "-n/-x/--steps is 0"),
    (lambda _: ["-l", "-1"], "-l/--learning-rate is -1"),
    (lambda _: ["-l", "nan"], "-l/--learning-rate is nan"),
    (lambda _: ["--dropout", "1"], "--dropout is 1"),
    (lambda _: ["-d", "50"], "not a multiple of 4 × 8 = 32"),
    (lambda _: ["-d", "50"], "Nearest that work: 32 and 64."),
    (lambda _: ["-d", "10"], "Nearest that work: 32."),
    (lambda _: ["--epochs", "2"], "set the length of the run"),
    (lambda _: ["--device", "tpu"], "not a device"),
    (lambda _: ["--precision", "bf16"], "needs a GPU of compute capability 8.0"),
    (lambda _: ["-w", "0"], "this run is in fp32"),
    (lambda _: ["--no-graph"], "needs a CUDA device"),
    (lambda _: ["-b", "100000000"], "largest batch that fits is -b"),
    (used_folder, "already holds a run"),
    (file_as_folder, "a file of that name exists"),
    pytest.param(
        lambda _: ["-o", "/proc/none/run"],
        "not writable",
        marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc is Linux's"),
    ),
    (lambda _: ["--resume", "nowhere"], "no such folder"),
    (other_tokenizer, "tokenizer bytes has 257 ids"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUT)
def test_bad_input_gets_one_message_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object, message: str
) -> None:
    flags = [*write_files(tmp_path), "-n", "10", "-o", str(tmp_path / "run")]
    assert main([*flags, *spoil(tmp_path)]) == 2  # type: ignore[operator]
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "four"], "invalid int value"),
        (["--unknown"], "error: --unknown is not a flag"),
        (["-k", "square"], "invalid choice"),
    ],
)
def test_wrong_flags_exit_with_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = command("cupygpt.train", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = write_files(tmp_path)
    run = tmp_path / "run"
    assert main([*flags, "-n", "6", "-o", str(run)]) == 0
    # Finite weights whose sums overflow: the run must stop at its first step.
    weights = initial_parameters(TINY, 1) * np.float32(1e30)
    save_model(tmp_path / "huge.bin", TINY, weights, "fp32")
    capsys.readouterr()
    flags += ["-e", str(tmp_path / "huge.bin"), "-o", str(tmp_path / "bad")]
    assert main([*flags, "-n", "9", "-v", "0"]) == 1
    err = capsys.readouterr().err
    assert "step 0: loss" in err
    assert "No checkpoint was saved yet" in err
    assert checkpoint_steps(tmp_path / "bad") == []


def test_a_full_disk_names_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, real, calls = tmp_path / "run", os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        # The disk is full once the checkpoint of step 5 is complete.
        if checkpoint_steps(run) == [5]:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    code = main([*write_files(tmp_path), "-n", "20", "-v", "0", "-o", str(run)])
    assert code == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert f"The last complete checkpoint is step 5: continue from it with --resume {run}" in err
    monkeypatch.undo()
    assert main(["--resume", str(run)]) == 0
    assert checkpoint_steps(run)[-1] == 20


def test_help_lists_the_flags(tmp_path: Path) -> None:
    result = command("cupygpt.train", "--help", cwd=tmp_path)
    for flag in (
        "-e, --model",
        "-n, -x, --steps",
        "-y, --resume",
        "--dropout",
        "--checkpoint-every",
    ):
        assert re.search(flag.replace(", ", ".*"), result.stdout), flag


def test_the_cpu_path_imports_no_cupy(tmp_path: Path) -> None:
    flags = [*write_files(tmp_path), "-n", "2", "-o", str(tmp_path / "run")]
    program = train_without_cupy(flags)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True)


def test_a_file_with_padding_rows_warns_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = write_files(tmp_path)
    weights = initial_parameters(TINY, 42)
    weights[TINY.V * TINY.C : TINY.Vp * TINY.C] = 0.5
    save_model(tmp_path / "tiny.bin", TINY, weights, "fp32")
    assert main([*flags, "-n", "3", "-o", str(tmp_path / "padded")]) == 0
    assert "63 padding rows of wte were not zero" in capsys.readouterr().out
    write_files(tmp_path)
    assert main([*flags, "-n", "3", "-o", str(tmp_path / "clean")]) == 0
    assert main_log(tmp_path / "padded") == main_log(tmp_path / "clean")


def test_a_file_shorter_than_the_default_context_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GPTConfig(maxT=4096, V=65, L=1, NH=1, C=8)
    save_model(tmp_path / "long.bin", config, initial_parameters(config, 1), "fp32")
    write_tokens(tmp_path / "train.bin", 300, 65)
    flags = ["-e", str(tmp_path / "long.bin"), "-i", str(tmp_path / "train.bin")]
    assert main([*flags, "--device", "cpu", "-o", str(tmp_path / "run")]) == 2
    assert "one row takes 4,097 (T 4096 + 1). Use -t 299 or less" in capsys.readouterr().err
