"""What a kernel asks of a GPU at the sizes of a ladder's table, and about how long it takes."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from cupygpt.emulator.arrays import EmulatedArray, emulated
from cupygpt.emulator.counted import SECTOR_BYTES, Counts
from cupygpt.emulator.emulate import counting, loader
from cupygpt.kernels.load import register_loader
from cupygpt.lab.contracts.case import arguments_of, filled_arrays
from cupygpt.lab.contracts.contract import Axis, Contract, Sizes
from cupygpt.lab.kept import kept
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import Rung
from cupygpt.lab.large_counts import large_counts
from cupygpt.performance.costs import costs_by_line, reason, what_it_does
from cupygpt.performance.estimate import estimate
from cupygpt.performance.gpus import GPUS

MOST_WASTE = 3
"""Lines of a summary that say where a kernel wastes."""


class GPUArray(EmulatedArray):
    """An emulated array for which the trainer's ops choose their launches as on a large GPU.

    Its multiprocessors are those of an H100; of its instructions, those that all GPUs from compute
    capability 8.0 on have.
    """

    device: Any = SimpleNamespace(
        id="lab",
        compute_capability="80",
        attributes={
            "MultiProcessorCount": 132,
            "MaxSharedMemoryPerMultiprocessor": 228 << 10,
            "MaxSharedMemoryPerBlockOptin": 227 << 10,
        },
    )


def rung_summary(rung: Rung, dtype: str) -> dict[str, Any]:
    """`summary` of a rung at its contract's large sizes, kept between commands."""
    return dict(kept(["rung", rung.file, dtype], lambda: summary(rung_counts(rung, dtype))))


def rung_counts(rung: Rung, dtype: str) -> list[Counts]:
    """The launches of a rung at its contract's large sizes."""
    axes = rung.contract.axes if rung.axes is None else rung.axes
    file = None if rung.is_own else KernelFile.read(rung.path)
    return counted(rung.contract, dtype, file, axes)


def counted(
    contract: Contract, dtype: str, file: KernelFile | None, axes: Sequence[Axis]
) -> list[Counts]:
    """The launches of a call at the contract's large sizes: of a file, or of the trainer's own."""

    def count(sizes: Mapping[str, int]) -> list[Counts]:
        return count_at(contract, sizes, dtype, file)

    return large_counts(count, axes, contract.large)


def count_at(contract: Contract, sizes: Sizes, dtype: str, file: KernelFile | None) -> list[Counts]:
    """The launches of one call at these sizes."""
    arrays = filled_arrays(contract, sizes, dtype, _put)
    if file is not None:
        return file.count(arguments_of(contract, sizes, dtype, arrays))
    assert contract.own is not None, contract.name
    register_loader(GPUArray, loader)
    with counting() as launches:
        contract.own(arrays, sizes, lambda size: _put(np.zeros(size, np.float32)))
    return launches


def summary(launches: Sequence[Counts]) -> dict[str, Any]:
    """The figures of a ladder's table, of all launches together.

    `estimates` holds for each GPU by name the microseconds, and what limits the longest launch;
    `waste` the most costly line of each array that costs more than it must, and why.
    """
    loads = [counts.total("global", "read", "async copy") for counts in launches]
    everything = [counts.total("global") for counts in launches]
    requests = sum(total.requests for total in loads)
    return {
        "waste": _waste(launches),
        "kernels": [counts.kernel for counts in launches],
        "requests": sum(total.requests for total in everything),
        "sectors_per_load": sum(total.sectors for total in loads) / max(1, requests),
        "moved_bytes": SECTOR_BYTES * sum(total.sectors for total in everything),
        "shared_turns": sum(counts.total("shared").joined_turns for counts in launches),
        "lanes": sum(t.lanes for t in everything) / (32 * sum(t.requests for t in everything)),
        "estimates": {name: _estimated(launches, name) for name in GPUS},
    }


def _estimated(launches: Sequence[Counts], gpu: str) -> list[Any]:
    each = [estimate(counts, GPUS[gpu]) for counts in launches]
    longest = max(each, key=lambda one: one.microseconds)
    return [sum(one.microseconds for one in each), longest.limit]


def _waste(launches: Sequence[Counts]) -> list[str]:
    found: dict[tuple[str, str], str] = {}
    for counts in launches:
        for cost in sorted(costs_by_line(counts), key=lambda cost: -cost.cycles):
            if why := reason(cost):
                found.setdefault(
                    (cost.array, cost.kind), f"line {cost.line} {what_it_does(cost)}: {why}"
                )
    return list(found.values())[:MOST_WASTE]


def _put(array: np.ndarray) -> Any:
    return emulated(array).view(GPUArray)
