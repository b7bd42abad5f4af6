"""The basic blocks of a compiled kernel, from its disassembly: their arithmetic and their order.

g++ calls a hook at the start of each basic block. What stands between one call and the next is the
block; the runtime counts how often it was run.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cupygpt.emulator.cache import write_whole
from cupygpt.emulator.compiler import run
from cupygpt.emulator.loops import find_loops

_HOOK = "__sanitizer_cov_trace_pc"
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(\S+)\s*(.*)$")
_FUNCTION = re.compile(r"^([0-9a-f]+) <[^>]+>:$", re.MULTILINE)
_TARGET = re.compile(r"\b([0-9a-f]+) <([^>+@]*)(?:@plt)?([^>]*)>")
_FLOP = (
    # x86: scalar instructions with and without AVX.
    (re.compile(r"v?(?:add|sub|mul|div|sqrt|min|max)s[sd]"), 1),
    (re.compile(r"vf(?:n?madd|n?msub)\d+s[sd]"), 2),
    # AArch64.
    (re.compile(r"f(?:add|sub|n?mul|div|sqrt|min|max|minnm|maxnm)"), 1),
    (re.compile(r"fn?m(?:add|sub)"), 2),
)
_CALLED_FLOP = {"fminf": 1, "fmaxf": 1, "fmin": 1, "fmax": 1, "sqrtf": 1, "fmaf": 2, "fma": 2}
_SPECIAL = re.compile(r"(?:exp|exp2|exp10|expm1|log|log2|log10|log1p|pow|sin|cos|tan|tanh|erfc?)f?")
_ALWAYS_JUMPS = {"jmp", "b", "br"}
_CONDITIONAL = re.compile(r"j\w+|b\.\w+|cbn?z|tbn?z")
_RETURNS = {"ret", "retq", "ud2", "hlt"}


class BasicBlock(NamedTuple):
    """What runs from one call of the hook to the next."""

    flop: tuple[tuple[int, int], ...]
    """(offset, operations) of each addition, product, division and the like; fma counts two."""
    special: tuple[int, ...]
    """The offset of each exponential, logarithm and the like."""
    innermost: int = -1
    """The innermost loop that holds it, or -1."""
    begins: int = -1
    """The loop whose rounds begin here, or -1."""


@dataclass(frozen=True)
class Code:
    """What a library holds that was compiled for counting."""

    blocks: dict[int, BasicBlock]
    """By the offset that the runtime reports for a block: the last byte of the hook's call."""
    parents: tuple[int, ...]
    """By loop: the loop around it, or -1."""

    def depth(self, loop: int) -> int:
        """The number of loops around a loop."""
        parent = self.parents[loop]
        return 0 if parent < 0 else 1 + self.depth(parent)


@dataclass(frozen=True)
class _Instruction:
    offset: int
    name: str
    target: int
    called: str


@functools.cache
def code_of(library: Path) -> Code:
    """The code of a library, read once and kept in a file beside it."""
    kept = library.with_suffix(".code.json")
    if kept.exists():
        facts = json.loads(kept.read_text())
        blocks = {
            int(offset): BasicBlock(tuple((at, n) for at, n in flop), tuple(special), *loops)
            for offset, (flop, special, *loops) in facts["blocks"].items()
        }
        return Code(blocks, tuple(facts["parents"]))
    code = _read_code(library)
    write_whole(kept, json.dumps({"blocks": code.blocks, "parents": code.parents}))
    return code


def _read_code(library: Path) -> Code:
    text = run(["objdump", "-d", "--no-show-raw-insn", "-j", ".text", str(library)])
    code = [_parsed(match) for row in text.splitlines() if (match := _INSTRUCTION.match(row))]
    index = {instruction.offset: i for i, instruction in enumerate(code)}
    blocks, followers = {}, {}
    for i, instruction in enumerate(code[:-1]):
        if instruction.called == _HOOK:
            offset = code[i + 1].offset - 1
            blocks[offset], followers[offset] = _block(code, index, i + 1)
    # g++ calls no hook where a function begins.
    starts = [index[int(match[1], 16)] for match in _FUNCTION.finditer(text)]
    entered = {offset for start in starts for offset in _block(code, index, start)[1]}
    loops = find_loops(followers, entered)
    return Code(
        {
            offset: block._replace(
                innermost=loops.innermost.get(offset, -1), begins=loops.header.get(offset, -1)
            )
            for offset, block in blocks.items()
        },
        tuple(loops.parent),
    )


def _parsed(match: re.Match[str]) -> _Instruction:
    name, target = match[2], _TARGET.search(match[3])
    if name == "bnd":  # a prefix
        name = match[3].split()[0]
    if target is None:
        return _Instruction(int(match[1], 16), name, -1, "")
    called = target[2] if name in ("call", "bl") and not target[3] else ""
    return _Instruction(int(match[1], 16), name, int(target[1], 16), called)


def _block(
    code: Sequence[_Instruction], index: dict[int, int], start: int
) -> tuple[BasicBlock, tuple[int, ...]]:
    """What runs from `start` up to the next call of the hook, on all ways; the blocks after it."""
    flop, special, followers = {}, set(), set()
    seen: set[int] = set()
    ways = [start]
    while ways:
        i = ways.pop()
        while i < len(code) and i not in seen:
            seen.add(i)
            here = code[i]
            if here.called == _HOOK:
                followers.add(code[i + 1].offset - 1)
                break
            if operations := _operations(here):
                flop[here.offset] = operations
            if here.called and _SPECIAL.fullmatch(here.called):
                special.add(here.offset)
            jumps = here.name in _ALWAYS_JUMPS
            if (jumps or _CONDITIONAL.fullmatch(here.name)) and here.target in index:
                ways.append(index[here.target])
            if jumps or here.name in _RETURNS:
                break
            i += 1
    block = BasicBlock(tuple(sorted(flop.items())), tuple(sorted(special)))
    return block, tuple(sorted(followers))


def _operations(instruction: _Instruction) -> int:
    if instruction.called:
        return _CALLED_FLOP.get(instruction.called, 0)
    return next((n for name, n in _FLOP if name.fullmatch(instruction.name)), 0)
