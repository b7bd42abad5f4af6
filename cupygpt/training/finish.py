"""The end of a run on the console: what came of it, and what to do next."""

import math

from cupygpt.checkpoint.checkpoint import best_step
from cupygpt.console.paste import shell_command
from cupygpt.data.loader import START
from cupygpt.training.keeper import COPY
from cupygpt.training.loop import READER_GONE, Run
from cupygpt.training.verdict import Outcome, verdict

TRAIN, SAMPLE = ["python", "-m", "cupygpt.train"], ["python", "-m", "cupygpt.sample"]
PAUSES = ("validation", "questions", "sample", "save", COPY)
"""What a run does between its steps, as its clock counts it."""

OWN_TEXT = (
    "python -m cupygpt.prepare mytext.txt --tokenizer bytes",
    "python -m cupygpt.train -i mytext_train.bin -j mytext_val.bin",
)
"""README's commands for a text of one's own."""


def closing_lines(run: Run) -> list[str]:
    """The verdict on the run, and the commands that come next."""
    progress, plan, folder = run.progress, run.plan, run.folder
    lines = verdict(outcome_of(run))
    if run.stopped_by and progress.step < plan.steps:
        command = [*TRAIN, "--resume", folder]
        command += ["--gpus", plan.world] if plan.world > 1 else []
        why = " (nobody reads the output any more)" if run.stopped_by == READER_GONE else ""
        lines.append(f"stopped by {run.stopped_by}{why}; continue:  {shell_command(command)}")
    sampled = best_step(folder)
    best = f" (from the best weights, step {sampled:,})" if sampled != progress.step else ""
    lines.append(f"write text{best}:  {shell_command([*SAMPLE, folder])}")
    if plan.config.is_demo:
        lines += ["your own text:", *(f"    {command}" for command in OWN_TEXT)]
    return lines


def outcome_of(run: Run) -> Outcome:
    """What is known at the end of a run."""
    progress, plan, validator = run.progress, run.plan, run.validator
    position = progress.position or START
    is_validated = validator.is_there and math.isfinite(progress.best_loss)
    return Outcome(
        step=progress.step,
        steps=plan.steps,
        seconds=run.console.elapsed_s(),
        epochs=position.epoch + position.rows / plan.rows_per_epoch,
        tokens_per_parameter=plan.tokens_at(progress.step) / plan.shape.config.num_parameters,
        dropout=plan.config.dropout,
        bits_per_byte=validator.bits_per_byte(progress.best_loss) if is_validated else None,
        best=(progress.best_step, progress.best_loss) if is_validated else None,
        validations=validator.history,
        baselines=validator.baselines,
        minutes=plan.config.minutes,
        reference=validator.reference,
        ran_out_of_patience=run.ran_out_of_patience,
        fine_tunes=plan.fine_tunes,
        pauses=sum(map(run.clock.total, PAUSES)) / max(run.console.elapsed_s(), 1e-9),
    )
