"""The training state: which of weights and master weights a run continues from."""

import numpy as np
import pytest

from cupygpt.checkpoint.state_file import Progress, TrainState
from cupygpt.distributed.zero import ZeroShard

ROUNDED = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
MASTER = ROUNDED + np.float32(0.001)


def test_without_a_master_copy_a_run_continues_from_its_parameters() -> None:
    assert TrainState(Progress(3), ROUNDED).float32_weights() is ROUNDED


def test_a_whole_master_copy_wins_over_the_parameters() -> None:
    assert TrainState(Progress(3), ROUNDED, master=MASTER).float32_weights() is MASTER


def test_a_shard_of_the_master_copy_cannot_replace_all_parameters() -> None:
    shard = ZeroShard(0, 2)
    state = TrainState(Progress(3), ROUNDED, master=MASTER[:2], zero_shard=shard)
    assert state.float32_weights() is ROUNDED


def test_a_rank_that_saves_nothing_has_no_weights() -> None:
    with pytest.raises(AssertionError, match="on every rank"):
        TrainState(Progress(3)).float32_weights()
