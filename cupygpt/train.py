"""python -m cupygpt.train: flags in, checkpoints and a log out."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cupygpt.cli import INTERRUPTED, run_cli
from cupygpt.options import NEWEST_RUN, TrainConfig, parse_given

if TYPE_CHECKING:
    from cupygpt.console import Console
    from cupygpt.run import Run

TERMINATED = 143
"""Exit code after SIGTERM, as shells report it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 130 after Ctrl-C, 143 after SIGTERM, both saved."""
    given = parse_given(arguments)
    signals: list[str] = []
    code = run_cli(lambda: train(given, signals), debug=given.get("debug", False))
    if code == 0 and signals:
        return TERMINATED if signals[0] == "SIGTERM" else INTERRUPTED
    return code


def train(given: dict[str, Any], signals: list[str]) -> None:
    """Run what the flags ask for; the signal that ends it early is appended to `signals`."""
    config = TrainConfig(**given)
    # Imported after the flags are known to be good, so that --help and typos answer at once.
    from cupygpt import build
    from cupygpt.console import Console
    from cupygpt.interrupt import StopSignal
    from cupygpt.run import closing_lines

    console = Console(log_every=config.log_every)
    run = resume_run(config, given, console) if config.resume else start_run(config, console)
    levels = build.landmarks(run.data, run.plan.shape.config.V)
    if levels:
        console.note(
            f"levels to beat, nats per token: unigram {levels[0]:.4f}, bigram {levels[1]:.4f}"
        )
    try:
        with StopSignal() as stop:
            run.loop(stop)
    finally:
        run.close()
    for line in closing_lines(run, stop.received, levels):
        console.note(line)
    if stop.received:
        signals.append(stop.received)


def start_run(config: TrainConfig, console: "Console") -> "Run":
    """A new run: its folder, data, model and weights."""
    from cupygpt import build
    from cupygpt.init import initial_parameters
    from cupygpt.run import Run
    from cupygpt.runfolder import environment, new_run_folder, write_record
    from cupygpt.statefile import Progress

    config = build.with_defaults(config)
    folder = new_run_folder(config.out, overwrite=config.overwrite)
    data = build.open_data(config, folder)
    model, loaded, origin = build.choose_model(config, data)
    build.attach_tokenizer(config, model, data)
    plan = build.make_plan(config, model, data)
    console.header(build.header_rows(plan, data, origin, folder))
    for warning in loaded.warnings if loaded else ():
        console.warn(warning)
    record = {
        "config": config.as_dict(),
        "model": asdict(model),
        "data": data.record(),
        "precision": plan.precision,
        "environment": environment(plan.device.describe()),
    }
    write_record(folder, record)
    run = Run(plan, data, folder, console, Progress(step=0, seed=config.seed))
    weights = loaded.parameters if loaded else initial_parameters(model, config.seed)
    run.trainer.load_parameters(weights)
    return run


def resume_run(config: TrainConfig, given: dict[str, Any], console: "Console") -> "Run":
    """The run that --resume names, as it stood at its newest checkpoint."""
    from cupygpt import build
    from cupygpt.checkpoint import checkpoint_steps, load_checkpoint
    from cupygpt.resume import check_same, resumed_config
    from cupygpt.run import Run
    from cupygpt.runfolder import find_run, read_record

    assert config.resume is not None
    folder = find_run(config.resume, config.out, NEWEST_RUN)
    record = read_record(folder)
    config = resumed_config(record["config"], given)
    data = build.open_data(config, folder)
    checkpoint = load_checkpoint(folder, checkpoint_steps(folder)[-1])
    model, state = checkpoint.model.config, checkpoint.state
    build.attach_tokenizer(config, model, data)
    check_same("model", record["model"], asdict(model))
    check_same("data", record["data"], data.record())
    plan = build.make_plan(config, model, data, begun_in=record.get("precision"))
    origin = f"checkpoint of step {state.progress.step}"
    console.header(build.header_rows(plan, data, origin, folder))
    if state.progress.epoch is None:
        console.warn("this state was written by llm.c: the data order starts anew")
    run = Run(plan, data, folder, console, state.progress)
    trainer = run.trainer
    # The master weights, where there are some, are what the others were rounded from.
    trainer.load_parameters(checkpoint.model.parameters if state.master is None else state.master)
    plan.device.upload(trainer.m.flat, state.m)
    plan.device.upload(trainer.v.flat, state.v)
    return run


if __name__ == "__main__":
    sys.exit(main())
