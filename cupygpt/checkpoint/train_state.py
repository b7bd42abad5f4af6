"""The training state: all that a run needs to continue as if it had never stopped."""

import math
from dataclasses import dataclass

import numpy as np

from cupygpt.data.loader import START, Position
from cupygpt.distributed.zero import ZeroShard


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` optimizer steps.

    `position` is where the training data continues. It is None for a state written by llm.c, whose
    data order cannot be continued. `best_step` is the step of the lowest validation loss so far,
    `best_loss` that loss in nats per token.
    """

    step: int
    seed: int = 0
    position: Position | None = START
    best_step: int = 0
    best_loss: float = math.inf


@dataclass(frozen=True)
class TrainState:
    """A run's progress and its arrays, as one rank saves or loads them.

    `params` (P,): all parameters in the order of the model file, float32 or bfloat16 (uint16) when
    they are saved, always float32 when they were loaded. `m`, `v` (n,) float32: AdamW's moments.
    `master` (n,) float32: what bfloat16 parameters were rounded from; None if the run has no such
    copy. An array is None on ranks that do not save it:

    | | params | m, v, master | n |
    |---|---|---|---|
    | saved by equal ranks | rank 0 | rank 0 | P |
    | saved with ZeRO-1 | rank 0 | every rank its shard | size of `zero_shard` |
    | loaded without ZeRO-1 | every rank | every rank | P |
    | loaded with ZeRO-1 | every rank | every rank its shard | size of `zero_shard` |

    `zero_shard` says which elements of the flat parameters `m`, `v` and `master` belong to; None
    means all P.
    """

    progress: Progress
    params: np.ndarray | None = None
    m: np.ndarray | None = None
    v: np.ndarray | None = None
    master: np.ndarray | None = None
    zero_shard: ZeroShard | None = None

    def float32_weights(self) -> np.ndarray:
        """The float32 weights (P,) that a run continues from.

        The master copy wins over `params`, which are its rounded values. With ZeRO-1 a rank has
        only a shard of the master copy: then these are `params`, and `master` gives the shard.
        """
        is_whole = self.master is not None and self.zero_shard is None
        weights = self.master if is_whole else self.params
        assert weights is not None, "a loaded state has parameters on every rank"
        return weights
