import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.checkpoint.checkpoint import (
    best_step,
    checkpoint_steps,
    load_checkpoint,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
)
from cupygpt.checkpoint.state_file import Progress, TrainState, load_state
from cupygpt.config import GPTConfig
from cupygpt.data.loader import Position
from cupygpt.errors import CheckpointError, RunError
from cupygpt.model.init_weights import initial_parameters

CONFIG = GPTConfig(maxT=8, V=65, L=1, NH=2, C=16)
P = CONFIG.num_parameters


def save(folder: Path, step: int, *, best: int = 0) -> None:
    m, v = np.full(P, step, np.float32), np.full(P, 0.5, np.float32)
    progress = Progress(step, seed=7, position=Position(2, 11), best_step=best, best_loss=1.25)
    save_checkpoint(folder, CONFIG, TrainState(progress, initial_parameters(CONFIG, step), m, v))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 3, best=2)
    loaded = load_checkpoint(tmp_path, 3)
    assert loaded.state.progress == Progress(3, 7, Position(2, 11), 2, 1.25)
    assert (loaded.state.m == 3).all()
    assert (loaded.state.v == 0.5).all()
    np.testing.assert_array_equal(loaded.state.params, initial_parameters(CONFIG, 3))


def test_the_file_names_and_sizes_are_those_of_llmc(tmp_path: Path) -> None:
    save(tmp_path, 12)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["DONE_00000012", "model_00000012.bin", "state_00000012_00000.bin"]
    assert (tmp_path / names[1]).stat().st_size == 1024 + 4 * P
    assert (tmp_path / names[2]).stat().st_size == 1024 + 8 * P
    header = np.fromfile(tmp_path / names[2], "<i4", 256)
    assert header[[0, 1, 2, 3, 4, 5, 10]].tolist() == [20240527, 1, 1, 0, 0, 0, 12]


def test_bfloat16_weights_and_their_master_come_back(tmp_path: Path) -> None:
    master = initial_parameters(CONFIG, 3)
    m, v = np.full(P, 2, np.float32), np.full(P, 0.5, np.float32)
    state = TrainState(Progress(12), to_bfloat16(master), m, v, master)
    save_checkpoint(tmp_path, CONFIG, state)
    assert (tmp_path / "model_00000012.bin").stat().st_size == 1024 + 2 * P
    assert (tmp_path / "state_00000012_00000.bin").stat().st_size == 1024 + 12 * P
    assert np.fromfile(tmp_path / "model_00000012.bin", "<i4", 2)[1] == 5
    loaded = load_checkpoint(tmp_path, 12)
    assert loaded.precision == "bf16"
    assert loaded.state.master is not None
    np.testing.assert_array_equal(loaded.state.master, master)
    np.testing.assert_array_equal(loaded.state.params, from_bfloat16(to_bfloat16(master)))
    np.testing.assert_array_equal(loaded.state.m, m)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, best=5)
        prune_checkpoints(tmp_path, 2, 5)
    assert checkpoint_steps(tmp_path) == [5, 15, 20]
    assert best_step(tmp_path) == 5
    assert not (tmp_path / "model_00000010.bin").exists()


def test_without_a_validation_the_newest_is_the_best(tmp_path: Path) -> None:
    """Also where step 0 was saved: the state of a run without validation names it as its best."""
    for step in (0, 5):
        m, v = np.zeros(P, np.float32), np.zeros(P, np.float32)
        state = TrainState(Progress(step), initial_parameters(CONFIG, step), m, v)
        save_checkpoint(tmp_path, CONFIG, state)
    assert best_step(tmp_path) == 5


def test_keep_0_keeps_all(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
        prune_checkpoints(tmp_path, 0, None)
    assert checkpoint_steps(tmp_path) == [1, 2, 3]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["model_00000009.bin", "state_00000009_00000.bin", "DONE_00000009"]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    truncate=st.booleans(),
)
def test_every_damaged_byte_is_noticed(
    tmp_path: Path, name: str, where: float, bit: int, truncate: bool
) -> None:
    save(tmp_path, 4)
    save(tmp_path, 9)
    path = tmp_path / name
    raw = bytearray(path.read_bytes())
    position = int(where * len(raw))
    if truncate:
        path.write_bytes(raw[:position])
    else:
        raw[position] ^= 1 << bit
        path.write_bytes(raw)
    try:
        loaded = load_checkpoint(tmp_path, 9)
    except CheckpointError as error:
        assert "step 4" in str(error)  # the way back is named
    else:
        # Only DONE may change without harm (white space, or emptied as llm.c writes it).
        assert name == "DONE_00000009"
        np.testing.assert_array_equal(loaded.state.params, initial_parameters(CONFIG, 9))


def test_an_llmc_state_loads_and_says_that_its_order_is_lost(tmp_path: Path) -> None:
    header = np.zeros(256, "<i4")
    header[[0, 1, 2, 4, 5, 10]] = [20240527, 1, 1, 1, 1, 77]
    body = np.arange(3 * P, dtype="<f4")
    loader = np.uint64(2).tobytes() + bytes(8) + np.uint64(5).tobytes() + bytes(20) + bytes(2520)
    path = tmp_path / "state_00000077_00000.bin"
    path.write_bytes(header.tobytes() + body.tobytes() + loader)
    state = load_state(path, P)
    assert state.progress == Progress(77, position=None)
    assert state.master is not None
    assert [state.m[0], state.v[0], state.master[0]] == [0, P, 2 * P]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        load_state(path, P)


@pytest.mark.parametrize("failing", ["model", "state", "DONE"])
def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    save(tmp_path, 1)
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if failing in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match="No space left on device"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint_steps(tmp_path) == [1]
    assert load_checkpoint(tmp_path, 1).state.progress.step == 1
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "model_00000002.bin.partial").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    assert checkpoint_steps(tmp_path) == [1]
