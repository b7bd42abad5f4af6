"""The table of a ladder: one line for each rung, counted and estimated."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cupygpt.device.cpu_threads import num_cores
from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import Ladder, Rung
from cupygpt.lab.measure import measured_us
from cupygpt.lab.rung_counts import rung_summary
from cupygpt.performance.amounts import bytes_words, percent, two_figures, words_of_time
from cupygpt.performance.gpus import GPU

SHORT_LIMITS = {"L1 and shared memory": "L1, shared"}
NAMES = {"float32": "float", "bfloat16": "bf16"}


def dtype_of(rung: Rung, wanted: str) -> str:
    """The type that a rung is counted in: the one that is wanted, if it takes that."""
    return wanted if wanted in rung.contract.dtypes else rung.contract.dtypes[0]


def named_sizes(contract: Contract) -> str:
    """The sizes of the table in words: `N 16384, C 768`."""
    return ", ".join(f"{name} {size}" for name, size in _sizes(contract).items())


def _sizes(contract: Contract) -> dict[str, int]:
    return {name: size for name, size in contract.large.items() if name != "heads"}


def rows(ladder: Ladder, dtype: str, *, measure: bool = False) -> Iterator[dict[str, Any]]:
    """The figures of each rung that can be counted, in order, as soon as they are there."""
    counted = [rung for rung in ladder if not rung.is_only_read]
    with ThreadPoolExecutor(num_cores()) as pool:
        found = [pool.submit(rung_summary, rung, dtype_of(rung, dtype)) for rung in counted]
        try:
            for rung, figures in zip(counted, found, strict=True):
                yield _row(rung, dtype_of(rung, dtype), figures.result(), measure=measure)
        finally:  # whoever stops here does not wait for the others
            pool.shutdown(wait=False, cancel_futures=True)


def _row(rung: Rung, dtype: str, figures: dict[str, Any], *, measure: bool) -> dict[str, Any]:
    row = {
        "rung": rung.number,
        "idea": rung.idea,
        "op": rung.contract.name,
        "sizes": _sizes(rung.contract),
        "dtype": dtype,
        **figures,
    }
    if measure:
        file = None if rung.is_own else KernelFile.read(rung.path)
        row["measured_us"] = measured_us(rung.contract, rung.contract.large, dtype, file)
    return row


def head(ladder: Ladder, dtype: str, gpu: GPU, *, measure: bool) -> list[str]:
    """The lines above the rungs."""
    title = f"{ladder.title}, {named_sizes(ladder.rungs[0].contract)}, {NAMES[dtype]}"
    return [
        f"{title:<{60 - len(gpu.name)}}estimate for {gpu.name}",
        f"rung  {'idea':<27}{'sectors/load':>12}{'moved':>9}{'lanes':>6}{'time':>9}  limit"
        + ("  measured" if measure else ""),
    ]


def line(row: dict[str, Any], gpu: GPU) -> str:
    """One rung, at most 80 columns wide without the measured time."""
    microseconds, limit = row["estimates"][gpu.name]
    text = (
        f"{row['rung']:<6}{row['idea'][:27]:<27}{two_figures(row['sectors_per_load']):>12}"
        f"{bytes_words(row['moved_bytes']):>9}{percent(row['lanes']):>6}"
        f"{words_of_time(microseconds):>9}  {SHORT_LIMITS.get(limit, limit):<10}"
    )
    if "measured_us" in row:
        text += f" {words_of_time(row['measured_us']):>8}"
    return text.rstrip()


def difference(row: dict[str, Any], ladder: Ladder, dtype: str) -> str:
    """How a rung's sizes and type differ from those of the table; empty if they do not."""
    sizes = _sizes(ladder.rungs[0].contract)
    words = [f"{name} {n}" for name, n in row["sizes"].items() if sizes.get(name) != n]
    if row["dtype"] != dtype:
        words.append(NAMES[row["dtype"]])
    return f"      with {', '.join(words)}" if words else ""
