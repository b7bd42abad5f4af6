"""Four gates for a kernel of one's own: compiled, without faults, right, and how fast it is."""

from collections.abc import Iterator, Sequence
from typing import Any

from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.judge import GATES, judge
from cupygpt.lab.kept import kept
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.measure import measured_us
from cupygpt.lab.rung_counts import counted, summary
from cupygpt.performance.amounts import bytes_words, words_of_time
from cupygpt.performance.gpus import GPU

PASSED = {
    "compiles": "yes, in {types}",
    "no faults": "yes: no race, nothing out of bounds, in {calls} calls",
    "values": "yes: within rounding of float64, in {calls} shapes and types",
}


def gates(
    file: KernelFile, contract: Contract, dtypes: Sequence[str], gpu: GPU, *, measure: bool
) -> Iterator[tuple[str, bool, str]]:
    """(gate, passed, words) one after the other; ends at the first that is not passed."""
    verdict = judge(file, contract, dtypes)
    words = {"types": " and ".join(dtypes), "calls": verdict.calls}
    for gate in GATES:
        if gate == verdict.failed_gate:
            details = f"\n{verdict.details}" if verdict.details else ""
            yield gate, False, f"no: {verdict.message}{details}"
            return
        yield gate, True, PASSED[gate].format(**words)
    yield "speed", True, _speed(file, contract, dtypes[0], gpu, measure=measure)


def _speed(file: KernelFile, contract: Contract, dtype: str, gpu: GPU, *, measure: bool) -> str:
    theirs = _figures(file, contract, dtype)
    text = f"estimate for {gpu.name}: {words_of_time(theirs['estimates'][gpu.name][0])}"
    own = None if contract.own is None else _figures(None, contract, dtype)
    if own is not None:
        text += (
            f", cupygpt's own kernel {words_of_time(own['estimates'][gpu.name][0])}; moved "
            f"{bytes_words(theirs['moved_bytes'])}, it {bytes_words(own['moved_bytes'])}"
        )
    else:
        text += f"; moved {bytes_words(theirs['moved_bytes'])}"
    text = "\n".join([text, *theirs["waste"]])
    if measure:
        took = measured_us(contract, contract.large, dtype, file)
        text += f"\nmeasured here: {words_of_time(took)}"
        if contract.own is not None:
            took = measured_us(contract, contract.large, dtype, None)
            text += f", cupygpt's own kernel {words_of_time(took)}"
    return text


def _figures(file: KernelFile | None, contract: Contract, dtype: str) -> dict[str, Any]:
    """`summary` at the contract's large sizes, of a file or of the trainer's own kernels."""
    parts = ["try", contract.name, dtype, "" if file is None else file.source]
    axes = contract.axes
    return dict(kept(parts, lambda: summary(counted(contract, dtype, file, axes))))
