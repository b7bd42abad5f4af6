"""Settings that come back from a file: each must be of its flag's type."""

import os
from dataclasses import Field, fields
from typing import Any

import cupygpt
from cupygpt.errors import CheckpointError, ConfigError
from cupygpt.flags.config import TrainConfig, flags_of

LARGEST_INT = 2**63 - 1

_CHOSEN_AT_START = {
    item.name: item.metadata["from_file"]
    for item in fields(TrainConfig)
    if item.metadata["from_file"] is not None
}
"""Settings that every run has from its start on."""


def config_from_record(saved: dict[str, Any], writer: str = "another version") -> TrainConfig:
    """The settings in run.json, written by the version `writer`.

    An absent one has its default, or llm.c's where a new run chooses it by its size.

    Raises CheckpointError that names a setting which is unknown, of a wrong type or out of range.
    """
    known = {item.name: item for item in fields(TrainConfig)}
    unknown = sorted(set(saved) - set(known))
    if unknown:
        raise CheckpointError(
            f"run.json holds settings that this version does not know: {', '.join(unknown)}. It "
            f"was written by {writer}, this is cupygpt {cupygpt.__version__}. Resume with the "
            f"version that wrote it, or start a new run from its weights with -e."
        )
    for name, value in saved.items():
        if not _is_of_type(known[name], value):
            raise CheckpointError(
                f"run.json: the setting {name} ({flags_of(name)}) is {value!r}, which is not "
                f"{_type_in_words(known[name])}. The file was damaged or changed by hand; bring "
                f"the old one back, or start a new run from the weights with -e."
            )
    try:
        return TrainConfig(**{**_CHOSEN_AT_START, **saved})
    except ConfigError as error:
        raise CheckpointError(f"run.json: {error}") from error


def _is_of_type(item: "Field[Any]", value: Any) -> bool:
    argument = item.metadata["argument"]
    if value is None:
        return item.default is None and item.name not in _CHOSEN_AT_START
    if argument.get("action") == "store_true":
        return isinstance(value, bool)
    if "choices" in argument:
        return type(value) in (int, str) and value in argument["choices"]
    kind = argument.get("type", str)
    if kind in (int, float):
        if kind is float and type(value) is float:
            return True
        return type(value) is int and abs(value) <= LARGEST_INT
    return isinstance(value, str) and _can_be_a_path(value)


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _type_in_words(item: "Field[Any]") -> str:
    argument = item.metadata["argument"]
    if argument.get("action") == "store_true":
        return "true or false"
    if "choices" in argument:
        return "one of " + ", ".join(map(str, argument["choices"]))
    return {int: "a whole number", float: "a number"}.get(argument.get("type", str), "a text")
