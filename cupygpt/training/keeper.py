"""The checkpoints that a run writes: when one is worth its time, what stays, and how to go on.

Where no flag says how often to save, saving may take 2 % of the time. A checkpoint is due at each
new best validation, and ten minutes after the last one, if it can be afforded. The weights of a
best validation that cannot be are kept in main memory, and written with the next checkpoint: the
last one at the latest.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cupygpt.checkpoint.checkpoint import checkpoint_steps, prune_checkpoints, save_checkpoint
from cupygpt.checkpoint.state_file import TrainState
from cupygpt.config import GPTConfig
from cupygpt.console.console import Console
from cupygpt.console.paste import shell_word
from cupygpt.distributed.ranks import Ranks, broadcast_object
from cupygpt.errors import RunError
from cupygpt.files import is_full
from cupygpt.model.memory_plan import checkpoint_bytes
from cupygpt.planning.plan import Plan
from cupygpt.run_folder.log import RunLog
from cupygpt.training.clock import Clock

SHARE = 0.02
INTERVAL_S = 600.0

COPY = "copy"
"""What the clock calls the copy of a best validation's weights."""

GUESSED_BYTES_PER_S = 5e8
"""How fast the first checkpoint is expected to be written."""


class Saver:
    """Writes the checkpoints of one run into its folder; all `ranks` call `save` together.

    The newest `keep` stay (0: all), and those of steps that are multiples of `keep_every`.
    `saved_step` is the step that was saved last, or that the run was resumed from; None at first.
    """

    def __init__(
        self,
        folder: Path,
        model: GPTConfig,
        ranks: Ranks,
        console: Console,
        *,
        keep: int,
        keep_every: int,
        saved_step: int | None,
    ) -> None:
        self.folder, self.saved_step = folder, saved_step
        self._keep, self._keep_every = keep, keep_every
        self._model, self._ranks, self._console = model, ranks, console

    def save(self, state: TrainState, log: RunLog, best_step: int | None) -> None:
        """Write the checkpoint of `state`, after the lines of the `log` that belong before it.

        Older ones are deleted, but that of `best_step` and those that are kept. Raises
        RunError that names the last complete checkpoint if the disk refuses.
        """
        step = state.progress.step
        log.sync()
        try:
            self._write(state, best_step)
        except RunError as error:
            failure = f"{log.failure} " if log.failure else ""
            raise RunError(f"{failure}{error} {last_checkpoint(self.folder)}") from error
        self.saved_step = step
        if self._ranks.rank != 0:
            return
        if log.failure:
            log.sync()  # an older checkpoint may have made room for its lines
        self._console.saved(step, str(self.folder))
        try:
            self._prune(self._keep, best_step)
        except RunError as error:
            self._console.warn(f"an old checkpoint stays: {error}")

    def _write(self, state: TrainState, best_step: int | None) -> None:
        """Save; where the disk is full, in the place of the checkpoint that would go next."""
        try:
            save_checkpoint(self.folder, self._model, state, ranks=self._ranks)
        except RunError as error:
            before = checkpoint_steps(self.folder)
            if not is_full(error.__cause__) or self._ranks.world > 1 or self._keep < 2:
                raise
            self._prune(self._keep - 1, best_step)
            if checkpoint_steps(self.folder) == before:
                raise
            save_checkpoint(self.folder, self._model, state)

    def _prune(self, keep: int, best_step: int | None) -> None:
        prune_checkpoints(self.folder, keep, best_step, keep_every=self._keep_every)


class Keeper:
    """Decides when the `saver` writes; all `ranks` call its methods together.

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
            # Read first: a state that has diverged ends the run, which saves the kept one then.
            state = self._read_state() if step != self._saver.saved_step else None
            kept, self._best = self._best, None
            if kept is not None and kept.progress.step == best_step:
                self._saver.save(kept, log, best_step)
            if state is not None:
                self._saver.save(state, log, best_step)
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


def keeper_of(
    plan: Plan,
    folder: Path,
    console: Console,
    ranks: Ranks,
    clock: Clock,
    read_state: Callable[[], TrainState],
    *,
    saved_step: int | None,
) -> Keeper:
    """The keeper of a run in `folder`, as its flags ask for it; `saved_step` is the Saver's."""
    config, shape = plan.config, plan.shape
    saver = Saver(
        folder,
        shape.config,
        ranks,
        console,
        keep=config.keep,
        keep_every=config.keep_every,
        saved_step=saved_step,
    )
    is_timed = config.checkpoint_every is None
    size = checkpoint_bytes(shape)
    return Keeper(saver, read_state, clock, ranks, is_timed=is_timed, num_bytes=size)


def last_checkpoint(folder: Path) -> str:
    """A sentence: from where the run can continue, and how."""
    steps = checkpoint_steps(folder)
    if not steps:
        return "No checkpoint was saved yet."
    return (
        f"The last complete checkpoint is step {steps[-1]}: "
        f"continue from it with --resume {shell_word(folder)}."
    )
