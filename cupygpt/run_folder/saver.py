"""The checkpoints that a run writes: what is kept, what a full disk means, and how to go on."""

from pathlib import Path

from cupygpt.checkpoint.checkpoint import checkpoint_steps, prune_checkpoints, save_checkpoint
from cupygpt.checkpoint.state_file import TrainState
from cupygpt.config import GPTConfig
from cupygpt.console.console import Console
from cupygpt.console.paste import shell_word
from cupygpt.distributed.ranks import Ranks
from cupygpt.errors import RunError
from cupygpt.files import is_full
from cupygpt.run_folder.log import RunLog


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
            raise RunError(f"{failure}{error} {self.last_checkpoint()}") from error
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

    def last_checkpoint(self) -> str:
        """A sentence: from where the run can continue, and how."""
        steps = checkpoint_steps(self.folder)
        if not steps:
            return "No checkpoint was saved yet."
        return (
            f"The last complete checkpoint is step {steps[-1]}: "
            f"continue from it with --resume {shell_word(self.folder)}."
        )

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
