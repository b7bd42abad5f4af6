"""llm.c's command line (train_gpt2.cu, train_gpt2_fp32.cu) in this program's flags.

| llm.c | here |
|---|---|
| -i -j -e -o -b -t -d -l -k -u -q -c -v -m -s -g -a -w -r -z -x -nk | the same; -o is a folder |
| -n | the checkpoint interval beside -x, or beside two flags of llm.c's; else the steps |
| -nm | checkpoints at its multiples are kept, as there (--keep-every) |
| -x -1, -d -1, -m -1 | one epoch as llm.c counts it; one micro-batch a step; all batches |
| -y 1, -y 0 | resume if -o holds a checkpoint, else start; start |
| -h 1 | --hellaswag with llm.c's file if it is there, else a sentence |
| -lg, -sl, -sg, -ge, -f | a sentence, and training goes on |
| -pn, -pr | must agree with the launcher |
| -pg, -pi, -ps, -pf, -pm, -pp | a sentence: the launcher says it |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from cupygpt.errors import ConfigError

ONE_EPOCH = -1
"""The number of steps that llm.c writes for one epoch."""

RESUME_IF_ANY = "1"
"""llm.c's `-y 1`: continue the run in the folder if it holds a checkpoint, else start one."""


class GivenFlag(NamedTuple):
    """One flag of a command line as it was written; `value` None: none was given."""

    name: str
    value: str | None


@dataclass(frozen=True)
class Translation:
    """A command line without what only llm.c knows.

    `notes` says what became of that, one sentence each. `claims` are llm.c's -pn (number of
    processes) and -pr (rank of this one), where they were given.
    """

    flags: list[GivenFlag]
    notes: list[str]
    claims: dict[str, int]


HELLASWAG = "dev/data/hellaswag/hellaswag_val.bin"
"""Where llm.c's script writes HellaSwag, and where its trainer looks for it with -h 1."""

NOT_BUILT = {
    "-lg": "-lg {}: the use of the GPU is not logged here; nvidia-smi shows it during the run.",
    "-sl": "-sl {}: no update is skipped here because of its loss; --grad-clip limits what a bad "
    "batch can do.",
    "-sg": "-sg {}: no update is skipped here because of its gradient; --grad-clip limits what a "
    "bad batch can do.",
    "-ge": "-ge {}: where GELU is computed inside a matrix product is chosen here by size.",
    "-f": "-f {}: here --precision says how matrix products are computed: fp32, tf32 or bf16.",
}
"""Flags that llm.c has and this program does not, with the answer to a value that asks for more
than what happens anyway."""

_NOTHING_ASKED = {"-lg": (0, -1), "-sl": (0,), "-sg": (0,), "-ge": (0, -1), "-f": ()}

_CLAIMS = ("-pn", "-pr")
_LAUNCHER = ("-pg", "-pi", "-ps", "-pf", "-pm", "-pp")
"""What llm.c wants to know of its processes; its help names two of these wrongly."""

LLMC_ONLY = ("-h", *NOT_BUILT, *_CLAIMS, *_LAUNCHER)
"""The flags of llm.c that are no flags of this program. Each takes one value."""

_LENGTHS = ("--steps", "--epochs", "--minutes")

SURE_MARKS = 2
"""So many different flags of llm.c's say that -n is meant as there."""


def _count(flag: GivenFlag) -> int:
    """The whole number from 0 on that a flag was given. Raises ConfigError for anything else."""
    value = _number(flag)
    if not (value >= 0 and value == value // 1):  # nor nan, nor infinity: inf // 1 is nan
        raise ConfigError(f"{flag.name} is {flag.value}, but must be a whole number from 0 on.")
    return int(value)


def translate(flags: Sequence[GivenFlag]) -> Translation:
    """Replace what only llm.c knows. Raises ConfigError for values that are no numbers."""
    kept: list[GivenFlag] = []
    notes: list[str] = []
    claims: dict[str, int] = {}
    launcher: list[str] = []
    for flag in flags:
        if flag.name in NOT_BUILT:
            if _number(flag) not in _NOTHING_ASKED[flag.name]:
                notes.append(NOT_BUILT[flag.name].format(flag.value))
        elif flag.name == "-h":
            kept += _hellaswag(flag)
            notes += _note_of(flag)
        elif flag.name in _CLAIMS:
            claims[flag.name] = _count(flag)
        elif flag.name in _LAUNCHER:
            launcher.append(flag.name)
        elif not _asks_for_the_default(flag):
            kept.append(flag)
            notes += _note_of(flag)
    if launcher:
        notes.append(
            f"{', '.join(launcher)}: here the launcher (mpirun, srun, torchrun or --gpus) says how "
            f"many processes there are and where they meet."
        )
    kept, note = _read_n(kept, _marks(flags))
    return Translation(kept, notes + note, claims)


def check_claims(claims: dict[str, int], world: int, rank: int) -> None:
    """Raise ConfigError if llm.c's -pn or -pr is not what the launcher has started."""
    for name, found in (("-pn", world), ("-pr", rank)):
        if claims.get(name, found) != found:
            what = f"{found} in all" if name == "-pn" else f"number {found}"
            raise ConfigError(
                f"{name} is {claims[name]}, but this process is {what}. Start the processes with "
                f"mpirun, srun or torchrun, or with --gpus N on one machine, and leave -pn and -pr "
                f"out."
            )


def _number(flag: GivenFlag) -> float:
    try:
        return float(flag.value or "")
    except ValueError:
        raise ConfigError(
            f"{flag.name} is llm.c's and takes a number, got {flag.value!r}."
        ) from None


def _asks_for_the_default(flag: GivenFlag) -> bool:
    return flag in (GivenFlag("-y", "0"), GivenFlag("-d", "-1"))


def _hellaswag(flag: GivenFlag) -> list[GivenFlag]:
    """The flag for llm.c's -h 1, if HellaSwag is where llm.c has it."""
    if _number(flag) and Path(HELLASWAG).is_file():
        return [GivenFlag("--hellaswag", HELLASWAG)]
    return []


def _note_of(flag: GivenFlag) -> list[str]:
    """A sentence where llm.c's value means something else here, or asks for what is not there."""
    if flag.name == "-h" and _number(flag) and not _hellaswag(flag):
        return [
            f"-h {flag.value}: {HELLASWAG} is not here, so HellaSwag is not evaluated; training "
            f"goes on. llm.c's dev/data/hellaswag.py makes it; --hellaswag FILE names another file."
        ]
    if flag.name == "-o" and flag.value and PurePath(flag.value).suffix in (".log", ".txt"):
        return [f"-o {flag.value} is a folder here; its log is {flag.value}/main.log."]
    return []


def _marks(flags: Sequence[GivenFlag]) -> list[str]:
    """The flags that only someone who knows llm.c writes."""
    return list(
        dict.fromkeys(
            flag.name
            for flag in flags
            if flag.name in (*LLMC_ONLY, "-nk", "-nm")
            or (flag.name == "-y" and re.fullmatch("[01]", flag.value or ""))
        )
    )


def _read_n(flags: list[GivenFlag], marks: list[str]) -> tuple[list[GivenFlag], list[str]]:
    """Give -n its meaning: llm.c's checkpoint interval, or the number of steps."""
    names = [flag.name for flag in flags]
    if "-n" not in names:
        return flags, []
    value = next(flag.value for flag in reversed(flags) if flag.name == "-n")
    if "-x" in names:
        why = "beside -x"
    elif len(marks) >= SURE_MARKS and not {"--checkpoint-every", *_LENGTHS} & {*names}:
        flags = [*flags, GivenFlag("-x", str(ONE_EPOCH))]
        why = f"beside {' and '.join(marks[:SURE_MARKS])}; the run takes one epoch, or -x steps"
    elif marks:
        return flags, [
            f"-n {value} is the number of steps; llm.c's -n is --checkpoint-every, or -n beside -x."
        ]
    else:
        return flags, []
    read = [
        GivenFlag("--checkpoint-every", flag.value) if flag.name == "-n" else flag for flag in flags
    ]
    return read, [f"-n {value} saves every {value} steps, as in llm.c, because it stands {why}."]
