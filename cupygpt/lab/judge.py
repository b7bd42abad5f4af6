"""Whether a kernel file does what its op asks: it compiles, runs without a fault, is right."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cupygpt.device.cpu_threads import num_cores
from cupygpt.emulator.faults import CompileError, KernelFault
from cupygpt.errors import LabError
from cupygpt.lab.contracts.case import Case, WrongResult
from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.kernel_file import KernelFile

GATES = ("compiles", "no faults", "values")
"""What is asked, in this order; the first that fails ends the judgement."""

_MOST_DETAILS = 12
"""Lines that the compiler says; of more, those about the file itself are shown."""

_BEGINS = re.compile(r"(?P<file>[^\s:][^:]*):(\d+:)*\s|In file included|\s+from |cc1plus:|g\+\+")
"""How a new remark of g++ begins; its other lines are indented."""

_PLACE = re.compile(r"(?P<file>.*?):(?P<line>\d+):\d+: ")
"""What stands before an error of g++."""

_FAULTS = {
    "race": "race",
    "out_of_bounds": "out of bounds",
    "misaligned": "misaligned access",
    "uninitialised": "shared memory is read that nobody has written",
    "async_copy": "an asynchronous copy is not waited for",
    "divergent_barrier": "not all threads reach the same barrier",
    "divergent_warp": "not all lanes reach the same warp operation",
    "early_exit": "a thread returned while others wait for it",
    "deadlock": "no thread can go on",
    "timeout": "endless loop",
}
"""The kinds of KernelFault in words; others stay as they are."""


@dataclass(frozen=True)
class Verdict:
    """What a judgement found."""

    failed_gate: str
    """One of GATES, or empty if the kernel is right."""
    message: str
    """One line."""
    details: str = ""
    """More lines, or none: where it happened."""
    everything: str = ""
    """All that the compiler said, if `details` leave some of it out."""
    calls: int = 0
    """How many calls of the op ran without a fault."""

    @property
    def is_right(self) -> bool:
        """Whether all gates are passed."""
        return not self.failed_gate


def judge(file: KernelFile, contract: Contract, dtypes: Sequence[str] = ()) -> Verdict:
    """Run the file's kernels in all awkward sizes, for `dtypes` or else all of the op's.

    Raises LabError where the file says wrongly how it is launched.
    """
    calls, label = 0, ""
    try:
        for case in _cases(file, contract, dtypes or contract.dtypes):
            label = case.label
            file.run(case.arguments())
            calls += 1
            case.verify()
    except CompileError as error:
        return Verdict("compiles", *_first_error(str(error), file.path))
    except KernelFault as fault:
        message, details = _describe(fault)
        details += f"\n    the call has {label}"
        return Verdict("no faults", message, details.lstrip("\n"), calls=calls)
    except WrongResult as error:
        return Verdict("values", f"wrong: {error}", calls=calls)
    except (TypeError, ValueError) as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{file.path}: {error}.") from None
    return Verdict("", f"right, in {shapes_and_types(calls)}", calls=calls)


def shapes_and_types(calls: int) -> str:
    """The number of calls in words."""
    return f"{calls} shapes and types" if calls > 1 else "one shape and type"


def _cases(file: KernelFile, contract: Contract, dtypes: Sequence[str]) -> Iterator[Case]:
    """All calls, one type after the other; what a wrong kernel does not need is not compiled."""
    for dtype in dtypes:
        cases = [Case.make(contract, sizes, dtype) for sizes in contract.awkward]
        if dtype == dtypes[0]:  # most mistakes show here
            yield cases.pop(0)
        with ThreadPoolExecutor(num_cores()) as pool:
            list(pool.map(lambda case: file.module(case.arguments()), cases))
        yield from cases


def _describe(fault: KernelFault) -> tuple[str, str]:
    kind = _FAULTS.get(fault.kind, fault.kind)
    where = "" if fault.where is None else f" in line {fault.where.line}"
    _, *places = str(fault).splitlines()
    detail = "the kernel does not end" if fault.kind == "timeout" else fault.detail
    return f"{kind}{where}: {detail}", "\n".join(places)


def _shortened(message: str, path: Path) -> tuple[str, str]:
    """The remarks about the file itself and all, or all and nothing if it is short."""
    lines = message.splitlines()
    if len(lines) <= _MOST_DETAILS:
        return message, ""
    remarks: list[list[str]] = []
    for line in lines:
        if _BEGINS.match(line) or not remarks:
            remarks.append([])
        remarks[-1].append(line)
    own = [lines for lines in remarks if lines[0].startswith(f"{path.resolve()}:")]
    first = [lines for lines in remarks if "error: " in lines[0]][:1]
    shown = [line for lines in own or first or remarks[:1] for line in lines][:_MOST_DETAILS]
    rest = f"... {len(lines) - len(shown)} more lines: python -m cupygpt.lab --debug COMMAND"
    return "\n".join([*shown, rest]), message


def _first_error(message: str, path: Path) -> tuple[str, str, str]:
    """The compiler's first error in one line, what else is shown, and all that it said."""
    details = _shortened(message, path)
    for line in message.splitlines():
        head, found, text = line.partition("error: ")
        if not found:
            continue
        place = _PLACE.match(head)
        if head.startswith("emulator_entry_points"):  # what is compiled behind the file
            text = f"something is still open at the end of the file: {text}"
        elif place and Path(place["file"]) == path.resolve():
            text = f"line {place['line']}: {text}"
        elif place:
            text = f"{Path(place['file']).name}, line {place['line']}: {text}"
        return f"does not compile: {text}", *details
    return f"does not compile: {message.splitlines()[0]}", *details
