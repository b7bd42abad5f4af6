"""Registers and spills of kernels, as ptxas (NVIDIA's assembler) reports them with -v."""

import re
from dataclasses import dataclass

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<frame>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture."""

    kernel: str
    registers: int
    """Of a thread."""
    spill_bytes: int
    """Of a thread, in local memory."""


def usages(log: str) -> list[Usage]:
    """The figures in a ptxas log.

    An array indexed at run time lies in local memory as spilled registers do, but shows as a stack
    frame alone.
    """
    return [
        Usage(
            m["kernel"],
            int(m["registers"]),
            max(int(m["frame"]), int(m["stores"]) + int(m["loads"])),
        )
        for m in _ENTRY.finditer(log)
    ]
