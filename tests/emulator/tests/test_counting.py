"""What the emulator counts is what an H100 counted, and stands at the right line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator.sample_cases import CUDA_DIR

from cupygpt.emulator.arrays import EmulatedArray, emulated, emulated_empty
from cupygpt.emulator.compiler import Mode
from cupygpt.emulator.counted import AccessCounts, Counts
from cupygpt.emulator.emulate import EmulatedModule, counting, loader
from cupygpt.emulator.faults import KernelFault
from cupygpt.kernels.load import register_loader
from cupygpt.ops.gelu import gelu_forward

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "counters_h100.json").read_text(encoding="utf-8")
)
LAUNCHES: dict[str, dict[str, Any]] = GOLDEN["launches"]


@pytest.fixture(scope="module")
def requests() -> EmulatedModule:
    source = Path(__file__).parents[1] / "samples" / "requests.cu"
    return EmulatedModule(source, [f"-I{CUDA_DIR}"], mode=Mode.COUNTED)


def argument(kind: str, size: int, contents: str = "") -> Any:
    """An array, or a scalar of value `size`."""
    if not contents:
        return np.dtype(kind).type(size)
    i = np.arange(size)
    values = {"zeros": 0 * i, "ramp": i, "permuted": i * 1021 % size, "bins": 7 * i // 3 % 64}
    return emulated(values[contents].astype(kind))


def count(module: EmulatedModule, name: str) -> Counts:
    launch = LAUNCHES[name]
    args = [argument(*one) for one in launch["arguments"]]
    return module.get_function(name).count(launch["grid"], launch["block"], args)


def by_nsight(counts: Counts) -> dict[str, int]:
    """The counts by Nsight Compute's names."""
    loads = counts.total("global", "read", "async copy")
    stores, atomics = counts.total("global", "write"), counts.total("global", "atomic")
    reads, writes = counts.total("shared", "read"), counts.total("shared", "write")
    matrices = counts.operations("ldmatrix")
    return {
        "l1tex__t_requests_pipe_lsu_mem_global_op_ld": loads.requests,
        "l1tex__t_sectors_pipe_lsu_mem_global_op_ld": loads.sectors,
        "l1tex__t_requests_pipe_lsu_mem_global_op_st": stores.requests,
        "l1tex__t_sectors_pipe_lsu_mem_global_op_st": stores.sectors,
        "l1tex__t_requests_pipe_lsu_mem_global_op_red": atomics.requests,
        "l1tex__t_sectors_pipe_lsu_mem_global_op_red": atomics.sectors,
        "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld": reads.joined_turns,
        "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st": writes.turns,
        "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_atom": counts.total(
            "shared", "atomic"
        ).turns,
        "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_ldgsts": counts.total(
            "shared", "async copy"
        ).turns,
        "smsp__sass_inst_executed_op_shared_ld": reads.joined_requests - matrices,
        "smsp__sass_inst_executed_op_shared_st": writes.requests,
        "smsp__inst_executed_op_ldsm": matrices,
    }


@pytest.mark.golden
@pytest.mark.parametrize("name", LAUNCHES)
def test_the_counts_are_those_of_an_h100(requests: EmulatedModule, name: str) -> None:
    counts = by_nsight(count(requests, name))
    measured = LAUNCHES[name]["counters"]
    assert measured
    off = {
        metric: (counts[metric], value)
        for metric, value in measured.items()
        if abs(counts[metric] - value) > 0.01 * value
    }
    assert not off, f"counted, measured: {off}"
    read = any("inst_executed" in metric for metric in measured)
    missing = [
        metric
        for metric, value in counts.items()
        if value and metric not in measured and (read or "smsp" not in metric)
    ]
    assert not missing, missing


def test_lanes_that_leave_an_inner_loop_wait(requests: EmulatedModule) -> None:
    """Three rounds of the outer loop, three requests in each, two of them by some lanes."""
    counts = count(requests, "ragged_nest")
    loads = counts.total("global", "read")
    assert loads.requests == 9 * counts.warps
    assert loads.lanes == 6 * 32 * counts.warps
    assert counts.rounds[1] == 9


def accesses(counts: Counts, space: str) -> list[AccessCounts]:
    return [access for access in counts.accesses if access.space == space]


def test_each_access_has_its_line_and_array(requests: EmulatedModule) -> None:
    rows = requests.path.read_text().splitlines()
    counts = count(requests, "transpose_plain")
    named = {
        (access.kind, access.array, rows[access.place.line - 1].split(" = ")[-1])
        for access in counts.accesses
        if access.place
    }
    into, back = "in[(row + y + i) * n + column + x];", "tile[x][y + i];"
    assert named == {
        ("read", "in", into),
        ("write", "tile", into),
        ("read", "tile", back),
        ("write", "out", back),
    }
    (write,) = (access for access in accesses(counts, "shared") if access.kind == "write")
    (read,) = (access for access in accesses(counts, "shared") if access.kind == "read")
    assert (write.stride, read.stride) == (4, 128)
    (barrier,) = (m for m in counts.meetings if m.operation == "__syncthreads")
    assert barrier.place is not None
    assert "__syncthreads" in rows[barrier.place.line - 1]
    assert barrier.count == counts.barriers == counts.blocks


def test_idle_lanes_and_arithmetic(requests: EmulatedModule) -> None:
    counts = count(requests, "divergent")
    threads = counts.blocks * counts.threads
    assert counts.total("global", "read").busy_lanes == 0.5
    assert counts.flop == threads // 2 * 3  # sqrtf and a product, or a sum
    assert counts.flop_slots == threads * 3
    assert sum(line.special for line in counts.arithmetic) == threads // 2
    assert {access.stride for access in counts.accesses} == {4}


def test_the_least_to_move_counts_each_sector_once(requests: EmulatedModule) -> None:
    counts = count(requests, "column_sum")
    assert counts.read_sectors == 163840 * 4 // 32
    assert counts.written_sectors == 4096 * 4 // 32
    again = count(requests, "broadcast4")
    assert again.read_sectors == 8 * 16 // 32
    assert again.fetched_sectors == again.blocks * again.read_sectors


def test_only_the_arrays_of_the_kernel_take_shared_memory(requests: EmulatedModule) -> None:
    assert count(requests, "copy").shared_bytes == 0
    assert count(requests, "transpose_padded").shared_bytes == 32 * 33 * 4


def test_an_op_is_counted() -> None:
    register_loader(EmulatedArray, loader)
    out, inp = emulated_empty(2048), emulated(np.linspace(-3, 3, 2048), np.float32)
    with counting() as launches:
        gelu_forward(out, inp)
    (counts,) = launches
    assert counts.kernel == "gelu_forward"
    assert counts.total("global", "read").asked_bytes == 2048 * 4
    assert counts.total("global", "read").requests == 2048 // 4 // 32
    assert counts.total("global", "write").sectors == 2048 * 4 // 32
    gelu_forward(out, inp)
    assert len(launches) == 1


def test_a_kernel_that_was_not_made_for_counting_says_so(samples: Path) -> None:
    kernel = EmulatedModule(samples / "matmul.cu").get_function("matmul")
    with pytest.raises(ValueError, match=r"matmul was not compiled with Mode\.COUNTED"):
        kernel.count((1,), (64,), ())


def test_an_endless_loop_that_reads_ends_before_it_fills_the_memory(tmp_path: Path) -> None:
    source = tmp_path / "endless.cu"
    source.write_text(
        'extern "C" __global__ void endless(float* out, const float* in) {\n'
        "    for (unsigned i = 0; in[i % 32] == 0.0f; i++) out[threadIdx.x] = i;\n}\n"
    )
    kernel = EmulatedModule(source, mode=Mode.COUNTED).get_function("endless")
    with pytest.raises(KernelFault, match=r"timeout .*endless\.cu:2.*524288 accesses"):
        kernel.count((1,), (32,), (emulated_empty(32), emulated(np.zeros(32, np.float32))))


def test_a_device_function_that_is_not_inlined_is_counted_at_its_calls(tmp_path: Path) -> None:
    source = tmp_path / "calls.cu"
    source.write_text(
        "__device__ __noinline__ float read(const float* in, int i) { return in[i]; }\n"
        'extern "C" __global__ void calls(float* out, const float* in) {\n'
        "    float sum = 0.0f;\n"
        "    for (int i = 0; i <= threadIdx.x % 2; i++) sum += read(in, 32 * i + threadIdx.x);\n"
        "    if (threadIdx.x < 16) sum += read(in, threadIdx.x);\n"
        "    out[threadIdx.x] = sum + read(in, threadIdx.x);\n}\n"
    )
    kernel = EmulatedModule(source, mode=Mode.COUNTED).get_function("calls")
    counts = kernel.count((1,), (32,), (emulated_empty(32), emulated(np.zeros(64, np.float32))))
    loads = counts.total("global", "read")
    assert (loads.requests, loads.lanes) == (4, 32 + 16 + 16 + 32)


def test_lanes_that_have_returned_are_not_waited_for(tmp_path: Path) -> None:
    source = tmp_path / "leaves.cu"
    source.write_text(
        'extern "C" __global__ void leaves(float* out, const float* in, int n) {\n'
        "    if (threadIdx.x >= n) return;\n"
        "    for (int i = 0; i < 5; i++) out[32 * i + threadIdx.x] = in[32 * i + threadIdx.x];\n}\n"
    )
    kernel = EmulatedModule(source, mode=Mode.COUNTED).get_function("leaves")
    arrays = emulated_empty(160), emulated(np.zeros(160, np.float32))
    counts = kernel.count((1,), (64,), (*arrays, np.int32(20)))
    assert counts.warps == 2
    for kind in ("read", "write"):
        total = counts.total("global", kind)
        assert (total.requests, total.lanes, total.sectors) == (5, 100, 15)
    assert counts.rounds[16] == 5  # a store ends a round
