"""Which checkpoints a run writes, and when one is worth its time.

Where no flag says how often to save, saving may take 2 % of the time. A checkpoint is due at each
new best validation, and ten minutes after the last one, if it can be afforded. The weights of a
best validation that cannot be are kept in main memory, and written with the next checkpoint: the
last one at the latest.
"""

from collections.abc import Callable

import numpy as np

from cupygpt.checkpoint.state_file import TrainState
from cupygpt.distributed.ranks import Ranks, broadcast_object
from cupygpt.run_folder.log import RunLog
from cupygpt.run_folder.saver import Saver
from cupygpt.training.clock import Clock

SHARE = 0.02
INTERVAL_S = 600.0

COPY = "copy"
"""What the clock calls the copy of a best validation's weights."""

GUESSED_BYTES_PER_S = 5e8
"""How fast the first checkpoint is expected to be written."""


class Keeper:
    """Writes the checkpoints of a run; all `ranks` call its methods together.

    `read_state` gives what this rank saves. With `is_timed` the clock decides, else a best
    validation is always saved. `num_bytes` is the size of a checkpoint.
    """

    def __init__(
        self,
        saver: Saver,
        read_state: Callable[[], TrainState],
        clock: Clock,
        ranks: Ranks,
        *,
        is_timed: bool,
        num_bytes: int,
    ) -> None:
        self._saver, self._read_state = saver, read_state
        self._clock, self._ranks, self._is_timed = clock, ranks, is_timed
        self._guess_s = num_bytes / GUESSED_BYTES_PER_S
        self._last_s = clock.elapsed()
        self._best: TrainState | None = None

    def save(self, log: RunLog, step: int, best_step: int | None) -> None:
        """Write the checkpoint of this `step`, and before it that of the best validation.

        Of `best_step` the checkpoint stays. A step that was saved already is not saved again.
        """
        with self._clock.measure("save"):
            kept, self._best = self._best, None
            if kept is not None and kept.progress.step == best_step:
                self._saver.save(kept, log, best_step)
            if step != self._saver.saved_step:
                self._saver.save(self._read_state(), log, best_step)
        self._last_s = self._clock.elapsed()

    def keep_best(self, log: RunLog, best_step: int) -> None:
        """This step has the best validation until now: save it, or keep it in memory."""
        if not self._is_timed or broadcast_object(self._ranks, self._is_affordable()):
            self.save(log, best_step, best_step)
            return
        with self._clock.measure(COPY):
            self._best = _copy_of(self._read_state())

    def save_best(self, log: RunLog) -> None:
        """Write the best validation that is kept in memory, because the run ends in an error."""
        kept, self._best = self._best, None
        if kept is not None:
            self._saver.save(kept, log, kept.progress.step)

    def is_due(self) -> bool:
        """Whether the last checkpoint is so long ago that one should be written now."""
        is_old = self._clock.elapsed() - self._last_s >= INTERVAL_S
        return self._is_timed and is_old and self._is_affordable()

    def _is_affordable(self) -> bool:
        """Whether one more checkpoint keeps saving within its share of the time."""
        next_s = self._clock.mean("save") or self._guess_s
        return self._clock.total("save") + next_s <= SHARE * self._clock.elapsed()


def _copy_of(state: TrainState) -> TrainState:
    """The state with arrays of its own: on a CPU those of a state are the trainer's."""
    arrays = (state.params, state.m, state.v, state.master)
    params, m, v, master = (None if array is None else np.array(array) for array in arrays)
    return TrainState(state.progress, params, m, v, master, state.zero_shard)
