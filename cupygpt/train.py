"""python -m cupygpt.train: flags in, checkpoints and a log out."""

import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cupygpt.cli import INTERRUPTED, run_cli
from cupygpt.errors import ConfigError
from cupygpt.options import NEWEST_RUN, TrainConfig, parse_given

if TYPE_CHECKING:
    import numpy as np

    from cupygpt.build import Data
    from cupygpt.console import Console
    from cupygpt.distributed.ranks import Ranks
    from cupygpt.run import Run

TERMINATED = 143
"""Exit code after SIGTERM, as shells report it."""

LAUNCHER_ECHO_S = 1.0
"""With several ranks a signal may come twice, from the terminal and from the launcher."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 130 after Ctrl-C, 143 after SIGTERM, both saved."""
    given = parse_given(arguments)
    count = given.pop("gpus", None)
    if count is not None and not _is_rank(count):
        return _launch(sys.argv[1:] if arguments is None else arguments, given, count)
    signals: list[str] = []
    code = run_cli(lambda: train(given, signals), debug=given.get("debug", False))
    if code == 0 and signals:
        return TERMINATED if signals[0] == "SIGTERM" else INTERRUPTED
    return code


def train(given: dict[str, Any], signals: list[str]) -> None:
    """Run what the flags ask for; the signal that ends it early is appended to `signals`."""
    config = TrainConfig(**given)
    # Imported after the flags are known to be good, so that --help and typos answer at once.
    from cupygpt.distributed.ranks import join_ranks, require_same

    timeout_s = given.pop("rank_timeout", config.rank_timeout)
    with join_ranks(timeout_s, debug=config.debug) as ranks:
        require_same(ranks, "flags", config.as_dict())
        train_rank(config, given, signals, ranks)


def train_rank(
    config: TrainConfig, given: dict[str, Any], signals: list[str], ranks: "Ranks"
) -> None:
    """The whole run as this rank sees it."""
    from cupygpt import build
    from cupygpt.console import Console
    from cupygpt.distributed.environment import imitates_terminal
    from cupygpt.interrupt import StopSignal
    from cupygpt.run import closing_lines

    silent = None if ranks.rank == 0 else open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    terminal = False if imitates_terminal(os.environ) else None
    console = Console(silent, terminal=terminal, log_every=config.log_every)
    begin = resume_run if config.resume else start_run
    run = begin(config, given, console, ranks)
    levels = build.landmarks(run.data, run.plan.shape.config.V)
    if levels:
        console.note(
            f"levels to beat, nats per token: unigram {levels[0]:.4f}, bigram {levels[1]:.4f}"
        )
    try:
        with StopSignal(echo_s=LAUNCHER_ECHO_S if ranks.world > 1 else 0.0) as stop:
            run.loop(stop)
    finally:
        run.close()
    for line in closing_lines(run, levels):
        console.note(line)
    if run.stopped_by:
        signals.append(run.stopped_by)


def start_run(
    config: TrainConfig, given: dict[str, Any], console: "Console", ranks: "Ranks"
) -> "Run":
    """A new run: its folder, data, model and weights. Rank 0 makes what the others find."""
    from cupygpt import build
    from cupygpt.distributed.ranks import first_alone
    from cupygpt.header import header_rows
    from cupygpt.init import initial_parameters
    from cupygpt.run import Run
    from cupygpt.runfolder import environment, new_run_folder, write_record
    from cupygpt.statefile import Progress

    config = build.with_defaults(config)
    is_first = ranks.rank == 0
    made = new_run_folder(config.out, overwrite=config.overwrite) if is_first else None
    folder = _common_folder(ranks, made)
    data = first_alone(ranks, lambda: build.open_data(config, folder), is_first=is_first)
    model, loaded, origin = build.choose_model(config, data)
    build.attach_tokenizer(config, model, data)
    plan = build.make_plan(config, model, data, ranks=ranks)
    console.header(header_rows(plan, data, origin, folder))
    for warning in loaded.warnings if loaded else ():
        console.warn(warning)
    record = {
        "config": config.as_dict(),
        "model": asdict(model),
        "data": data.record(),
        "precision": plan.precision,
        "ranks": ranks.world,
        "tokens_per_step": plan.tokens_per_step,
        "environment": environment(plan.device.describe()),
    }
    if is_first:
        write_record(folder, record)
    run = Run(plan, data, folder, console, Progress(step=0, seed=config.seed), ranks)
    weights = loaded.parameters if loaded else initial_parameters(model, config.seed)
    _require_same_files(ranks, data, weights)
    run.trainer.load_parameters(weights)
    return run


def resume_run(
    config: TrainConfig, given: dict[str, Any], console: "Console", ranks: "Ranks"
) -> "Run":
    """The run that --resume names, as it stood at its newest checkpoint."""
    from cupygpt import build
    from cupygpt.checkpoint import checkpoint_steps, load_checkpoint
    from cupygpt.distributed.ranks import from_first
    from cupygpt.header import header_rows
    from cupygpt.resume import check_same, resumed_config
    from cupygpt.run import Run
    from cupygpt.runfolder import find_run, read_record

    assert config.resume is not None
    found = find_run(config.resume, config.out, NEWEST_RUN) if ranks.rank == 0 else None
    folder = _common_folder(ranks, found)
    record = read_record(folder)
    config = resumed_config(record["config"], given, world=ranks.world)
    data = build.open_data(config, folder)
    step = from_first(ranks, checkpoint_steps(folder)[-1])
    checkpoint = load_checkpoint(folder, step, ranks=ranks, zero_stage=config.zero_stage)
    model, state = checkpoint.model.config, checkpoint.state
    build.attach_tokenizer(config, model, data)
    check_same("model", record["model"], asdict(model))
    check_same("data", record["data"], data.record())
    plan = build.make_plan(config, model, data, begun_in=record.get("precision"), ranks=ranks)
    origin = f"checkpoint of step {state.progress.step}"
    console.header(header_rows(plan, data, origin, folder))
    if state.progress.epoch is None:
        console.warn("this state was written by llm.c: the data order starts anew")
    began_with = record.get("tokens_per_step", plan.tokens_per_step)
    if record.get("ranks", 1) != ranks.world and began_with != plan.tokens_per_step:
        console.warn(
            f"with {ranks.world} ranks a step takes {plan.tokens_per_step:,} tokens, it took "
            f"{began_with:,} when the run began: -d {began_with} keeps them"
        )
    run = Run(plan, data, folder, console, state.progress, ranks)
    trainer = run.trainer
    weights = checkpoint.model.parameters
    _require_same_files(ranks, data, weights)
    if state.master is not None and plan.shape.shards == 1:
        # They are what the others were rounded from.
        trainer.load_parameters(state.master)
    else:
        trainer.load_parameters(weights, state.master)
    if state.master is not None and trainer.master is None and plan.shape.shards > 1:
        console.warn("the run goes on from its bf16 weights: their master copy is not used here")
    plan.device.upload(trainer.m, state.m)
    plan.device.upload(trainer.v, state.v)
    return run


def _common_folder(ranks: "Ranks", folder: Path | None) -> Path:
    """Rank 0's run folder on all ranks. Raises ConfigError where one does not see it."""
    from cupygpt.distributed.ranks import from_first

    common = Path(from_first(ranks, str(folder)))
    if not common.is_dir():
        raise ConfigError(
            f"the run folder {common} of rank 0 is not there: start all ranks in the same working "
            f"folder, and name a run folder (-o) that all hosts share."
        )
    return common


def _require_same_files(ranks: "Ranks", data: "Data", weights: "np.ndarray") -> None:
    """Raise ConfigError unless all ranks have read the same tokens and weights."""
    from cupygpt.distributed.ranks import require_same

    if ranks.world > 1:
        require_same(ranks, "files", {**data.record(), "weights": zlib.crc32(weights.data)})


def _is_rank(count: int) -> bool:
    """Whether a launcher, ours or another, has started this process as one of `count` already."""
    return os.environ.get("WORLD_SIZE") == str(count)


def _launch(arguments: Sequence[str], given: dict[str, Any], count: int) -> int:
    """Start `count` ranks of this command on this machine, after a look at the flags."""

    def check() -> None:
        TrainConfig(**given, gpus=count)
        from cupygpt.distributed.environment import find_place

        place = find_place(os.environ)
        if place is not None:
            raise ConfigError(
                f"--gpus {count} starts ranks, but {place.launcher} has already started "
                f"{place.world}: leave one of them out."
            )

    code = run_cli(check, debug=given.get("debug", False))
    if code:
        return code
    from cupygpt.distributed.launcher import launch

    return launch(["-m", "cupygpt.train", *arguments], count)


if __name__ == "__main__":
    sys.exit(main())
