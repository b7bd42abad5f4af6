"""The console's opening table: what runs where on what, and why."""

from collections.abc import Sequence
from pathlib import Path

from cupygpt.console.figures import format_bytes
from cupygpt.data.token_files import TokenShard
from cupygpt.flags.config import labelled_values
from cupygpt.model.memory_plan import RunShape, memory_plan
from cupygpt.planning.defaults import fine_tuning_share
from cupygpt.planning.open_data import Data
from cupygpt.planning.plan import Plan
from cupygpt.planning.schedule import Schedule


def header_rows(
    plan: Plan, data: Data, origin: str, folder: Path, notes: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """(name, text) of each row; `origin` says where the weights come from.

    `notes` are sentences about the weights.
    """
    precision = f"{plan.shape.precision.name}: {plan.precision_reason}"
    train_data = f"{_describe_shards(data.train)}, {plan.rows_per_epoch:,} rows an epoch"
    return [
        ("device", f"{plan.device.describe()}: {plan.device_reason}"),
        ("model", f"{plan.shape.config.describe()}; {origin}"),
        ("train data", train_data),
        ("validation", _describe_validation(plan, data)),
        ("tokenizer", data.tokenizer.name if data.tokenizer else "unknown"),
        ("batch", _describe_batch(plan)),
        ("length", _describe_length(plan)),
        ("optimizer", _describe_optimizer(plan)),
        ("precision", precision),
        ("memory", _describe_memory(plan)),
        ("run folder", str(folder)),
        *(("note", note) for note in (*notes, *data.notes, *_without_effect(plan))),
    ]


def _describe_validation(plan: Plan, data: Data) -> str:
    rows = plan.validation
    if rows is None:
        return "none (pass -j)"
    all_rows = rows.cut.num_rows
    which = "all" if rows.num_rows == all_rows else "spread" if rows.evenly else "the first"
    return f"{_describe_shards(data.val)}; {rows.num_rows:,} rows ({which} of {all_rows:,})"


def _without_effect(plan: Plan) -> list[str]:
    """Flags that cannot do in this run what they are for, a sentence each."""
    config, schedule, notes = plan.config, plan.schedule, []
    maxT, trained = plan.shape.config.maxT, plan.trained_length
    if maxT > trained:
        notes.append(
            f"the model has {maxT} positions, of which {trained} are trained (-t); sample uses "
            f"{trained}"
        )
    if plan.extensions:
        notes.append(_describe_extension(plan))
    if schedule.kind != "constant" and schedule.warmup > plan.steps:
        notes.append(
            f"the warm-up (-u {schedule.warmup}) is longer than the run's {plan.steps:,} steps: "
            f"the learning rate ends at {schedule(plan.steps - 1):.3g}, below {schedule.peak:g}"
        )
    if config.zero_stage and plan.world == 1:
        notes.append(
            f"-z {config.zero_stage} shares nothing out, because this run has one GPU (--gpus N)"
        )
    return notes


def _describe_batch(plan: Plan) -> str:
    batch = f"{plan.shape.B} × {plan.shape.T} tokens × {plan.accumulation}"
    if plan.world > 1:
        batch += f" × {plan.world} ranks"
    return f"{batch} = {plan.tokens_per_step:,} tokens a step"


def _describe_length(plan: Plan) -> str:
    if not plan.steps_are_fixed:
        reason = plan.length_reason or f"{plan.minutes:g} minutes"
        return f"{reason}; the first steps are timed"
    if plan.length_reason:
        return f"{plan.steps:,} steps, {plan.length_reason}"
    epochs = plan.tokens_at(plan.steps) / plan.train_tokens
    return f"{plan.steps:,} steps, {epochs:.3g} epochs"


def _describe_optimizer(plan: Plan) -> str:
    is_open = not plan.steps_are_fixed and _was_open(plan, "warmup")
    warmup = "a tenth of the steps as warm-up" if is_open else None
    text = ", ".join(["AdamW", describe_lr(plan.schedule, warmup), *labelled_values(plan.config)])
    return text + _why_fine_tuning(plan)


def _why_fine_tuning(plan: Plan) -> str:
    """Why the learning rate and dropout of fine-tuning are what they are, if no flag set them."""
    reasons = []
    if plan.fine_tunes and _was_open(plan, "learning_rate"):
        share = round(1 / fine_tuning_share(plan.shape.config.num_parameters))
        reasons.append(f"to fine-tune, 1/{share} of the rate that a new model gets")
    if plan.fine_tunes and _was_open(plan, "dropout") and plan.config.dropout:
        reasons.append("dropout because the model has more parameters than the text has tokens")
    return "; " + ", ".join(reasons) if reasons else ""


def _was_open(plan: Plan, name: str) -> bool:
    return getattr(plan.asked, name) is None


def describe_lr(schedule: Schedule, warmup: str | None = None) -> str:
    """The course of the learning rate, without the parts that it does not have.

    `warmup` describes a warm-up whose number of steps is still open.
    """
    decays = schedule.kind != "constant" and schedule.final_fraction != 1.0
    lr = f"learning rate {schedule.peak:g}"
    if schedule.kind != "constant" and schedule.warmup:
        lr += f" after {warmup or f'{schedule.warmup} warm-up steps'}"
    if decays:
        return f"{lr}, {schedule.kind} to {schedule.peak * schedule.final_fraction:g}"
    return f"{lr}, constant"


def _describe_memory(plan: Plan) -> str:
    memory = {"runtime": plan.runtime_bytes} if plan.runtime_bytes else {}
    memory |= memory_plan(plan.shape)
    uses = ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.items())
    where = " on each rank" if plan.world > 1 else ""
    total = format_bytes(sum(memory.values()))
    return f"{total} planned{where}: {uses}{_logits_note(plan.shape)}"


def _logits_note(shape: RunShape) -> str:
    """What is saved because the logits exist only in chunks."""
    rows, chunk = shape.B * shape.T, shape.logits_rows
    if chunk == rows:
        return ""
    row_bytes = shape.config.Vp * shape.dtypes["floatX"].itemsize
    return (
        f"; logits in {-(-rows // chunk)} chunks take {format_bytes(chunk * row_bytes)} "
        f"instead of {format_bytes(rows * row_bytes)}"
    )


def _describe_shards(shards: Sequence[TokenShard]) -> str:
    tokens = sum(shard.num_tokens for shard in shards)
    name = shards[0].path.name if len(shards) == 1 else f"{len(shards)} files"
    return f"{name}, {tokens:,} tokens"


def _describe_extension(plan: Plan) -> str:
    """How long the run has become, and the learning rate of the last extension."""
    *_, length = plan.extensions
    start, course = plan.steps - length, plan.schedule.extension(length)
    text = f"the run was extended by {length:,} steps from step {start:,} to {plan.steps:,}: "
    if course.final_fraction == 1.0:
        return text + f"the learning rate stays {course.peak:g}"
    return text + (
        f"the learning rate rises in {course.warmup} steps from {plan.schedule.last:.3g} to "
        f"{course.peak:.3g}, and falls again ({course.kind}) to {plan.schedule.last:.3g}"
    )
