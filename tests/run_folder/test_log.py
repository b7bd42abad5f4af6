"""The logs of a run: valid JSON, kept where the disk refuses them, on disk before a checkpoint."""

import json
import math
import os
from pathlib import Path

import pytest
from support.small_runs import main_log, write_files

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.run_folder.log import MAIN_LOG, METRICS, RunLog, cut_logs
from cupygpt.train import main

FULL = Path("/dev/full")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.step(0, math.nan, 0.1, math.inf)
    log.close()
    text = (tmp_path / METRICS).read_text()
    event = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (event["loss"], event["lr"], event["norm"]) == (None, 0.1, None)


@pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")
def test_lines_that_a_full_disk_refused_are_written_later(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.step(0, 3.0, 0.1, 1.0)
    full, main = FULL.open("wb", buffering=0), log._main._file
    log._main._file = full
    log.step(1, 2.0, 0.1, 1.0)
    assert log.failure == f"{tmp_path / MAIN_LOG}: could not be written (No space left on device)."
    log._main._file = main
    log.sync()
    assert log.failure is None
    log.close()
    full.close()
    assert [line[:3] for line in main_log(tmp_path)] == ["s:0", "s:1"]


@pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")
def test_a_run_whose_log_cannot_be_written_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-n", "50", "-v", "0", "--checkpoint-every", "0"]
    assert main([*flags, "-n", "5", "-o", str(run)]) == 0
    (run / METRICS).unlink()
    (run / METRICS).symlink_to(FULL)
    assert main(["--resume", str(run), "-n", "50"]) == 1
    err = capsys.readouterr().err
    assert f"{run / METRICS}: could not be written (No space left on device)." in err
    assert f"The last complete checkpoint is step 6: continue from it with --resume {run}" in err
    assert checkpoint_steps(run) == [5, 6]
    (run / METRICS).unlink()
    assert main(["--resume", str(run)]) == 0
    assert len(main_log(run)) == 50


def test_logs_are_on_disk_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-v", "0", "-o", str(run)]) == 0
    logs = [synced.index(name) for name in (MAIN_LOG, METRICS)]
    assert max(logs) < synced.index("model_00000005.bin.partial")


def test_what_is_written_again_and_what_is_damaged_is_cut(tmp_path: Path) -> None:
    (tmp_path / MAIN_LOG).write_bytes(
        b"s:0 tel:5.0000\ns:0 trl:5.0 lr:0.1 norm:1.00\n\xff\xfe\ns:2 trl:5.0 lr:0.1 norm:1.00\n"
        b"s:3 trl:5.0 lr:0.1 norm:1.00\ns:3 tr"
    )
    (tmp_path / METRICS).write_bytes(
        b'{"kind": "train", "step": 0}\n[]\n{"kind": "train", "step": 1e999}\n'
        b'{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n' + b"[" * 9999 + b"\n"
    )
    assert cut_logs(tmp_path, 3) == [
        "main.log: 1 damaged line was removed; the lines of 1 training steps are missing (1)",
        "metrics.jsonl: 3 damaged lines were removed",
    ]
    assert [line[:7] for line in main_log(tmp_path)] == ["s:0 tel", "s:0 trl", "s:2 trl"]
    assert cut_logs(tmp_path, 2) == [
        "main.log: the lines of 1 training steps are missing (1)",
    ]
    (tmp_path / MAIN_LOG).unlink()
    assert cut_logs(tmp_path, 1) == ["main.log: the lines of 1 training steps are missing (0)"]
