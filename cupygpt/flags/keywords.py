"""The flags as keywords of a Python function: their long names, with _ for -."""

import difflib
import inspect
import operator
import os
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

import numpy as np

from cupygpt.errors import ConfigError
from cupygpt.flags.config import TrainConfig
from cupygpt.flags.effect import check_have_effect
from cupygpt.flags.model_and_data import NEWEST_RUN

ONLY_OF_THE_COMMAND = {
    "gpus": "it starts a process for each GPU: python -m cupygpt.train --gpus N",
    "rank_timeout": "a Python program trains in one process",
    "debug": "a Python program sees the traceback of every error",
}
"""The flags that a function does not have, and why."""

_FIELDS: dict[str, Field[Any]] = {
    item.name: item for item in fields(TrainConfig) if item.name not in ONLY_OF_THE_COMMAND
}

_SHORT = {
    name.lstrip("-"): item.name
    for item in _FIELDS.values()
    for name in item.metadata["names"]
    if not name.startswith("--")
}

_OTHER_NAMES = {
    "lr": "learning_rate",
    "data": "train_data",
    "input_bin": "train_data",
    "input_val_bin": "val_data",
    "block_size": "seq_len",
    "context": "seq_len",
    "sequence_length": "seq_len",
    "iterations": "steps",
    "max_iters": "steps",
    "num_iterations": "steps",
    "max_steps": "steps",
    "output_dir": "out",
    "folder": "out",
    "dtype": "precision",
    "weights": "model",
}
"""What other programs call it."""


def given_by_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """The flags by field name, from keywords; None leaves a flag out.

    Raises ConfigError for a keyword that is none, with the nearest one, for a value of another type
    than the flag's, and for one that has no effect beside the others.
    """
    values = {
        name: _value(_field(name), value) for name, value in options.items() if value is not None
    }
    given = {
        name: value
        for name, value in values.items()
        if value is not None and not (value is False and is_switch(name))
    }
    check_have_effect(given)
    return given


def signature_parameters() -> list[inspect.Parameter]:
    """The keywords with their defaults, for help() and for the completion of a notebook."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(item.name, kind, default=item.default, annotation=item.type)
        for item in _FIELDS.values()
    ]


def keyword_of(flag: str) -> str | None:
    """The keyword of a flag, `-b` or `--batch-size`; None for what is no flag of training."""
    name = flag.lstrip("-").replace("-", "_")
    name = name if flag.startswith("--") else _SHORT.get(flag[1:], "")
    return name if name in _FIELDS else None


def is_switch(keyword: str) -> bool:
    """Whether a keyword is True or False."""
    return bool(_FIELDS[keyword].metadata["argument"].get("action") == "store_true")


def _field(name: str) -> "Field[Any]":
    if name in _FIELDS:
        return _FIELDS[name]
    if name in ONLY_OF_THE_COMMAND:
        raise ConfigError(f"{name} is no option here: {ONLY_OF_THE_COMMAND[name]}.")
    meant = _SHORT.get(name) or _OTHER_NAMES.get(name.lower())
    near = [meant] if meant else difflib.get_close_matches(name.lower(), _FIELDS, n=1, cutoff=0.5)
    if near:
        raise ConfigError(f"{name} is no option. Did you mean {near[0]}?")
    raise ConfigError(f"{name} is no option. help(cupygpt.train_model) lists all of them.")


def _value(item: "Field[Any]", value: Any) -> Any:
    """`value` as the flag has it; ConfigError for another type."""
    argument, name = item.metadata["argument"], item.name
    choices = argument.get("choices")
    if argument.get("action") == "store_true":
        if not isinstance(value, bool | np.bool_):
            raise ConfigError(f"{name} must be True or False, not {value!r}.")
        return bool(value)
    kind = argument.get("type", str)
    if name == "resume" and isinstance(value, bool):
        return NEWEST_RUN if value else None
    if isinstance(value, bool) and choices == (0, 1):
        value = int(value)
    if kind is int:
        value = _whole(name, value)
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ConfigError(f"{name} must be a number, not {value!r}.")
        value = float(value)
    elif isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        value = path if kind is str else kind(path)
    else:
        raise ConfigError(f"{name} must be text or a path, not {value!r}.")
    if choices is not None and value not in choices:
        words = ", ".join(map(repr, choices))
        raise ConfigError(f"{name} is {value!r}, but must be one of {words}.")
    return value


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} must be a whole number, not {value!r}.") from None
