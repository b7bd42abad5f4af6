"""Ranks compute what one process computes: equal losses, and the same bits on every rank."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rank_threads import run_ranks
from support.small_runs import write_tokens

from cupygpt.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from cupygpt.checkpoint.state_file import Progress, TrainState, load_state, state_path
from cupygpt.config import GPTConfig
from cupygpt.data.loader import Position, StepLoader, TrainLoader
from cupygpt.data.token_files import open_shards
from cupygpt.data.validation import ValidationBatches, ValidationRows
from cupygpt.device.cpu import CPU
from cupygpt.distributed.collectives import make_collectives
from cupygpt.distributed.zero import ALIGNMENT, ZeroShard, shard_of
from cupygpt.errors import CheckpointError, DeviceError
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import RunShape, check_fits, memory_plan
from cupygpt.training.trainer import OptimizerSettings, Trainer, mean_loss

CONFIG = GPTConfig(maxT=16, V=65, L=2, NH=2, C=16)
P = CONFIG.num_parameters
T, STEPS = 8, 20
LOSS_RTOL = 1e-5
"""Rounding differences grow from step to step, to 3e-6 on a processor with AVX-512. Wrong dropout
masks change the losses by 2e-2, wrong rows by 1e-1."""


class Result:
    """What one rank has after some steps."""

    def __init__(self, trainer: Trainer, losses: list[float], norms: list[float]) -> None:
        self.losses, self.norms = np.array(losses), np.array(norms)
        self.params = trainer.params.flat.copy()
        self.m, self.v, self.zero_shard = trainer.m, trainer.v, trainer.zero_shard


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "train.bin", 1200, CONFIG.V)


def make_trainer(ranks: Any, B: int, *, zero: bool = False, **options: Any) -> Trainer:
    shape = RunShape(CONFIG, B, T, zero_shards=ranks.world if zero else 1)
    trainer = Trainer(
        CPU(),
        shape,
        OptimizerSettings(weight_decay=0.1),
        seed=3,
        collectives=make_collectives(CPU(), ranks),
        **options,
    )
    trainer.load_parameters(initial_parameters(CONFIG, 42))
    return trainer


def train(
    tokens: Path,
    world: int,
    B: int,
    *,
    accumulation: int = 1,
    zero: bool = False,
    dropout: float = 0.0,
) -> list[Result]:
    """STEPS steps on `world` ranks of B rows each."""

    def rank(ranks: Any) -> Result:
        trainer = make_trainer(ranks, B, zero=zero, accumulation=accumulation, dropout_p=dropout)
        loader = TrainLoader(
            open_shards(str(tokens)), B, T, CONFIG.V, seed=7, rank=ranks.rank, num_ranks=world
        )
        feed = StepLoader(loader, accumulation)
        results = [trainer.step(feed.next_batch(), step, 1e-2).result() for step in range(STEPS)]
        return Result(trainer, [r.loss for r in results], [r.grad_norm for r in results])

    return run_ranks(world, rank)


@pytest.mark.parametrize("zero", [False, True], ids=["whole", "zero1"])
@pytest.mark.parametrize(
    ("world", "B", "accumulation"), [(2, 6, 1), (3, 4, 1), (2, 2, 3), (3, 2, 2), (3, 1, 4)]
)
def test_several_ranks_train_as_one_process_with_the_same_rows(
    tokens: Path, world: int, B: int, accumulation: int, zero: bool
) -> None:
    (alone,) = train(tokens, 1, 12)
    ranks = train(tokens, world, B, accumulation=accumulation, zero=zero)
    for rank in ranks:
        np.testing.assert_allclose(rank.losses, alone.losses, rtol=LOSS_RTOL)
        np.testing.assert_allclose(rank.norms, alone.norms, rtol=2e-5)
        np.testing.assert_array_equal(rank.losses, ranks[0].losses)
        np.testing.assert_array_equal(rank.norms, ranks[0].norms)
        np.testing.assert_array_equal(rank.params, ranks[0].params)
    # Adam divides by sqrt(v): where a gradient is near zero, its rounding error decides the step.
    assert np.mean(np.abs(ranks[0].params - alone.params) < 1e-4) > 0.99


def test_dropout_masks_are_those_of_one_process_with_all_rows(tokens: Path) -> None:
    (alone,) = train(tokens, 1, 12, dropout=0.3)
    for rank in train(tokens, 3, 4, dropout=0.3):
        np.testing.assert_allclose(rank.losses, alone.losses, rtol=LOSS_RTOL)


def test_runs_repeat_and_zero1_changes_no_bit(tokens: Path) -> None:
    runs = [train(tokens, 3, 4, zero=zero, dropout=0.1) for zero in (False, False, True)]
    first = runs[0][0]
    for run in runs:
        for rank in run:
            np.testing.assert_array_equal(rank.losses, first.losses)
            np.testing.assert_array_equal(rank.params, first.params)
    for rank in runs[2]:
        own = slice(rank.zero_shard.start, rank.zero_shard.stop)
        np.testing.assert_array_equal(rank.m, first.m[own])
        np.testing.assert_array_equal(rank.v, first.v[own])


@pytest.mark.parametrize("most", [None, 1, 3, 5])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_validation_loss_equals_that_of_one_rank_to_the_last_bit(
    tokens: Path, world: int, most: int | None
) -> None:
    count = None if most is None else 4 * most
    rows = ValidationRows(open_shards(str(tokens)), T, count, evenly=False)

    def validate(ranks: Any) -> float:
        batches = ValidationBatches(rows, 4, CONFIG.V, rank=ranks.rank, num_ranks=ranks.world)
        sums = make_trainer(ranks, 4).sum_losses((x, y) for x, y, _ in batches)
        everyone = ranks.all_gather_object(sums)
        return mean_loss(pair for pairs in zip(*everyone, strict=True) for pair in pairs)

    (alone,) = run_ranks(1, validate)
    assert run_ranks(world, validate) == [alone] * world


def test_the_planned_memory_of_zero1_is_what_is_allocated() -> None:
    def allocated(ranks: Any) -> list[int]:
        trainer = make_trainer(ranks, 4, zero=True)
        return [trainer._gathered.nbytes, trainer.m.nbytes + trainer.v.nbytes]

    plan = memory_plan(RunShape(CONFIG, 4, T, zero_shards=3))
    alone = memory_plan(RunShape(CONFIG, 4, T))
    assert plan["optimizer"] < alone["optimizer"] / 3 + 2 * 4 * ALIGNMENT
    everyone = run_ranks(3, allocated)
    assert everyone[:2] == [[plan["parameters"], plan["optimizer"]]] * 2
    assert everyone[2][1] <= plan["optimizer"]  # the last shard may be shorter
    assert {name: plan[name] for name in plan if name not in ("parameters", "optimizer")} == {
        name: alone[name] for name in alone if name not in ("parameters", "optimizer")
    }


def test_with_zero1_a_larger_batch_fits() -> None:
    free = int(sum(memory_plan(RunShape(CONFIG, 4, T)).values()) / 0.95) - 1
    with pytest.raises(DeviceError):
        check_fits(RunShape(CONFIG, 4, T), free)
    check_fits(RunShape(CONFIG, 4, T, zero_shards=2), free)


# Checkpoints of several ranks


def save(folder: Path, world: int, *, zero: bool, step: int = 7, master: bool = False) -> None:
    whole = {name: np.arange(P, dtype=np.float32) + shift for name, shift in OFFSETS.items()}

    def rank(ranks: Any) -> None:
        shard = shard_of(P, world, ranks.rank) if zero and world > 1 else None
        own = slice(shard.start, shard.stop) if shard else slice(None)
        has = ranks.rank == 0 or shard is not None
        state = TrainState(
            replace(PROGRESS, step=step),
            initial_parameters(CONFIG, 1) if ranks.rank == 0 else None,
            whole["m"][own] if has else None,
            whole["v"][own] if has else None,
            whole["master"][own] if has and master else None,
            zero_shard=shard,
        )
        save_checkpoint(folder, CONFIG, state, ranks=ranks)

    run_ranks(world, rank)


OFFSETS = {"m": 0.0, "v": 0.25, "master": 0.5}
PROGRESS = Progress(7, seed=5, position=Position(0, 11))


@pytest.mark.parametrize(
    ("saved_by", "saved_zero", "master"),
    [(1, False, True), (2, True, False), (3, False, False), (4, True, True)],
)
@pytest.mark.parametrize(
    ("world", "zero"), [(1, False), (2, False), (2, True), (4, True), (3, True)]
)
def test_any_ranks_load_what_any_ranks_saved(
    tmp_path: Path, saved_by: int, saved_zero: bool, world: int, zero: bool, master: bool
) -> None:
    save(tmp_path, saved_by, zero=saved_zero, master=master)
    states = sorted(path.name for path in tmp_path.glob("state_*"))
    assert len(states) == (saved_by if saved_zero else 1)

    def load(ranks: Any) -> Any:
        return load_checkpoint(tmp_path, 7, ranks=ranks, zero_stage=int(zero)).state

    for rank, state in enumerate(run_ranks(world, load)):
        shard = shard_of(P, world, rank) if zero else ZeroShard(0, P)
        wanted = np.arange(shard.start, shard.stop, dtype=np.float32)
        np.testing.assert_array_equal(state.m, wanted)
        np.testing.assert_array_equal(state.v, wanted + np.float32(0.25))
        assert (state.master is not None) == master
        if master:
            np.testing.assert_array_equal(state.master, wanted + np.float32(0.5))
        assert state.progress == PROGRESS


def test_one_rank_and_several_without_zero1_write_the_same_files(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "three"]
    for folder, world in zip(folders, (1, 3), strict=True):
        folder.mkdir()
        save(folder, world, zero=False)
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


def test_the_header_of_a_zero_shard_makes_llmc_refuse_it(tmp_path: Path) -> None:
    save(tmp_path, 2, zero=True)
    for rank in range(2):
        header = np.fromfile(state_path(tmp_path, 7, rank), "<i4", 256)
        assert header[[0, 2, 3, 10]].tolist() == [20240527, 2, rank, 7]
        assert header[1] != 1  # llm.c's version: it shards the state differently


def test_a_missing_or_foreign_zero_shard_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 3, zero=True)
    save(tmp_path, 3, zero=True, step=8)
    first, second = state_path(tmp_path, 7, 0), state_path(tmp_path, 7, 1)
    kept = second.read_bytes()
    second.write_bytes(state_path(tmp_path, 8, 1).read_bytes())
    with pytest.raises(CheckpointError, match="not written together with"):
        load_state(first, P)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path, 7)
    second.write_bytes(kept[:-4])
    with pytest.raises(CheckpointError, match="cut short"):
        load_state(first, P)
    second.unlink()
    with pytest.raises(CheckpointError, match="state_00000007_00001"):
        load_state(first, P)
    with pytest.raises(CheckpointError, match="missing, though DONE_00000007 lists it"):
        load_checkpoint(tmp_path, 7)
    with pytest.raises(CheckpointError, match="belong to another model"):
        load_state(state_path(tmp_path, 8, 0), P + 8)


def test_saving_again_with_fewer_ranks_leaves_no_old_files(tmp_path: Path) -> None:
    save(tmp_path, 4, zero=True)
    save(tmp_path, 2, zero=True)
    assert len(list(tmp_path.glob("state_*"))) == 2
    assert load_checkpoint(tmp_path, 7).state.m.size == P


def test_a_state_of_several_llmc_ranks_loads(tmp_path: Path) -> None:
    """Without ZeRO-1, each rank of llm.c writes the whole state."""
    save(tmp_path, 1, zero=False)
    path = state_path(tmp_path, 7, 0)
    raw = bytearray(path.read_bytes())
    raw[8:16] = np.array([4, 0], "<i4").tobytes()
    raw[256:320] = bytes(64)  # llm.c knows nothing of our fields
    path.write_bytes(raw)
    assert load_state(path, P).m[5] == 5.0
    raw = raw[: 1024 + 8 * (P // 4)]
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"an llm\.c run with ZeRO-1"):
        load_state(path, P)
