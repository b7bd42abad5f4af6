"""What a run says that has diverged: its numbers are not finite any more."""

import math
from pathlib import Path

import numpy as np

from cupygpt.checkpoint.checkpoint import best_step, checkpoint_steps, model_path
from cupygpt.checkpoint.state_file import TrainState
from cupygpt.console.paste import shell_command
from cupygpt.errors import RunError
from cupygpt.planning.open_data import Data
from cupygpt.planning.plan import Plan

MODEST_RATE = 1e-3
"""A learning rate that rarely diverges. To a run with less than three times this, a lower one is
advised."""


def diverged(what: str, plan: Plan, data: Data, folder: Path) -> RunError:
    """The error of a run whose numbers are not finite; `what` says which, and at which step.

    To resume would give the same numbers again, so the advice is a new run with a lower learning
    rate, from the best weights that there are.
    """
    rate = f"{min(MODEST_RATE, plan.config.learning_rate / 3):.1g}"
    start = f"{what}. The run stops, and no checkpoint of this state is saved."
    if not checkpoint_steps(folder):
        return RunError(
            f"{start} No checkpoint was saved yet. Start again with a lower learning rate (-l "
            f"{rate}), more warm-up (-u) or clipping (--grad-clip 1); --overwrite starts in the "
            f"same folder."
        )
    step = best_step(folder)
    command = shell_command(_new_run(plan, data, model_path(folder, step), rate))
    return RunError(
        f"{start} To resume would repeat the same numbers. Start a new run from the weights of "
        f"step {step} with a lower learning rate, and with your other flags:  {command}"
    )


def is_finite(loss: float, grad_norm: float = 0.0) -> bool:
    """Whether the result of a step or of a validation is a number."""
    return math.isfinite(loss) and math.isfinite(grad_norm)


def has_finite_moments(state: TrainState) -> bool:
    """Whether the moments that this rank saves are finite."""
    # A sum is finite only if all its terms are.
    moments = [array for array in (state.m, state.v) if array is not None]
    return all(math.isfinite(float(np.sum(array, dtype=np.float64))) for array in moments)


def _new_run(plan: Plan, data: Data, model: Path, rate: str) -> list[object]:
    config = plan.config
    words: list[object] = ["python", "-m", "cupygpt.train", "-e", model]
    words += ["-i", config.train_data or data.train[0].path]
    if data.val:
        words += ["-j", config.val_data or data.val[0].path]
    words += ["-b", plan.shape.B, "-t", plan.shape.T, "-l", rate]
    return words
