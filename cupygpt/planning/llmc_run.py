"""A run of llm.c that goes on here: its folder holds weights and moments, but no settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.data.row_order import COMPUTED
from cupygpt.errors import ConfigError
from cupygpt.flags.config import LENGTHS, TrainConfig, flags_of
from cupygpt.planning.defaults import file_settings

_NEEDED = {
    "train_data": "its token files",
    "batch_size": "there 4 by default",
    "seq_len": "there 1024 by default",
    "learning_rate": "there 0.0003 by default",
    "steps": "there -1 by default, which is one epoch",
}
"""What a run cannot go on without, and what llm.c takes where its command does not say it."""

KEEPS_ALL = 0
"""llm.c deletes no checkpoint unless it is told to."""


def record_of_llmc(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that the `given` flags make for a run of llm.c.

    What they leave open is llm.c's default. Raises ConfigError that names all that is missing.
    """
    flags = dict(given)
    if "extend" in flags and not any(name in flags for name in LENGTHS):
        flags["steps"] = checkpoint_steps(folder)[-1]  # which the extension makes longer
    has_length = any(name in flags for name in LENGTHS)
    missing = [
        f"{flags_of(name)} ({usual})"
        for name, usual in _NEEDED.items()
        if name not in flags and not (name == "steps" and has_length)
    ]
    if missing:
        raise ConfigError(
            f"--resume {folder}: this run was written by llm.c, which records no settings. Pass "
            f"what its command had: {', '.join(missing)}. Pass its other flags too, if it had "
            f"some: -j, -d, -k, -u, -q, -c."
        )
    config = TrainConfig(**{"keep": KEEPS_ALL, **flags})
    config = replace(file_settings(config), resume=None, overwrite=False, extend=None)
    return {"config": config.as_dict(), "data": {}, "row_order": COMPUTED}
