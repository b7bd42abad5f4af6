"""One flag as a dataclass field: all that is known of it, in one place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Range:
    """The values that a flag takes, as a test and in words."""

    holds: Callable[[Any], bool]
    words: str


AT_LEAST_1 = Range(lambda value: value >= 1, "at least 1")
AT_LEAST_1_OR_ALL = Range(lambda value: value >= 1 or value == -1, "at least 1, or -1")
NOT_NEGATIVE = Range(lambda value: 0 <= value < float("inf"), "0 or more")
POSITIVE = Range(lambda value: 0 < value < float("inf"), "positive")
BELOW_1 = Range(lambda value: 0 <= value < 1, "in [0, 1)")
UP_TO_1 = Range(lambda value: 0 <= value <= 1, "in [0, 1]")
SEED = Range(lambda value: 0 <= value < 2**32, "0 or more, and below 2**32")


def flag(
    *names: str,
    help: str,
    default: Any = None,
    from_file: Any = None,
    range: Range | None = None,
    fixed: bool = False,
    label: str = "",
    **argument: Any,
) -> Any:
    """A field for the flag `names`; `argument` are further settings of argparse.

    `default` None means: open until planning/defaults.py has chosen. `from_file` is what it chooses
    for a plain model file, of which nothing is known: llm.c's default. A resumed run cannot change
    a `fixed` flag: another value would give other losses than those of the run that never stopped.
    (-b and -d may change: they decide how the rest of the run continues.) A value with a `label` is
    shown in the optimizer row of the startup table.
    """
    metadata = {
        "names": names,
        "help": help,
        "argument": argument,
        "from_file": from_file,
        "range": range,
        "fixed": fixed,
        "label": label,
    }
    return field(default=default, metadata=metadata)


def switch(name: str, help: str, *, fixed: bool = False) -> Any:
    """A field for a flag that takes no value."""
    return flag(name, default=False, action="store_true", fixed=fixed, help=help)
