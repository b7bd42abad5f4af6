"""Flags that cannot have an effect beside the others are refused, not ignored in silence.

A flag with llm.c's default value is never refused: scripts pass many.
"""

from collections.abc import Iterator, Mapping
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
    starts = "resume" not in asked
    if asked.get("schedule") == "constant":
        for name in ("warmup", "final_fraction"):
            if name in asked:
                yield name, "the learning rate of -k constant is the same at every step."
    if starts and "train_data" in asked and "val_data" not in asked:
        for name in ("val_every", "val_batches", "patience"):
            if asked.get(name):
                yield name, "there are no validation data (-j)."
    elif asked.get("val_every") == 0:
        for name in ("val_batches", "patience"):
            if name in asked:
                yield name, "-v 0 means that the run never validates."
    if asked.get("sample_every") == 0 and "sample_length" in asked:
        yield "sample_length", "-s 0 means that no sample is written."
    if asked.get("keep") == 0 and "keep_every" in asked:
        yield "keep_every", "--keep 0 keeps all checkpoints."
    if starts and asked.get("overwrite") and "out" not in asked:
        yield "overwrite", "without -o a run gets a folder of its own."
    if asked.get("overwrite") and not starts and asked["resume"] != RESUME_IF_ANY:
        yield "overwrite", "--resume continues the run in its folder."
    if starts and "extend" in asked:
        yield "extend", "it makes a run longer that is continued with --resume."
