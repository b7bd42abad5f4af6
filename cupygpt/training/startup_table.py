"""The console's opening table: what runs where on what, and why."""

from collections.abc import Sequence
from pathlib import Path

from cupygpt.console import format_bytes
from cupygpt.data.token_files import TokenShard
from cupygpt.model.memory_plan import RunShape, memory_plan
from cupygpt.training.plan import Data, Plan


def header_rows(plan: Plan, data: Data, origin: str, folder: Path) -> list[tuple[str, str]]:
    """(name, text) of each row; `origin` says where the weights come from."""
    config, model = plan.config, plan.shape.config
    memory = {"runtime": plan.base_bytes} if plan.base_bytes else {}
    memory |= memory_plan(plan.shape)
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.items())
    schedule = plan.schedule
    rate = f"{schedule.kind} from {schedule.peak:g}"
    if schedule.kind != "constant":
        rate += f", warm-up {schedule.warmup}, to {schedule.peak * schedule.final_fraction:g}"
    batch = f"{plan.shape.B} × {plan.shape.T} tokens × {plan.accumulation}"
    where = ""
    if plan.world > 1:
        batch += f" × {plan.world} ranks"
        where = " on each rank"
    rows = [
        ("device", f"{plan.device.describe()}: {plan.device_reason}"),
        ("model", f"{model.describe()}; {origin}"),
        ("train data", _describe_shards(data.train) + f", {plan.rows_per_epoch:,} rows an epoch"),
        ("validation", _describe_shards(data.val) if data.val else "none (pass -j)"),
        ("tokenizer", data.tokenizer.name if data.tokenizer else "unknown"),
        ("batch", f"{batch} = {plan.tokens_per_step:,} tokens a step, {plan.steps:,} steps"),
        ("optimizer", f"AdamW, learning rate {rate}, weight decay {config.weight_decay:g}, "
                      f"clip {config.grad_clip:g}, dropout {config.dropout:g}"),
        ("precision", f"{plan.shape.precision.name}: {plan.precision_reason}"),
        ("memory", f"{format_bytes(sum(memory.values()))} planned{where}: {parts}{_head_note(plan.shape)}"),
        ("run folder", str(folder)),
    ]  # fmt: skip
    rows += [("note", note) for note in data.notes]
    return rows


def _head_note(shape: RunShape) -> str:
    """What it saves that the logits exist in chunks only."""
    rows, chunk = shape.B * shape.T, shape.head_rows
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
