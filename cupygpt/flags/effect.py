"""Flags that cannot have an effect beside the others are refused, not ignored in silence.

A flag with llm.c's default value is never refused: scripts pass many.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cupygpt.errors import ConfigError
from cupygpt.flags.config import flags_of
from cupygpt.flags.llmc import RESUME_IF_ANY

LLMC_DEFAULTS = {
    "warmup": 0,
    "final_fraction": 1.0,
    "val_every": 20,
    "val_batches": 20,
    "sample_length": 64,
    "keep_every": 0,
}


def check_have_effect(given: Mapping[str, Any]) -> None:
    """Raise ConfigError, with a sentence for each flag of a command line that changes nothing."""
    asked = {name: v for name, v in given.items() if LLMC_DEFAULTS.get(name, _NO_DEFAULT) != v}
    useless = [
        f"{flags_of(name)} has no effect: {reason}" for name, reason in _without_effect(asked)
    ]
    if useless:
        raise ConfigError(" ".join(useless) + " Leave it out." * (len(useless) == 1))


_NO_DEFAULT = object()


def _without_effect(asked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields without effect, and why."""
    if asked.get("schedule") == "constant":
        yield from _named(
            asked,
            ("warmup", "final_fraction"),
            "the learning rate of -k constant is the same at every step.",
        )
    if asked.get("sample_every") == 0:
        yield from _named(asked, ("sample_length",), "-s 0 means that no sample is written.")
    if asked.get("keep") == 0:
        yield from _named(asked, ("keep_every",), "--keep 0 keeps all checkpoints.")
    yield from _without_validation(asked)
    yield from _without_folder(asked)


def _without_validation(asked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if asked.get("val_every") == 0:
        reason = "-v 0 means that the run never validates."
        yield from _named(asked, ("val_batches", "patience", "hellaswag"), reason)
    elif "train_data" in asked and not {"val_data", "resume"} & asked.keys():
        reason = "there are no validation data (-j)."
        every = () if "hellaswag" in asked else ("val_every",)
        yield from _named(asked, (*every, "val_batches", "patience"), reason)


def _without_folder(asked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "resume" not in asked:
        reason = "it makes a run longer that is continued with --resume."
        yield from _named(asked, ("extend",), reason)
        if "out" not in asked:
            yield from _named(asked, ("overwrite",), "without -o a run gets a folder of its own.")
    elif asked["resume"] != RESUME_IF_ANY:
        yield from _named(asked, ("overwrite",), "--resume continues the run in its folder.")


def _named(
    asked: Mapping[str, Any], names: Sequence[str], reason: str
) -> Iterator[tuple[str, str]]:
    return ((name, reason) for name in names if name in asked)
