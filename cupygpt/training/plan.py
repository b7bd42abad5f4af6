"""From flags to the parts of a run: model, device, memory, length, schedule.

Here everything that the flags leave open is chosen, and everything is checked against everything
before memory of the device is allocated. startup_table.py shows the result.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from cupygpt.checkpoint.model_file import ModelFile, load_model
from cupygpt.config import GPTConfig, config_from_descriptor, small_config
from cupygpt.data.loader import START, Position, TrainLoader
from cupygpt.data.rows import order_bytes
from cupygpt.data.token_files import check_ids
from cupygpt.data.validation import ValidationBatches
from cupygpt.device.device import Device
from cupygpt.device.precision import (
    PRECISIONS,
    Precision,
    check_precision,
    default_precision,
    supports_precision,
)
from cupygpt.distributed.rank_device import choose_rank_device, free_memory
from cupygpt.distributed.ranks import Ranks
from cupygpt.errors import ConfigError, DataError
from cupygpt.flags.config import TrainConfig, flags_of
from cupygpt.flags.llmc import ONE_EPOCH
from cupygpt.model.memory_plan import RunShape, check_fits, shape_of_run
from cupygpt.training.open_data import Data, vocabulary
from cupygpt.training.schedule import Schedule

DEMO_SHAPE = {"maxT": 64, "L": 4, "NH": 4, "C": 64}
"""Sized for the tokens that two cores process in a minute."""


@dataclass(frozen=True)
class Plan:
    """All numbers of a run, nothing left to choose."""

    config: TrainConfig
    device: Device
    device_reason: str
    precision_reason: str
    shape: RunShape
    accumulation: int
    schedule: Schedule
    steps: int
    rows_per_epoch: int
    runtime_bytes: int
    world: int = 1
    peak_flops: float | None = None
    device_warning: str | None = None

    @property
    def flops_per_step(self) -> int:
        """Operations of one optimizer step (llm.c's estimate)."""
        return self.tokens_per_step * self.shape.config.flops_per_token(self.shape.T)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, of all ranks together."""
        return self.shape.B * self.shape.T * self.accumulation * self.world


def choose_model(config: TrainConfig, data: Data) -> tuple[GPTConfig, ModelFile | None, str]:
    """The model's shape, its file if it has one, and a line about where it comes from."""
    name = config.model
    if name is not None and name.endswith(".bin"):
        loaded = load_model(Path(name))
        return loaded.config, loaded, f"weights from {name}"
    V = vocabulary(config, data)
    if name is None and config.is_demo:
        demo = GPTConfig(V=V, **DEMO_SHAPE)
        return demo, None, f"the demo's, new weights (seed {config.seed})"
    if name is not None and name != "small":
        shape = config_from_descriptor(name, V=V)
        return shape, None, f"{name}, new weights (seed {config.seed})"
    maxT = max(256, config.seq_len or 0)
    return small_config(V, maxT), None, f"small, new weights (seed {config.seed})"


def make_plan(
    config: TrainConfig,
    model: GPTConfig,
    data: Data,
    ranks: Ranks,
    begun_in: str | None = None,
) -> Plan:
    """Check everything against everything, and choose what was left open; all `ranks` call.

    `begun_in` is the precision in which a resumed run began: it continues in it where it can.
    """
    check_ids(data.train, model.V)
    check_ids(data.val, model.V)
    choice = choose_rank_device(config.device, ranks)
    _check_device_flags(config, choice.device)
    precision, precision_reason = _precision(config, choice.device, begun_in)
    shape = _run_shape(config, model, precision, choice.device, ranks.world)
    accumulation = _accumulation(config, shape.B, shape.T, ranks.world)
    rows = _rows_per_epoch(config, shape, data, ranks.world)
    rows_per_step = shape.B * accumulation * ranks.world
    if config.steps == ONE_EPOCH:
        steps = _steps_of_llmc(data, shape.T * rows_per_step)
    else:
        steps = config.steps or _steps_of_epochs(config.epochs or 1.0, rows, rows_per_step)
    if not choice.device.is_gpu and not config.no_shuffle:
        shape = replace(shape, row_order_bytes=order_bytes(rows))
    check_fits(shape, *free_memory(choice.device, ranks))  # before anything is allocated there
    return Plan(
        config=config,
        device=choice.device,
        device_reason=choice.reason,
        device_warning=choice.warning,
        precision_reason=precision_reason,
        shape=shape,
        accumulation=accumulation,
        schedule=_schedule(config, steps),
        steps=steps,
        rows_per_epoch=rows,
        runtime_bytes=choice.device.used_bytes() or 0,
        world=ranks.world,
        peak_flops=_peak_flops(choice.device, precision, ranks.world),
    )


def _rows_per_epoch(config: TrainConfig, shape: RunShape, data: Data, world: int) -> int:
    loader = train_loader(config, shape, data, rank=0, world=world, position=START)
    return loader.rows_per_epoch(0)


def train_loader(
    config: TrainConfig,
    shape: RunShape,
    data: Data,
    *,
    rank: int,
    world: int,
    position: Position,
) -> TrainLoader:
    """The training batches of one rank from `position` on."""
    return TrainLoader(
        data.train,
        shape.B,
        shape.T,
        shape.config.V,
        seed=config.seed,
        shuffle=not config.no_shuffle,
        rank=rank,
        num_ranks=world,
        position=position,
    )


def validation_batches(plan: Plan, data: Data, rank: int) -> ValidationBatches | None:
    """This rank's rows of every validation of the run."""
    if not data.val:
        return None
    most = None if plan.config.val_batches == -1 else plan.config.val_batches
    shape = plan.shape
    return ValidationBatches(
        data.val,
        shape.B,
        shape.T,
        shape.config.V,
        max_batches=most,
        rank=rank,
        num_ranks=plan.world,
    )


def _run_shape(
    config: TrainConfig, model: GPTConfig, precision: Precision, device: Device, world: int
) -> RunShape:
    B, T = config.batch_size, config.seq_len or model.maxT
    if model.maxT < T:
        raise ConfigError(
            f"{flags_of('seq_len')} is {T}, but the model was made for at most {model.maxT} "
            f"positions. Use -t {model.maxT} or less, or another model."
        )
    return shape_of_run(
        model,
        B,
        T,
        precision,
        on_gpu=device.is_gpu,
        recompute=config.recompute,
        master_weights=bool(config.master_weights),
        zero_shards=world if config.zero_stage else 1,
    )


def _accumulation(config: TrainConfig, B: int, T: int, world: int) -> int:
    at_once = B * T * world
    total = config.total_batch or at_once
    if total % at_once:
        product = f"{B} × {T}" + (f" × {world} ranks" if world > 1 else "")
        below, above = total // at_once * at_once, -(-total // at_once) * at_once
        nearest = f"{below} and {above}" if below else f"{above}"
        raise ConfigError(
            f"{flags_of('total_batch')} is {total} tokens, not a multiple of {product} = "
            f"{at_once}. Nearest that work: {nearest}."
        )
    return total // at_once


def _steps_of_epochs(epochs: float, rows: int, rows_per_step: int) -> int:
    steps = int(epochs * rows / rows_per_step)
    if steps < 1:
        raise DataError(
            f"{epochs:g} epochs of {rows:,} rows are less than one step of {rows_per_step} rows. "
            f"Use a smaller -b or -d, more data, or set the steps with -n."
        )
    return steps


def _steps_of_llmc(data: Data, tokens_per_step: int) -> int:
    """One epoch as llm.c counts it, by all tokens: its scripts wait for the file DONE_SSSSSSSS."""
    tokens = sum(shard.num_tokens for shard in data.train)
    if tokens < tokens_per_step:
        raise DataError(
            f"one epoch of {tokens:,} tokens is less than one step of {tokens_per_step:,}. Use a "
            f"smaller -b or -d, more data, or set the steps with -x."
        )
    return tokens // tokens_per_step


def _schedule(config: TrainConfig, steps: int) -> Schedule:
    return Schedule(
        config.schedule, config.learning_rate, config.warmup, steps, config.final_fraction
    )


def _check_device_flags(config: TrainConfig, device: Device) -> None:
    """Raise ConfigError for flags that this device cannot honour."""
    if config.no_graph and not device.is_gpu:
        raise ConfigError("--no-graph needs a CUDA device; the CPU has no graphs to leave out.")


def _peak_flops(device: Device, precision: Precision, world: int) -> float | None:
    """Operations per second that `world` such devices could reach, where that is known."""
    peak = device.peak_flops(precision.name)
    return None if peak is None else peak * world


def _precision(config: TrainConfig, device: Device, begun_in: str | None) -> tuple[Precision, str]:
    """The precision of the run, and why."""
    if config.precision != "auto":
        precision, reason = PRECISIONS[config.precision], "asked for with --precision"
        check_precision(device, precision)
    elif begun_in is not None and supports_precision(device, PRECISIONS[begun_in]):
        precision, reason = PRECISIONS[begun_in], "as the run began"
    else:
        precision, reason = default_precision(device)
        if begun_in is not None:
            reason += f"; the run began in {begun_in}, which this device cannot do"
    if precision.rounds_storage:
        reason += ", float32 master weights" if config.master_weights else ", no master weights"
    elif not config.master_weights:
        raise ConfigError(
            f"-w 0 leaves out the float32 copy of bfloat16 weights, but this run is in "
            f"{precision.name}."
        )
    return precision, reason
