"""What a run records, and what a resumed run may change of it."""

import glob
import time
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cupygpt.checkpoint.checkpoint import Checkpoint, model_path
from cupygpt.checkpoint.state_file import Progress
from cupygpt.data.document_start import document_start
from cupygpt.data.row_order import ROW_ORDERS
from cupygpt.device.blas import blas_in_use
from cupygpt.device.precision import PRECISIONS
from cupygpt.errors import CheckpointError, ConfigError
from cupygpt.flags.config import FIXED, LENGTHS, TrainConfig, flags_of
from cupygpt.flags.recorded import config_from_record
from cupygpt.planning.open_data import Data
from cupygpt.planning.plan import Plan
from cupygpt.run_folder.record import environment, written_by

_NOT_RECORDED = ("resume", "out", "model", "overwrite", "debug", "extend")
"""Flags that are no settings of the run."""

_DECISIVE = (
    *("model", "data", "row_order", "precision"),
    *("steps", "validation", "tokens_per_step", "extensions"),
)
"""Parts of the record that decide over the numbers of a run, beside some settings."""

BITS_DEPEND_ON = ("cupygpt", "numpy", "processor", "blas", "device")
"""The entries of a run's environment that decide over the last bits of its losses."""


def new_record(plan: Plan, data: Data, source: dict[str, Any] | None) -> dict[str, Any]:
    """What a new run writes into run.json; `source` says what weights it began with, if not new."""
    return {
        "source": source,
        "config": plan.config.as_dict(),
        "model": asdict(plan.shape.config),
        "data": data.record(),
        "precision": plan.shape.precision.name,
        "trained_length": plan.trained_length,
        "steps": plan.steps if plan.steps_are_fixed else None,
        "validation": plan.validation.as_dict() if plan.validation else None,
        "row_order": plan.row_order,
        "ranks": plan.world,
        "tokens_per_step": plan.tokens_per_step,
        "text_start": document_start(data.train, data.tokenizer),
        "environment": _environment(plan),
    }


def first_record(
    record: dict[str, Any], checkpoint: Checkpoint, plan: Plan, data: Data, folder: Path
) -> dict[str, Any]:
    """The record of a run of llm.c when it goes on here; `record` is what its flags made."""
    step = checkpoint.state.progress.step
    source = {
        "kind": "run of llm.c",
        "path": str(model_path(folder, step).resolve()),
        "step": step,
        "is_trained": False,  # it goes on; it is not fine-tuned
        "crc32": zlib.crc32(checkpoint.state.float32_weights().data),
    }
    return {
        **new_record(plan, data, source),
        "steps": plan.steps - sum(plan.extensions) if plan.steps_are_fixed else None,
        "extensions": record.get("extensions", []),
    }


def file_of_source(record: dict[str, Any]) -> Path | None:
    """The model file that a run began with, which it must not delete."""
    path = (record.get("source") or {}).get("path") or record["config"].get("model")
    return Path(path) if isinstance(path, str) else None


def resumed_config(
    saved: dict[str, Any],
    given: dict[str, Any],
    *,
    world: int = 1,
    writer: str = "another version",
) -> TrainConfig:
    """The run's own settings, written by the version `writer`, replaced by the given flags.

    One rank has nobody to share the optimizer's state with: ZeRO is off then. Raises ConfigError,
    with a list of the differences, if a flag would change the run; CheckpointError for settings
    that are damaged or of another version.
    """
    config = config_from_record(saved, writer)
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
    saved = config.as_dict()
    if world == 1:
        saved["zero_stage"] = 0
    return TrainConfig(**{**saved, **_changes(saved, given)})


def check_names_this_run(given: dict[str, Any], saved: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError if -e or -o names something else than the run in `folder` has.

    They would have no effect. A script may repeat the flags that the run was started with.
    """
    model, out = given.get("model"), given.get("out")
    if model is not None and not _is_same_path(model, saved.get("model")):
        raise ConfigError(
            f"-e {model} has no effect: the run in {folder} continues with the weights of its "
            f"checkpoint. Leave -e out; or leave --resume out, and start a new run with -e."
        )
    if out is not None and not _is_same_path(out, str(folder)):
        raise ConfigError(
            f"-o {out} has no effect: the run continues in its own folder, {folder}. Leave -o out; "
            f"or copy the folder, and resume the copy."
        )


def _is_same_path(one: str, other: str | None) -> bool:
    return other is not None and (one == other or Path(one).resolve() == Path(other).resolve())


def _changes(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What the given flags change of the saved settings."""
    length = dict.fromkeys(LENGTHS) if any(name in given for name in LENGTHS) else {}
    asked = {**length, **{name: v for name, v in given.items() if name not in _NOT_RECORDED}}
    return {name: value for name, value in asked.items() if saved.get(name) != value}


def extended(record: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The record of a run with the extension that the flags ask for."""
    if "extend" not in given:
        return record
    lengths = [flags_of(name) for name in LENGTHS if name in given]
    if lengths:
        raise ConfigError(
            f"--extend and {lengths[0]} both set the length of the run; pass one of them."
        )
    return {**record, "extensions": [*record.get("extensions", []), given["extend"]]}


def data_from_first_folder(
    config: TrainConfig, given: dict[str, Any], record: dict[str, Any]
) -> TrainConfig:
    """The config with the paths of the data as they were meant in the folder of the first command.

    This is for a run that is resumed from another working folder, and for data that lie only there.
    """
    first = record.get("environment", {}).get("folder")
    if not isinstance(first, str):
        return config  # earlier versions did not record it
    moved: dict[str, Any] = {}
    for name in ("train_data", "val_data"):
        path = getattr(config, name)
        if path is None or name in given or _finds_files(path):
            continue
        there = str(Path(glob.escape(first)) / path)
        if _finds_files(there):
            moved[name] = there
    return replace(config, **moved)


def _finds_files(pattern: str) -> bool:
    return any(glob.iglob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute one)


def check_can_be_extended(given: dict[str, Any], plan: Plan) -> None:
    """Raise ConfigError if the end of the run, at which an extension begins, is not known yet."""
    if "extend" in given and not plan.steps_are_fixed:
        raise ConfigError(
            "--extend: this run has not yet reached the step at which its number of steps is fixed "
            "(--minutes). Resume it without --extend first."
        )


def resumed_record(
    record: dict[str, Any], given: dict[str, Any], plan: Plan, data: Data, progress: Progress
) -> dict[str, Any]:
    """The record of a run that is resumed with the `given` flags: they hold from now on.

    `resumes` keeps what each resume has changed, so that the first settings can be read there.
    """
    saved = record["config"]
    changes = _changes(saved, given)
    if plan.extensions and plan.config.minutes is None:
        # An extension begins at a fixed step, whatever batch the epochs are counted in later.
        length = {"steps": plan.steps - sum(plan.extensions), "epochs": None}
        changes |= {name: value for name, value in length.items() if saved.get(name) != value}
    entry = {
        "step": progress.step,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "changes": {name: [saved.get(name), value] for name, value in changes.items()},
    }
    if "extend" in given:
        entry["extended_by"] = given["extend"]
    if changed := _changed_environment(record, plan):
        entry["environment"] = {name: now for name, (_, now) in changed.items()}
    new = {**record, "config": {**saved, **changes}}
    if plan.validation:
        new["validation"] = plan.validation.as_dict()
    if data.tokenizer and ("tokenizer" in given or not record["data"].get("tokenizer")):
        new["data"] = {**record["data"], **data.tokenizer_record()}
    if {"batch_size", "total_batch"} & changes.keys():
        new["tokens_per_step"] = plan.tokens_per_step
    if plan.config.minutes is None:
        new["steps"] = plan.steps - sum(plan.extensions)
    return {**new, "resumes": [*record.get("resumes", []), entry]}


def decisive_entries(record: dict[str, Any]) -> list[str]:
    """The entries of a record that decide over the numbers of the run, for its checksum."""
    parts = [name for name in _DECISIVE if name in record]
    settings = (*FIXED, *LENGTHS, "batch_size", "total_batch")
    return [*parts, *(f"config.{name}" for name in settings if name in record["config"])]


def check_names_are_known(record: dict[str, Any]) -> None:
    """Raise CheckpointError for a precision or an order of rows that this version does not have."""
    for entry, words, known in (
        ("precision", "in the precision", PRECISIONS),
        ("row_order", "with the order of rows", ROW_ORDERS),
    ):
        name = record.get(entry)
        if name is not None and name not in known:
            raise CheckpointError(
                f"run.json: the run began {words} {name!r}, which this version does not know. "
                f"It was written by {written_by(record)}; resume with that version."
            )


def check_same_model(saved: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise ConfigError if the checkpoint has another shape than the run was started with."""
    lines = [
        f"  {name}: {saved.get(name)} in the run, {found.get(name)} now"
        for name in sorted({*saved, *found})
        if saved.get(name) != found.get(name)
    ]
    _refuse_differences("model", lines)


def check_same_files(saved: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise ConfigError unless the token files have the content that the run began with.

    Their names do not count: files may be moved.
    """
    lines = []
    for part, files in found.items():
        then, now = _contents(saved.get(part)), _contents(files)
        if len(then) != len(now):
            lines.append(f"  {part}: {len(then)} files in the run, {len(now)} now")
        lines += [
            f"  {part}: {file['name']} has other content: {before[0]} tokens in the run, "
            f"{after[0]} now (SHA-256 {before[1]} and {after[1]})"
            for before, after, file in zip(then, now, files, strict=False)
            if before != after
        ][:1]
    _refuse_differences("data", lines)


def _contents(files: Any) -> list[tuple[Any, ...]]:
    """What identifies each file; nothing equals what is no list of files."""
    try:
        return [(file["tokens"], file["sha256"], file["hashed"]) for file in files]
    except (TypeError, KeyError):
        return []


def _refuse_differences(kind: str, lines: list[str]) -> None:
    if lines:
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
        warnings.append(
            "this state was written by llm.c: weights, moments and step go on, the data order "
            "starts anew"
        )
    began_with = record.get("tokens_per_step", plan.tokens_per_step)
    if record.get("ranks", 1) != plan.world and began_with != plan.tokens_per_step:
        warnings.append(
            f"with {plan.world} ranks a step takes {plan.tokens_per_step:,} tokens, it took "
            f"{began_with:,} when the run began: pass -d {began_with} to keep the old step size"
        )
    changes = [
        f"{name}: {then} then, {now} now"
        for name, (then, now) in _changed_environment(record, plan).items()
    ]
    if changes:
        warnings.append(
            "this run began in another environment, so its losses may differ in the last digits "
            "from those of a run that never stopped (" + "; ".join(changes) + ")"
        )
    return warnings


def _changed_environment(record: dict[str, Any], plan: Plan) -> dict[str, tuple[Any, Any]]:
    """What decides over the last bits and is not as it was: (then, now) by name."""
    saved, now = record.get("environment", {}), _environment(plan)
    return {
        name: (saved[name], now[name])
        for name in BITS_DEPEND_ON
        if name in saved and name in now and saved[name] != now[name]
    }


def _environment(plan: Plan) -> dict[str, str]:
    """The environment of this process; the device's description names the number of cores."""
    device = plan.device
    return environment(device.describe(), None if device.is_gpu else blas_in_use())
