"""DONE is believed only if it lists every file of its own step."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import TINY, write_files

from cupygpt import sample
from cupygpt.checkpoint.checkpoint import done_path, load_checkpoint, load_model, save_checkpoint
from cupygpt.checkpoint.model_file import save_model
from cupygpt.checkpoint.state_file import Progress, TrainState, state_path
from cupygpt.errors import CheckpointError
from cupygpt.model.init_weights import initial_parameters
from cupygpt.train import main

P = TINY.num_parameters
MODEL, STATE = "model_00000004.bin", "state_00000004_00000.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 2 and 4."""
    for step in (2, 4):
        moments = np.full(P, step, np.float32)
        state = TrainState(Progress(step), initial_parameters(TINY, step), moments, moments)
        save_checkpoint(tmp_path, TINY, state)
    return tmp_path


def listed(folder: Path) -> dict[str, int]:
    content = json.loads(done_path(folder, 4).read_text())
    assert content["step"] == 4
    return dict(content["crc32"])


def test_done_lists_every_file_and_the_step(folder: Path) -> None:
    assert set(listed(folder)) == {MODEL, STATE}
    load_checkpoint(folder, 4)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"crc32": {}}',
        '{"crc32": null}',
        "[" * 100_000,
        '{"step": 4, "crc32": {"model_00000004.bin": 1}}',
        '{"step": 4, "crc32": {"model_00000004.bin": true, "state_00000004_00000.bin": 1}}',
    ],
)
def test_a_done_that_lists_too_little_is_refused(folder: Path, content: str) -> None:
    done_path(folder, 4).write_text(content)
    with pytest.raises(CheckpointError, match=r"DONE_00000004.*continue from step 2"):
        load_checkpoint(folder, 4)
    with pytest.raises(CheckpointError, match="DONE_00000004"):
        load_model(folder / MODEL)


def test_a_done_of_another_step_is_refused(folder: Path) -> None:
    shutil.copy(done_path(folder, 2), done_path(folder, 4))
    with pytest.raises(CheckpointError, match="belongs to step 2"):
        load_checkpoint(folder, 4)


def test_a_state_of_another_step_is_refused(folder: Path) -> None:
    """Also where DONE vouches for it."""
    shutil.copy(state_path(folder, 2, 0), state_path(folder, 4, 0))
    done = json.loads(done_path(folder, 4).read_text())
    other = json.loads(done_path(folder, 2).read_text())
    done["crc32"][STATE] = other["crc32"]["state_00000002_00000.bin"]
    done_path(folder, 4).write_text(json.dumps(done))
    with pytest.raises(CheckpointError, match="the state of step 2"):
        load_checkpoint(folder, 4)


def test_a_done_of_the_first_version_has_no_step(folder: Path) -> None:
    done_path(folder, 4).write_text(json.dumps({"crc32": listed(folder)}))
    assert load_checkpoint(folder, 4).state.progress.step == 4


def llmc_state(path: Path, moments: np.ndarray) -> None:
    header = np.zeros(256, "<i4")
    header[[0, 1, 2, 10]] = [20240527, 1, 1, 4]
    path.write_bytes(header.tobytes() + moments.tobytes())


def test_an_empty_done_of_llmc_is_believed(folder: Path) -> None:
    llmc_state(folder / STATE, np.ones(2 * P, "<f4"))
    done_path(folder, 4).write_text("")
    assert load_checkpoint(folder, 4).state.progress.position is None
    load_model(folder / MODEL)


def test_moments_that_are_not_finite_are_refused(folder: Path) -> None:
    moments = np.ones(2 * P, "<f4")
    moments[P + 3] = np.nan
    llmc_state(folder / STATE, moments)
    done_path(folder, 4).write_text("")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_checkpoint(folder, 4)


def test_our_state_without_its_marker_is_not_taken_for_llmcs(folder: Path) -> None:
    raw = bytearray((folder / STATE).read_bytes())
    raw[4 * 64] ^= 1
    (folder / STATE).write_bytes(raw)
    done_path(folder, 4).write_text("")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(folder, 4)


@pytest.mark.parametrize("at", [5000, -1])
def test_a_flipped_bit_is_noticed_by_everything_that_reads_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    run, flags = tmp_path / "run", write_files(tmp_path)
    assert main([*flags, "-n", "4", "-v", "0", "-o", str(run)]) == 0
    path = run / MODEL
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    capsys.readouterr()
    assert sample.main([str(run), "--device", "cpu"]) == 2
    assert sample.main([str(path), "--device", "cpu"]) == 2
    assert main([*flags, "-n", "4", "-e", str(path), "-o", str(tmp_path / "next")]) == 2
    assert capsys.readouterr().err.count("its checksum is not the one in DONE_00000004") == 3


def test_a_model_file_alone_needs_no_done(tmp_path: Path) -> None:
    save_model(tmp_path / MODEL, TINY, initial_parameters(TINY, 1), "fp32")
    load_model(tmp_path / MODEL)
