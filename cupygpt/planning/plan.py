"""From flags to the parts of a run: model, device, memory, length, schedule.

Here everything that the flags leave open is chosen, and everything is checked against everything
before memory of the device is allocated. startup_table.py shows the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cupygpt.config import GPTConfig
from cupygpt.data.loader import Position, TrainLoader
from cupygpt.data.row_order import COMPUTED, LISTED, order_bytes
from cupygpt.data.token_files import check_ids, num_tokens
from cupygpt.data.validation import ValidationBatches, ValidationRows
from cupygpt.device.choose import DeviceChoice
from cupygpt.device.cpu_threads import num_cores
from cupygpt.device.device import Device
from cupygpt.device.precision import (
    PRECISIONS,
    Precision,
    check_precision,
    default_precision,
    supports_precision,
)
from cupygpt.distributed.rank_device import free_memory
from cupygpt.distributed.ranks import Ranks
from cupygpt.errors import ConfigError, DataError
from cupygpt.flags.config import TrainConfig, flags_of
from cupygpt.flags.llmc import ONE_EPOCH
from cupygpt.model.memory_plan import RunShape, check_fits, fits, shape_of_run
from cupygpt.planning.choose_model import ModelChoice
from cupygpt.planning.defaults import length_settings, settle
from cupygpt.planning.open_data import Data
from cupygpt.planning.schedule import Schedule

CPU_FLOPS_PER_CORE = 3e10
GPU_SHARE_OF_PEAK = 0.3
UNKNOWN_GPU_FLOPS = 5e12
"""Usual speeds of training."""

VALIDATION_SHARE, FEWEST_VALIDATION_TOKENS, MOST_VALIDATION_TOKENS = 0.05, 2**13, 2**17
"""Without -m a validation reads this share of what the run trains on, between these bounds."""


@dataclass(frozen=True)
class Plan:
    """All numbers of a run, nothing left to choose.

    `asked` is the config before what depends on the number of steps was chosen. `steps_are_fixed`
    is False as long as a run of so many minutes measures how many fit. The run begins, or goes on,
    at `first_step`, after `tokens_before`: its steps may have had another size before. `fine_tunes`
    says that what is open is chosen for a trained model; of its positions the first
    `trained_length` are trained, here or before.
    """

    config: TrainConfig
    asked: TrainConfig
    device: Device
    device_reason: str
    precision_reason: str
    shape: RunShape
    accumulation: int
    length_reason: str
    rows_per_epoch: int
    row_order: str
    train_tokens: int
    validation: ValidationRows | None
    runtime_bytes: int
    world: int = 1
    peak_flops: float | None = None
    device_warning: str | None = None
    steps: int = 0
    steps_are_fixed: bool = True
    extensions: tuple[int, ...] = ()
    first_step: int = 0
    tokens_before: int = 0
    fine_tunes: bool = False
    trained_length: int = 0

    @property
    def schedule(self) -> Schedule:
        """The learning rate of each step."""
        config = self.config
        return Schedule(
            config.schedule,
            config.learning_rate,
            config.warmup,
            self.steps - sum(self.extensions),
            config.final_fraction,
            self.extensions,
        )

    @property
    def minutes(self) -> float:
        """The length of a run of so many minutes."""
        assert self.config.minutes is not None
        return self.config.minutes

    @property
    def flops_per_step(self) -> int:
        """Operations of one optimizer step (llm.c's estimate)."""
        return self.tokens_per_step * self.shape.config.flops_per_token(self.shape.T)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, of all ranks together."""
        return self.shape.B * self.shape.T * self.accumulation * self.world

    def tokens_at(self, step: int) -> int:
        """The tokens that the run has trained on when it stands at `step`, not before the first."""
        return self.tokens_before + (step - self.first_step) * self.tokens_per_step

    def with_steps(self, steps: int) -> "Plan":
        """The plan of a run of so many steps; what was chosen by their number is chosen again.

        Dropout stays, because the trainer was made with it.
        """
        asked = replace(self.asked, dropout=self.config.dropout)
        config = settle(
            asked,
            self.shape.config,
            steps=steps,
            step_tokens=self.tokens_per_step,
            train_tokens=self.train_tokens,
            val_tokens=self.validation.num_tokens if self.validation else 0,
            fine_tunes=self.fine_tunes,
        )
        return replace(self, config=config, steps=steps)


def make_plan(
    chosen: ModelChoice,
    data: Data,
    choice: DeviceChoice,
    ranks: Ranks,
    record: Mapping[str, Any] | None = None,
) -> Plan:
    """Check everything against everything, and choose what was left open; all `ranks` call.

    `record` is that of a resumed run, which continues in its precision where it can, with its
    order of rows, its number of steps and its rows of validation.
    """
    config, model = chosen.config, chosen.model
    check_ids(data.train, model.V)
    check_ids(data.val, model.V)
    device, begun_in = choice.device, record.get("precision") if record else None
    _check_device_flags(config, device)
    precision, precision_reason = _precision(config, device, begun_in)
    free, sharing = free_memory(device, ranks)  # before anything is allocated there
    if chosen.batch_is_open:
        config = _shrink_batch(config, model, precision, device, ranks.world, free)
    shape = _run_shape(config, model, precision, device, ranks.world)
    accumulation = _accumulation(config, shape.B, shape.T, ranks.world)
    order = COMPUTED if record is None else record.get("row_order", LISTED)
    rows = _rows_per_epoch(config, shape, data, ranks.world)
    if not device.is_gpu and not config.no_shuffle:
        shape = replace(shape, row_order_bytes=order_bytes(order, rows))
    check_fits(shape, free, sharing)
    tokens, reason = num_tokens(data.train), ""
    if record is None and (chosen.loaded is None or chosen.fine_tunes):
        config, reason = length_settings(
            config, model, tokens, on_gpu=device.is_gpu, fine_tunes=chosen.fine_tunes
        )
    plan = Plan(
        config=config,
        asked=config,
        device=device,
        device_reason=choice.reason,
        device_warning=choice.warning,
        precision_reason=precision_reason,
        shape=shape,
        accumulation=accumulation,
        length_reason=reason,
        rows_per_epoch=rows,
        row_order=order,
        train_tokens=tokens,
        validation=None,
        runtime_bytes=device.used_bytes() or 0,
        world=ranks.world,
        peak_flops=_peak_flops(device, precision, ranks.world),
        fine_tunes=chosen.fine_tunes,
        trained_length=max(shape.T, (record or {}).get("trained_length") or chosen.trained_length),
    )
    steps = _steps(plan, record)
    is_fixed = config.minutes is None or bool((record or {}).get("steps"))
    validation = _validation_rows(plan, data, steps * plan.tokens_per_step, record)
    plan = replace(plan, validation=validation, steps_are_fixed=is_fixed).with_steps(steps)
    extensions = tuple((record or {}).get("extensions", ()))
    return replace(plan, steps=plan.steps + sum(extensions), extensions=extensions)


def _steps(plan: Plan, record: Mapping[str, Any] | None) -> int:
    """The steps of the run; of a run of so many minutes those recorded, or a first guess."""
    config = plan.config
    if config.minutes is not None:
        recorded = (record or {}).get("steps")
        return recorded or _guess_steps(config.minutes, plan.flops_per_step, plan.device)
    if config.steps == ONE_EPOCH:
        return _steps_of_llmc(plan.train_tokens, plan.tokens_per_step)
    return config.steps or _steps_of_epochs(
        config.epochs or 1.0, plan.rows_per_epoch, plan.tokens_per_step // plan.shape.T
    )


def _rows_per_epoch(config: TrainConfig, shape: RunShape, data: Data, world: int) -> int:
    loader = TrainLoader(
        data.train,
        shape.B,
        shape.T,
        shape.config.V,
        seed=config.seed,
        shuffle=not config.no_shuffle,
        num_ranks=world,
    )
    return loader.rows_per_epoch(0)


def train_loader(plan: Plan, data: Data, position: Position, rank: int) -> TrainLoader:
    """The training batches of one rank from `position` on."""
    shape = plan.shape
    return TrainLoader(
        data.train,
        shape.B,
        shape.T,
        shape.config.V,
        seed=plan.config.seed,
        shuffle=not plan.config.no_shuffle,
        order=plan.row_order,
        rank=rank,
        num_ranks=plan.world,
        position=position,
    )


def validation_batches(plan: Plan, rank: int) -> ValidationBatches | None:
    """This rank's part of every validation of the run."""
    if plan.validation is None:
        return None
    shape = plan.shape
    return ValidationBatches(
        plan.validation, shape.B, shape.config.V, rank=rank, num_ranks=plan.world
    )


def _validation_rows(
    plan: Plan, data: Data, run_tokens: int, record: Mapping[str, Any] | None
) -> ValidationRows | None:
    """The rows that a run on so many tokens validates on: those recorded, if it is resumed."""
    config, T = plan.config, plan.shape.T
    if not data.val:
        return None
    recorded = (record or {}).get("validation")
    if recorded is not None:
        return ValidationRows(data.val, T, recorded["rows"], evenly=recorded["evenly"])
    if config.val_batches is None:
        share = int(VALIDATION_SHARE * run_tokens)
        tokens = min(max(share, FEWEST_VALIDATION_TOKENS), MOST_VALIDATION_TOKENS)
        return ValidationRows(data.val, T, max(1, tokens // T), evenly=True)
    # -m counts batches of -b rows as they were when the run began.
    began_with = record["config"]["batch_size"] if record else config.batch_size
    count = None if config.val_batches == -1 else config.val_batches * began_with
    return ValidationRows(data.val, T, count, evenly=False)


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


def _shrink_batch(
    config: TrainConfig,
    model: GPTConfig,
    precision: Precision,
    device: Device,
    world: int,
    free: int | None,
) -> TrainConfig:
    """A smaller batch where the chosen one does not fit; more of them make the same step."""
    B = config.batch_size
    assert config.seq_len is not None
    step_tokens = config.total_batch or B * config.seq_len * world
    while B % 2 == 0:
        shape = _run_shape(replace(config, batch_size=B), model, precision, device, world)
        if fits(shape, free):
            break
        B //= 2
    if config.batch_size == B:
        return config
    return replace(config, batch_size=B, total_batch=step_tokens)


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


def _guess_steps(minutes: float, flops_per_step: int, device: Device) -> int:
    """A guess before anything was measured, from the usual speed of such a device."""
    if device.is_gpu:
        peak = device.peak_flops("bf16")
        flops = GPU_SHARE_OF_PEAK * peak if peak else UNKNOWN_GPU_FLOPS
    else:
        flops = CPU_FLOPS_PER_CORE * num_cores()
    return max(1, int(60 * minutes * flops / flops_per_step))


def _steps_of_epochs(epochs: float, rows: int, rows_per_step: int) -> int:
    steps = int(epochs * rows / rows_per_step)
    if steps < 1:
        raise DataError(
            f"{epochs:g} epochs of {rows:,} rows are less than one step of {rows_per_step} rows. "
            f"Use a smaller -b or -d, more data, or set the steps with -n."
        )
    return steps


def _steps_of_llmc(train_tokens: int, tokens_per_step: int) -> int:
    """One epoch as llm.c counts it, by all tokens: its scripts wait for the file DONE_SSSSSSSS."""
    if train_tokens < tokens_per_step:
        raise DataError(
            f"one epoch of {train_tokens:,} tokens is less than one step of {tokens_per_step:,}. "
            f"Use a smaller -b or -d, more data, or set the steps with -x."
        )
    return train_tokens // tokens_per_step


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
