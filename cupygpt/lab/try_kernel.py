"""Four gates for a kernel of one's own: compiled, without faults, right, and how fast it is."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.judge import GATES, judge, shapes_and_types
from cupygpt.lab.kept import kept
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladder_table import NAMES, named_sizes
from cupygpt.lab.measure import measured_us
from cupygpt.lab.rung_counts import counted, summary
from cupygpt.performance.amounts import bytes_words, words_of_time
from cupygpt.performance.gpus import GPU

PASSED = {
    "compiles": "yes",
    "no faults": "yes: no race, nothing out of bounds, in {calls}",
    "values": "yes: within rounding of float64, in {calls}",
}


@dataclass(frozen=True)
class Gate:
    """One of the four, and what was found there."""

    name: str
    passed: bool
    text: str
    """One line, or more."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Of the last gate: `kernel` and `own`, each as `rung_counts.summary` gives them."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if value != {}}


def gates(
    file: KernelFile,
    contract: Contract,
    dtypes: Sequence[str],
    gpu: GPU,
    *,
    measure: bool,
    debug: bool = False,
) -> Iterator[Gate]:
    """The gates one after the other; ends at the first that is not passed.

    `debug` shows all that the compiler says.
    """
    verdict = judge(file, contract, dtypes)
    calls = shapes_and_types(verdict.calls)
    for gate in GATES:
        if gate == verdict.failed_gate:
            details = (debug and verdict.everything) or verdict.details
            details = f"\n{details}" if details else ""
            message = verdict.message.removeprefix("does not compile: ").removeprefix("wrong: ")
            yield Gate(gate, passed=False, text=f"no: {message}{details}")
            return
        yield Gate(gate, passed=True, text=PASSED[gate].format(calls=calls))
    yield _speed(file, contract, dtypes[0], gpu, measure=measure)


def _speed(file: KernelFile, contract: Contract, dtype: str, gpu: GPU, *, measure: bool) -> Gate:
    figures = {"kernel": _figures(file, contract, dtype, measure=measure)}
    lines = [f"estimate for {gpu.article} {gpu.name}, {named_sizes(contract)}, {NAMES[dtype]}:"]
    lines.append(f"  {_words(figures['kernel'], gpu)}")
    if contract.own is not None:
        figures["own"] = _figures(None, contract, dtype, measure=measure)
        lines.append(f"  {_words(figures['own'], gpu)}: cupygpt's own kernel")
    else:
        lines.append(f"  cupygpt has no kernel of its own for {contract.name} to compare with")
    return Gate("speed", passed=True, text="\n".join([*lines, *figures["kernel"]["waste"]]),
                figures=figures)  # fmt: skip


def _words(figures: dict[str, Any], gpu: GPU) -> str:
    took, limit = figures["estimates"][gpu.name]
    text = f"{words_of_time(took)}, {bytes_words(figures['moved_bytes'])} moved, limit {limit}"
    if "measured_us" in figures:
        text += f"; measured here {words_of_time(figures['measured_us'])}"
    return text


def _figures(
    file: KernelFile | None, contract: Contract, dtype: str, *, measure: bool
) -> dict[str, Any]:
    """`summary` at the contract's large sizes, of a file or of the trainer's own kernels."""

    def compute() -> dict[str, Any]:
        return summary(counted(contract, dtype, file, contract.axes))

    if file is None:
        found = dict(kept(["try", contract.name, dtype], compute))
    elif file.includes_neighbours:
        found = compute()
    else:
        found = dict(kept(["try", contract.name, dtype, file.source], compute))
    if measure:
        found["measured_us"] = measured_us(contract, contract.large, dtype, file)
    return found
