"""All flags of `python -m cupygpt.train` together, and how a command line is read.

A field holds the flag's names (llm.c's short ones are kept), type, default, range, help text, its
label on the console, and whether a resumed run may change it. What is open (None) is chosen in
planning/defaults.py, when model and data are known. Rules about several flags stand in
`TrainConfig.__post_init__`, effect.py and training/resume.py; command_line.py reads the words.
training/loop.py hands the values to the trainer.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

from cupygpt.errors import ConfigError
from cupygpt.flags.learning import LearningFlags
from cupygpt.flags.machine import MachineFlags
from cupygpt.flags.model_and_data import ModelAndDataFlags
from cupygpt.flags.reports import ReportFlags

GROUPS = (ModelAndDataFlags, LearningFlags, ReportFlags, MachineFlags)
"""The groups of flags in the order in which --help shows them."""


LENGTHS = ("steps", "epochs", "minutes")
"""The flags that set the length of a run; at most one is given."""


@dataclass(frozen=True)
class TrainConfig(MachineFlags, ReportFlags, LearningFlags, ModelAndDataFlags):
    """What a run is asked to do. None means: open, or left out."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, allowed = getattr(self, item.name), item.metadata["range"]
            if value is not None and allowed is not None and not allowed.holds(value):
                raise ConfigError(f"{flags_of(item.name)} is {value}, but must be {allowed.words}.")
        lengths = [flags_of(name) for name in LENGTHS if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise ConfigError(
                f"{' and '.join(lengths)} set the length of the run; pass one of them."
            )

    def as_dict(self) -> dict[str, Any]:
        """All fields, for the run's record."""
        return asdict(self)

    @property
    def is_demo(self) -> bool:
        """Whether the run trains on the demo's text, because it was given no other."""
        return self.train_data is None


FIXED = tuple(item.name for item in fields(TrainConfig) if item.metadata["fixed"])
"""The flags that a resumed run cannot change."""


def flags_of(name: str) -> str:
    """The flags of a field as a user writes them: `-b/--batch-size`."""
    names = next(item.metadata["names"] for item in fields(TrainConfig) if item.name == name)
    return "/".join(names)


def labelled_values(config: TrainConfig) -> list[str]:
    """The fields that have a label, as the console shows them: `weight decay 0.1`."""
    return [
        f"{item.metadata['label']} {getattr(config, item.name):g}"
        for item in fields(config)
        if item.metadata["label"]
    ]


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError for what it cannot read."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. --help lists all flags.")


def parse_given(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The flags that were given, by field name; the others are absent.

    It wants words as flags/command_line.py writes them: `--name` or `--name=value`.
    """
    parser = _Parser(
        prog="python -m cupygpt.train",
        description="Train a GPT. Without arguments: a demo of two minutes.",
        argument_default=argparse.SUPPRESS,
        usage="python -m cupygpt.train [flag value] ...",
        allow_abbrev=False,
        epilog="llm.c's command lines work: the letters mean the same. -n is the number of steps, "
        "and beside -x the checkpoint interval, as there. What this program does not have "
        "(-lg, -sl, -sg, ...) is answered with a sentence. -h alone, like --help, shows this text.",
    )
    for group in GROUPS:
        assert group.__doc__ is not None
        section = parser.add_argument_group(group.__doc__.rstrip(".").lower())
        for item in fields(group):
            text = item.metadata["help"].replace("%", "%%")
            if item.metadata["from_file"] is not None:
                text += (
                    f" (default: chosen by model and text; with a plain .bin "
                    f"{item.metadata['from_file']:g})"
                )
            elif item.default is not None and item.default is not False:
                shown = f"{item.default:g}" if isinstance(item.default, float) else item.default
                text += f" (default: {shown})"
            section.add_argument(
                *item.metadata["names"], dest=item.name, help=text, **item.metadata["argument"]
            )
    return vars(parser.parse_args(arguments))
