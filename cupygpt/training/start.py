"""From flags to a running loop: start a new run, or resume one, on every rank."""

import os
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cupygpt.checkpoint.checkpoint import Checkpoint, load_newest, remove_leftovers
from cupygpt.checkpoint.state_file import Progress
from cupygpt.console.console import Console
from cupygpt.console.stop_signal import StopRequest, StopSignal, ending_cleanly
from cupygpt.console.stream import say
from cupygpt.data.loader import START
from cupygpt.data.row_order import COMPUTED
from cupygpt.distributed.launcher_env import imitates_terminal
from cupygpt.distributed.rank_device import choose_rank_device
from cupygpt.distributed.ranks import (
    Ranks,
    broadcast_object,
    check_equal_on_ranks,
    join_ranks,
    rank0_first,
)
from cupygpt.errors import ConfigError
from cupygpt.flags.command_line import CommandLine
from cupygpt.flags.config import LENGTHS, TrainConfig
from cupygpt.flags.llmc import RESUME_IF_ANY, check_claims
from cupygpt.flags.model_and_data import NEWEST_RUN
from cupygpt.kernels.matmul import PRODUCTS
from cupygpt.model.init_weights import initial_parameters
from cupygpt.planning.choose_model import ModelChoice, choose_model, find_source
from cupygpt.planning.going_on import going_on
from cupygpt.planning.llmc_run import record_of_llmc
from cupygpt.planning.open_data import (
    DEMO_NAME,
    Data,
    attach_tokenizer,
    attach_tokenizer_of_run,
    copy_tokenizer_to,
    open_data,
)
from cupygpt.planning.plan import Plan, make_plan
from cupygpt.planning.startup_table import header_rows
from cupygpt.run_folder.folder import (
    check_can_be_resumed,
    find_run,
    has_checkpoint,
    is_of_llmc,
)
from cupygpt.run_folder.lock import FolderLock
from cupygpt.run_folder.log import cut_logs
from cupygpt.run_folder.new_folder import NewFolder
from cupygpt.run_folder.record import read_record, write_record, written_by
from cupygpt.training.clock import Clock
from cupygpt.training.finish import closing_lines
from cupygpt.training.loop import Run
from cupygpt.training.resume import (
    check_can_be_extended,
    check_names_are_known,
    check_names_this_run,
    check_same_files,
    check_same_model,
    data_from_first_folder,
    decisive_entries,
    extended,
    file_of_source,
    first_record,
    new_record,
    resume_warnings,
    resumed_config,
    resumed_record,
)

LAUNCHER_ECHO_S = 1.0
"""With several ranks a signal may come twice, from the terminal and from the launcher."""


@dataclass(frozen=True)
class Caller:
    """Who asks for a run, the command or a Python program: how it is shown, and what stops it.

    `starting` is entered while the run starts, and `stopping` while it trains.
    """

    console: Callable[[TrainConfig, Ranks], Console]
    starting: Callable[[], AbstractContextManager[None]]
    stopping: Callable[[Console, Ranks], AbstractContextManager[StopRequest]]


def train(line: CommandLine, signals: list[str]) -> None:
    """Run what the flags ask for; the signal that ends it early is appended to `signals`."""
    began = time.perf_counter()
    given = dict(line.given)
    config = TrainConfig(**given)
    # Not a setting of the run: it stays out of run.json.
    timeout_s = given.pop("rank_timeout", config.rank_timeout)
    with join_ranks(timeout_s, debug=config.debug) as ranks:
        check_equal_on_ranks(ranks, "flags", config.as_dict())
        check_claims(line.claims, ranks.world, ranks.rank)
        console = _console(config, ranks)
        for note in line.notes:
            console.note(f"note: {note}")
        run = train_rank(config, given, ranks, began, COMMAND)
    if run.stopped_by:
        signals.append(run.stopped_by)


def train_rank(
    config: TrainConfig,
    given: dict[str, Any],
    ranks: Ranks,
    began: float,
    caller: Caller,
) -> Run:
    """The whole run as this rank sees it; `began` is the time of the command's start."""
    clock = Clock(began)
    with ExitStack() as held:  # the lock of the run folder
        with caller.starting():
            if config.resume and _continues(config, ranks):
                run = resume_run(config.resume, config.out, given, ranks, clock, held, caller)
            else:
                run = start_run(config, ranks, clock, held, caller)
        _finish_run(run, ranks, caller)
        return run


def _finish_run(run: Run, ranks: Ranks, caller: Caller) -> None:
    """Train to the end, and say what came of it."""
    console = run.console
    try:
        baselines = run.validator.baselines
        if baselines:
            console.note(
                f"baselines on the validation rows, nats per token: unigram {baselines[0]:.4f}, "
                f"bigram {baselines[1]:.4f} (a table of how often each token occurs, alone and "
                f"after another)"
            )
        with caller.stopping(console, ranks) as stop:
            run.loop(stop)
    finally:
        run.close()
    for line in closing_lines(run):
        console.note(line)
        if console.reader_gone:
            say(line)


def _continues(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether there is a run to continue; only llm.c's `-y 1` starts one where there is none."""
    if config.resume != RESUME_IF_ANY:
        return True
    found = has_checkpoint(config.out) if ranks.rank == 0 else None
    return bool(broadcast_object(ranks, found))


def start_run(
    config: TrainConfig, ranks: Ranks, clock: Clock, held: ExitStack, caller: Caller
) -> Run:
    """A new run: its folder, data, model and weights. Rank 0 makes what the others find.

    The folder stays locked until `held` is closed.
    """
    # A run of `-y 1` that ended before its first checkpoint begins again in its folder.
    may_restart = config.resume == RESUME_IF_ANY
    config = replace(config, resume=None)
    console = caller.console(config, ranks)
    source = find_source(config, ranks)
    made = None
    if ranks.rank == 0:
        made = NewFolder(
            config.out,
            overwrite=config.overwrite,
            may_restart=may_restart,
            made_at_start=_made_at_start(config),
            keep=source.path if source else None,
        )
        _warn_of_no_lock(held.enter_context(made).lock, console)
    folder = _common_folder(ranks, made.path if made else None)
    data = rank0_first(ranks, lambda: open_data(config, folder, new=ranks.rank == 0))
    choice = choose_rank_device(config.device, ranks)
    chosen = choose_model(config, data, source, on_gpu=choice.device.is_gpu, world=ranks.world)
    loaded = chosen.loaded
    attach_tokenizer(config, chosen.model, data, source)
    plan = make_plan(chosen, data, choice, ranks)
    _show_plan(console, plan, data, chosen, folder)
    for warning in (*data.warnings, *(loaded.warnings if loaded else ())):
        console.warn(warning)
    run = Run(plan, data, folder, console, Progress(step=0, seed=config.seed), ranks, clock)
    run.measure_steps()
    weights = loaded.parameters if loaded else initial_parameters(chosen.model, config.seed)
    _check_equal_files(ranks, data, weights)
    run.trainer.load_new(weights)
    if made:
        made.claim()
        copy_tokenizer_to(folder, data)
        record = new_record(run.plan, data, source.as_record(weights) if source else None)
        write_record(folder, record, decisive_entries(record))
    run.open_log()
    return run


def resume_run(
    resume: str,
    out: str | None,
    given: dict[str, Any],
    ranks: Ranks,
    clock: Clock,
    held: ExitStack,
    caller: Caller,
) -> Run:
    """The run that --resume names, as it stood at its newest checkpoint.

    Its folder stays locked until `held` is closed.
    """
    found = find_run(resume, out, NEWEST_RUN) if ranks.rank == 0 else None
    folder = _common_folder(ranks, found)
    lock = held.enter_context(FolderLock(folder)) if ranks.rank == 0 else None
    begins_here, record = is_of_llmc(folder), _record_of_run(folder, given)
    config = resumed_config(record["config"], given, world=ranks.world, writer=written_by(record))
    if ranks.rank == 0:
        remove_leftovers(folder, keep=file_of_source(record))
    console = caller.console(config, ranks)
    _warn_of_no_lock(lock, console)
    config = data_from_first_folder(config, given, record)
    data = rank0_first(ranks, lambda: open_data(config, folder, new=False))
    checkpoint = load_newest(folder, ranks=ranks, zero_stage=config.zero_stage)
    model, state = checkpoint.config, checkpoint.state
    attach_tokenizer_of_run(
        config, model, data, folder, record["data"], is_asked_for="tokenizer" in given
    )
    if begins_here:
        record = {**record, "precision": checkpoint.precision, "row_order": COMPUTED}
    else:
        check_same_model(record["model"], asdict(model))
        check_same_files(record["data"], data.files(record["data"]))
    choice = choose_rank_device(config.device, ranks)
    if any(getattr(config, name) != record["config"].get(name) for name in LENGTHS):
        record = {**record, "steps": None, "extensions": []}  # the length that they made is gone
    chosen = _chosen_before(config, checkpoint, record)
    plan = make_plan(chosen, data, choice, ranks, record)
    plan = going_on(plan, data, state.progress, record)
    check_can_be_extended(given, plan)
    _show_plan(console, plan, data, chosen, folder)
    for warning in (
        *data.warnings,
        *checkpoint.warnings,
        *resume_warnings(record, plan, state.progress),
    ):
        console.warn(warning)
    progress = state.progress
    if begins_here:
        progress = replace(progress, seed=config.seed, position=START)
        record = first_record(record, checkpoint, plan, data, folder)
    run = Run(plan, data, folder, console, progress, ranks, clock, is_resumed=True)
    run.measure_steps()
    _check_equal_files(ranks, data, state.float32_weights())
    run.load(state)
    if ranks.rank == 0:
        missing = cut_logs(folder, progress.step)
        for lines in [] if begins_here else missing:  # llm.c wrote no metrics
            console.warn(lines)
        copy_tokenizer_to(folder, data)
        record = resumed_record(record, given, plan, data, progress)
        write_record(folder, record, decisive_entries(record))
    run.open_log()
    return run


def _chosen_before(
    config: TrainConfig, checkpoint: Checkpoint, record: dict[str, Any]
) -> ModelChoice:
    """The model of a run that goes on from a checkpoint."""
    origin = f"checkpoint of step {checkpoint.state.progress.step}"
    fine_tunes = bool((record.get("source") or {}).get("is_trained"))
    return ModelChoice(config, checkpoint.config, None, origin, fine_tunes=fine_tunes)


def _record_of_run(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that can be resumed with the `given` flags."""
    check_can_be_resumed(folder)
    record = record_of_llmc(folder, given) if is_of_llmc(folder) else read_record(folder)
    record = extended(record, given)
    check_names_are_known(record)
    check_names_this_run(given, record["config"], folder)
    return record


def _made_at_start(config: TrainConfig) -> list[str]:
    """What is written into the folder of a new run before its first step."""
    return [PRODUCTS, *([f"{DEMO_NAME}_*"] if config.is_demo else [])]


def _warn_of_no_lock(lock: FolderLock | None, console: Console) -> None:
    if lock and lock.warning:
        console.warn(lock.warning)


def _console(config: TrainConfig, ranks: Ranks) -> Console:
    """The console of rank 0; the other ranks print nowhere."""
    silent = None if ranks.rank == 0 else open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    lines = config.no_bar or imitates_terminal(os.environ)
    terminal = False if lines else None  # None: the stream knows
    return Console(silent, terminal=terminal, log_every=config.log_every)


def _stop_signal(console: Console, ranks: Ranks) -> StopSignal:
    return StopSignal(console, echo_s=LAUNCHER_ECHO_S if ranks.world > 1 else 0.0)


COMMAND = Caller(_console, ending_cleanly, _stop_signal)
"""`python -m cupygpt.train`."""


def _show_plan(console: Console, plan: Plan, data: Data, chosen: ModelChoice, folder: Path) -> None:
    console.header(header_rows(plan, data, chosen.origin, folder, chosen.notes))
    if plan.device_warning:
        console.warn(plan.device_warning)


def _common_folder(ranks: Ranks, folder: Path | None) -> Path:
    """Rank 0's run folder on all ranks. Raises ConfigError if a rank does not see it."""
    common = Path(broadcast_object(ranks, str(folder)))
    if not common.is_dir():
        raise ConfigError(
            f"the run folder {common} of rank 0 is not there: start all ranks in the same working "
            f"folder, and name a run folder (-o) that all hosts share."
        )
    return common


def _check_equal_files(ranks: Ranks, data: Data, weights: np.ndarray) -> None:
    """Raise ConfigError unless all ranks have read the same tokens and weights."""
    if ranks.world > 1:
        facts = {**data.files(), "weights": zlib.crc32(weights.data)}
        check_equal_on_ranks(ranks, "files", facts)
