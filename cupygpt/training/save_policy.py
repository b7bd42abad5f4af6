"""When a checkpoint is worth its time, where no flag says how often to save.

Saving may take 2 % of the time. A checkpoint is due at each new best validation, and ten minutes
after the last one, if it can be afforded. The weights of a best validation that cannot be are kept
in main memory, and written with the next checkpoint: the last one at the latest.
"""

import numpy as np

from cupygpt.checkpoint.state_file import TrainState
from cupygpt.training.length import Clock

SHARE = 0.02
INTERVAL_S = 600.0

GUESSED_BYTES_PER_S = 5e8
"""How fast the first checkpoint is expected to be written."""


class SavePolicy:
    """Decides by the run's clock; `num_bytes` is the size of a checkpoint."""

    def __init__(self, clock: Clock, num_bytes: int) -> None:
        self._clock, self._guess_s = clock, num_bytes / GUESSED_BYTES_PER_S
        self._last_s = clock.elapsed()

    def affordable(self) -> bool:
        """Whether one more checkpoint keeps saving within its share of the time."""
        spent = self._clock.total("save")
        return spent + (self._clock.mean("save") or self._guess_s) <= SHARE * self._clock.elapsed()

    def due(self) -> bool:
        """Whether the last checkpoint is so long ago that one should be written now."""
        return self._clock.elapsed() - self._last_s >= INTERVAL_S and self.affordable()

    def saved(self) -> None:
        """A checkpoint was written."""
        self._last_s = self._clock.elapsed()


def copy_of(state: TrainState) -> TrainState:
    """The state with arrays of its own: on a CPU those of a state are the trainer's."""
    arrays = {
        name: None if array is None else np.array(array)
        for name, array in (
            ("params", state.params),
            ("m", state.m),
            ("v", state.v),
            ("master", state.master),
        )
    }
    return TrainState(state.progress, **arrays, zero_shard=state.zero_shard)
