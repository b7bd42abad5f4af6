"""What a run records, and what a resumed run may change of it."""

from dataclasses import asdict, fields
from typing import Any

from cupygpt.checkpoint.state_file import Progress
from cupygpt.data.document_start import document_start
from cupygpt.errors import CheckpointError, ConfigError
from cupygpt.flags.config import FIXED, LENGTHS, TrainConfig, flags_of
from cupygpt.run_folder.record import environment
from cupygpt.training.open_data import Data
from cupygpt.training.plan import Plan

BITS_DEPEND_ON = ("cupygpt", "numpy", "processor", "device")
"""The entries of a run's environment that decide over the last bits of its losses."""


def new_record(plan: Plan, data: Data) -> dict[str, Any]:
    """What a new run writes into run.json."""
    return {
        "config": plan.config.as_dict(),
        "model": asdict(plan.shape.config),
        "data": data.record(),
        "precision": plan.shape.precision.name,
        "trained_length": plan.shape.T,
        "steps": plan.steps if plan.steps_are_fixed else None,
        "validation": plan.validation.as_dict() if plan.validation else None,
        "ranks": plan.world,
        "tokens_per_step": plan.tokens_per_step,
        "text_start": document_start(data.train, data.tokenizer),
        "environment": environment(plan.device.describe()),
    }


def resumed_config(saved: dict[str, Any], given: dict[str, Any], *, world: int = 1) -> TrainConfig:
    """The run's own settings, replaced by the given flags.

    One rank has nobody to share the optimizer's state with: ZeRO is off then. Raises ConfigError,
    with a list of the differences, if a flag would change the run; CheckpointError for settings of
    another version.
    """
    unknown = sorted(set(saved) - {item.name for item in fields(TrainConfig)})
    if unknown:
        raise CheckpointError(
            f"run.json holds settings that this version does not know: {', '.join(unknown)}. "
            f"Resume with the version that wrote it, or start a new run from its weights with -e."
        )
    config = TrainConfig(**saved)
    differences = [
        f"  {flags_of(name)}: {getattr(config, name)} in the run, {given[name]} asked for"
        for name in FIXED
        if name in given and given[name] != getattr(config, name)
    ]
    # A learning rate that depends on the length of the run would jump; a constant one stays.
    if config.schedule != "constant" and config.final_fraction != 1.0:
        differences += [
            f"  {flags_of(name)}: {getattr(config, name)} in the run, {given[name]} asked for "
            f"(the {config.schedule} schedule depends on it)"
            for name in LENGTHS
            if name in given and given[name] != getattr(config, name)
        ]
    if differences:
        raise ConfigError(
            "a resumed run cannot change these:\n"
            + "\n".join(differences)
            + "\nLeave them out, or start a new run from its weights with -e."
        )
    length = dict.fromkeys(LENGTHS) if any(name in given for name in LENGTHS) else {}
    changes = {
        name: value for name, value in given.items() if name not in ("resume", "out", "model")
    }
    if world == 1:
        saved = {**saved, "zero_stage": 0}
    return TrainConfig(**{**saved, **length, **changes})


def check_same(kind: str, saved: Any, found: Any) -> None:
    """Raise ConfigError if the model or the data is not what the run was started with."""
    if saved == found:
        return
    if isinstance(saved, dict) and isinstance(found, dict):
        lines = [
            f"  {name}: {saved.get(name)} in the run, {found.get(name)} now"
            for name in sorted({*saved, *found})
            if saved.get(name) != found.get(name)
        ]
    else:
        lines = [f"  {saved} in the run", f"  {found} now"]
    raise ConfigError(
        f"the {kind} is not the one this run was started with:\n"
        + "\n".join(lines)
        + "\nBring back the old files, or start a new run with -e."
    )


def resume_warnings(record: dict[str, Any], plan: Plan, progress: Progress) -> list[str]:
    """In what the resumed run will not repeat the run that never stopped, one sentence each.

    `record` is that of the run (run.json).
    """
    warnings = []
    if progress.position is None:
        warnings.append("this state was written by llm.c: the data order starts again")
    began_with = record.get("tokens_per_step", plan.tokens_per_step)
    if record.get("ranks", 1) != plan.world and began_with != plan.tokens_per_step:
        warnings.append(
            f"with {plan.world} ranks a step takes {plan.tokens_per_step:,} tokens, it took "
            f"{began_with:,} when the run began: pass -d {began_with} to keep the old step size"
        )
    saved, now = record.get("environment", {}), environment(plan.device.describe())
    changes = [
        f"{name}: {saved[name]} then, {now[name]} now"
        for name in BITS_DEPEND_ON
        if saved.get(name, now[name]) != now[name]
    ]
    if changes:
        warnings.append(
            "this run began in another environment, so its losses may differ in the last digits "
            "from those of a run that never stopped (" + "; ".join(changes) + ")"
        )
    return warnings
