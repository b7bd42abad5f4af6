"""Every planted bug is caught: the report names the right kind and the marked line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import sample_cases as cases

from cupygpt.emulator.arrays import emulated, emulated_empty
from cupygpt.emulator.compiler import Mode
from cupygpt.emulator.emulate import EmulatedModule
from cupygpt.emulator.faults import KernelFault


def marked_lines(file: Path, marker: str, name: str) -> set[int]:
    """Lines whose comment holds `marker: ... name ...`."""
    rows = enumerate(file.read_text().splitlines(), 1)
    return {i for i, row in rows if marker in row and name in row.partition(marker)[2].split()}


BUGS: list[tuple[str, Callable[..., None], str, str]] = [
    ("matmul.cu", cases.matmul, "missing_sync_after_store", "uninitialised"),
    ("matmul.cu", cases.matmul, "missing_sync_before_overwrite", "race"),
    ("matmul.cu", cases.matmul, "out_of_bounds_write", "out_of_bounds"),
    ("matmul.cu", cases.matmul, "out_of_bounds_read", "out_of_bounds"),
    ("matmul.cu", cases.matmul, "early_exit", "early_exit"),
    ("matmul.cu", cases.matmul, "barrier_in_half_the_block", "divergent_barrier"),
    ("matmul.cu", cases.matmul, "different_barriers", "divergent_barrier"),
    ("matmul.cu", cases.matmul, "shared_overflow", "out_of_bounds"),
    ("matmul.cu", cases.matmul, "inner_overflow", "out_of_bounds"),
    ("matmul.cu", cases.matmul, "uninitialised_shared", "uninitialised"),
    ("matmul.cu", cases.matmul, "cross_block_write", "race"),
    ("matmul.cu", cases.matmul, "misaligned_vector", "misaligned"),
    ("reduction.cu", cases.moments, "missing_sync_after_partials", "uninitialised"),
    ("reduction.cu", cases.moments, "missing_sync_before_reuse", "race"),
    ("reduction.cu", cases.moments, "all_threads_write", "race"),
    ("reduction.cu", cases.reverse_rows, "missing_syncwarp", "uninitialised"),
    ("reduction.cu", cases.histogram, "plain_and_atomic", "race"),
    ("reduction.cu", cases.histogram, "dynamic_overflow", "out_of_bounds"),
    ("reduction.cu", cases.histogram, "missing_sync_after_zero", "uninitialised"),
    ("reduction.cu", cases.histogram, "missing_sync_before_read", "race"),
    ("pipeline.cu", cases.add_mirrored, "no_wait", "async_copy"),
    ("pipeline.cu", cases.add_mirrored, "wait_for_too_few", "async_copy"),
    ("pipeline.cu", cases.add_mirrored, "no_sync_after_wait", "uninitialised"),
    ("pipeline.cu", cases.add_mirrored, "no_sync_before_refill", "async_copy"),
    ("pipeline.cu", cases.add_mirrored, "misaligned_copy", "misaligned"),
    ("pipeline.cu", cases.add_mirrored, "copy_left_behind", "async_copy"),
]


@pytest.mark.parametrize(("file", "run", "bug", "kind"), BUGS, ids=[b[2] for b in BUGS])
def test_planted_bug(file: str, run: Callable[..., None], bug: str, kind: str) -> None:
    lines = marked_lines(cases.SAMPLES / file, "BUG:", bug)
    assert lines, f"no line of {file} is marked for {bug}"
    with pytest.raises(KernelFault) as caught:
        run([f"-DBUG={bug}"])
    fault = caught.value
    assert fault.kind == kind, str(fault)
    assert fault.where is not None
    assert fault.where.file.name == file
    assert lines & fault.lines, f"expected a line of {lines}:\n{fault}"
    assert fault.block is not None


FAULTS: list[tuple[str, str, Callable[[], tuple[Any, ...]]]] = [
    ("endless_loop", "timeout", lambda: (emulated_empty(1, np.int32),)),
    ("divides_by_zero", "crash", lambda: (emulated_empty(64, np.int32), np.int32(0))),
    ("null_pointer", "out_of_bounds", lambda: (None,)),
    ("overflows_stack", "crash", lambda: (emulated_empty(1, np.int32), np.int32(10_000))),
    ("asserts", "trap", lambda: (emulated(np.arange(64, dtype=np.int32)),)),
    ("traps", "trap", lambda: (emulated(np.arange(64, dtype=np.int32)),)),
    ("warps_at_different_places", "divergent_warp", lambda: (emulated_empty(64, np.int32),)),
    ("barrier_against_shuffle", "deadlock", lambda: (emulated_empty(64, np.int32),)),
    ("leaves_before_shuffle", "early_exit", lambda: (emulated_empty(64, np.int32),)),
    ("partial_mask", "unsupported", lambda: (emulated_empty(64, np.int32), np.uint32(0xFFFF))),
    ("writes_device_variable", "unsupported", lambda: (emulated_empty(1, np.int32),)),
    ("leaves_its_view", "out_of_bounds", lambda: (emulated_empty(512)[100:200], np.int32(100))),
    ("reads_other_block", "race", lambda: (emulated_empty(64), emulated_empty(64))),
    ("misaligned_global", "misaligned", lambda: (emulated_empty((64, 4)), emulated_empty(300))),
    ("smashes_memory", "out_of_bounds", lambda: (emulated_empty(8, np.int8), np.int64(1 << 20))),
]


@pytest.mark.parametrize(("name", "kind", "arguments"), FAULTS, ids=[f[0] for f in FAULTS])
def test_fault(
    samples: Path, name: str, kind: str, arguments: Callable[[], tuple[Any, ...]]
) -> None:
    module = EmulatedModule(samples / "faults.cu", timeout_s=1)
    grid = (2,) if name == "reads_other_block" else (1,)
    block = (32,) if name == "reads_other_block" else (64,)
    with pytest.raises(KernelFault) as caught:
        module.get_function(name)(grid, block, arguments())
    fault = caught.value
    assert fault.kind == kind, str(fault)
    lines = marked_lines(samples / "faults.cu", "FAULT:", name)
    if lines:
        assert lines & fault.lines, f"expected a line of {lines}:\n{fault}"
    assert name in str(fault)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("endless_loop", (emulated_empty, 1, np.int32), "endless loop"),
        ("smashes_memory", (emulated_empty, 8, np.int8), "crash|signal|Segmentation"),
        ("null_pointer", None, "Segmentation"),
    ],
)
def test_unchecked_crash_ends_only_the_launch(
    samples: Path, name: str, arguments: Any, message: str
) -> None:
    module = EmulatedModule(samples / "faults.cu", mode=Mode.UNCHECKED, timeout_s=1)
    args: tuple[Any, ...] = (arguments[0](*arguments[1:]),) if arguments else (None,)
    if name == "smashes_memory":
        args = (*args, np.int64(1 << 44))
    with pytest.raises(KernelFault, match=message):
        module.get_function(name)((1,), (64,), args)
