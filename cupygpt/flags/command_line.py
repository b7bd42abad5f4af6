"""How a command line is read, so that no flag is taken for another.

argparse reads `-lg 5` as `-l g`, `-overwrite` as `-o verwrite`, and a second `-b` in silence. So
the words are first split here, by exact names; argparse gets them as `--name=value`.
"""

import difflib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

from cupygpt.errors import ConfigError
from cupygpt.flags.config import TrainConfig, flags_of, parse_given
from cupygpt.flags.effect import check_have_effect
from cupygpt.flags.llmc import LLMC_ONLY, GivenFlag, translate

_FIELDS: dict[str, Field[Any]] = {
    name: item for item in fields(TrainConfig) for name in item.metadata["names"]
}

_OTHER_NAMES = {
    "--input-bin": "-i",
    "--input-val-bin": "-j",
    "--output-dir": "-o",
    "--sequence-length": "-t",
    "--total-batch-size": "-d",
    "--num-iterations": "-n",
    "--warmup-iters": "-u",
    "--learning-rate-decay-frac": "-q",
    "--val-loss-every": "-v",
    "--val-max-steps": "-m",
    "--overfit-single-batch": "-a",
    "--dtype": "--precision",
    "--tensorcores": "--precision",
}
"""What llm.c's train_gpt2.py calls flags that have another name here."""


@dataclass(frozen=True)
class CommandLine:
    """What was asked: the flags by field name, notes on how they were read, llm.c's -pn and -pr."""

    given: dict[str, Any]
    notes: tuple[str, ...]
    claims: dict[str, int]


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read the words after the program's name.

    --help prints the help and exits. Raises ConfigError for what is not a flag or not a value.
    """
    if "--help" in arguments:
        parse_given(["--help"])
    translation = translate(split_flags(arguments))
    words = []
    for flag in translation.flags:
        name = _FIELDS[flag.name].metadata["names"][-1]
        words.append(name if flag.value is None else f"{name}={flag.value}")
    notes = [*translation.notes, *_repeated(translation.flags)]
    given = parse_given(words)
    check_have_effect(given)
    return CommandLine(given, tuple(notes), translation.claims)


def split_flags(arguments: Sequence[str]) -> list[GivenFlag]:
    """The flags and their values. Raises ConfigError for a word that is neither."""
    split: list[GivenFlag] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-") or _is_number(word):
            raise ConfigError(_stray(word, split))
        if name in _FIELDS or name in LLMC_ONLY:
            given = value if equals else None
            if given is None and rest and _takes_value(name, rest[0]):
                given = rest.pop(0)
        elif _is_number(word[2:]) and _is_numeric(word[:2]):  # -b32
            name, given = word[:2], word[2:]
        else:
            raise ConfigError(f"{name} is not a flag. {_way(name)}")
        if name == "-h" and given is None:
            parse_given(["--help"])
        if given is None and name in LLMC_ONLY:
            raise ConfigError(f"{name} is llm.c's and takes a value.")
        split.append(GivenFlag(name, given))
    return split


def _takes_value(name: str, word: str) -> bool:
    """Whether `word` can be the value of the flag that it follows."""
    item = _FIELDS.get(name)
    if item is not None and item.metadata["argument"].get("action") == "store_true":
        return False
    return not word.startswith("-") or _is_number(word) or word == "-"


def _is_numeric(name: str) -> bool:
    return name in _FIELDS and _FIELDS[name].metadata["argument"].get("type") in (int, float)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _stray(word: str, before: Sequence[GivenFlag]) -> str:
    """What to do about a word that belongs to no flag."""
    text = f"'{word}' belongs to no flag"
    if not before:
        return f"{text}. Each value follows its flag: -i train.bin -j val.bin. {_HELP}"
    name, value = before[-1]
    if value is None:
        return f"{text}: {name} takes no value. {_HELP}"
    return (
        f"{text}: {name} has its value already ({value}). Put quotes around a pattern of files and "
        f"around text with spaces: {name} '...'."
    )


_HELP = "--help lists all flags."


def _way(name: str) -> str:
    """Which flag an unknown name probably means."""
    spelled = "--" + name.lstrip("-").replace("_", "-").lower()
    if spelled in _OTHER_NAMES:
        return f"llm.c's {name} is {_full_name(_OTHER_NAMES[spelled])} here."
    known = [*_FIELDS, *_OTHER_NAMES]
    long = [other for other in known if other.startswith("--")]
    near = []
    if len(spelled) > len("--ab"):
        near = [other for other in long if other.startswith(spelled)][:1]
        near += difflib.get_close_matches(spelled, long, n=1, cutoff=0.7)
    for other in (name.lower(), spelled, *near):
        if other in known:
            return f"Did you mean {_full_name(_OTHER_NAMES.get(other, other))}?"
    if name[:2] in _FIELDS and not _is_numeric(name[:2]):
        return f"Put a space between a flag and its value: {name[:2]} {name[2:]}. {_HELP}"
    return _HELP


def _full_name(name: str) -> str:
    return flags_of(_FIELDS[name].name)


def _repeated(flags: Sequence[GivenFlag]) -> list[str]:
    """A sentence for each flag that was given twice with different values."""
    values: dict[str, list[str]] = defaultdict(list)
    for flag in flags:
        values[_FIELDS[flag.name].name].append(flag.value or "")
    return [
        f"{flags_of(name)} was given more than once ({', '.join(given)}): the last one counts."
        for name, given in values.items()
        if len(set(given)) > 1
    ]
