"""The report names what is wasted, where, and why; and fits into 80 columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator.sample_cases import CUDA_DIR

from cupygpt.emulator.arrays import emulated, emulated_empty
from cupygpt.emulator.compiler import Mode, missing_toolchain
from cupygpt.emulator.counted import Counts
from cupygpt.emulator.emulate import EmulatedModule
from cupygpt.errors import DeviceError
from cupygpt.kernels.nvrtc import Nvrtc
from cupygpt.performance import report
from cupygpt.performance.amounts import bytes_words, percent, two_figures, words_of_time
from cupygpt.performance.costs import LineCost
from cupygpt.performance.gpus import GPUS

pytestmark = pytest.mark.skipif(bool(missing_toolchain()), reason=str(missing_toolchain()))

SOURCE = Path(__file__).parents[1] / "emulator" / "samples" / "requests.cu"


@pytest.fixture(scope="module")
def requests() -> EmulatedModule:
    return EmulatedModule(SOURCE, [f"-I{CUDA_DIR}"], mode=Mode.COUNTED)


def count(module: EmulatedModule, name: str, grid: Any, block: Any, *args: Any) -> Counts:
    return module.get_function(name).count(grid, block, args)


@pytest.fixture(scope="module")
def transposition(requests: EmulatedModule) -> Counts:
    out, inp = emulated_empty(128 * 128), emulated(np.zeros(128 * 128, np.float32))
    return count(requests, "transpose_plain", (4, 4), (32, 8), out, inp, np.int32(128))


EXPECTED = """\
transpose_plain                                                  128 x 128 float
16 blocks of 256 threads, 4.1 KB of shared memory each

                requests   asked for        moved    used   lanes
global loads         512     65.5 KB      65.5 KB    100%    100%
global stores        512     65.5 KB      65.5 KB    100%    100%
shared loads         512     65.5 KB  16.4k turns    3.1%    100%
shared stores        512     65.5 KB    512 turns    100%    100%
least to move                            131.1 KB    65.5 KB in, 65.5 KB out
meetings        16 barriers

line  requests.cu                       what             per request   at best
  41  for (int i = 0; i < 32; i += 8) o reads tile       32 turns      1 !
      ! neighbouring lanes are 128 bytes apart: all in one bank
  39  for (int i = 0; i < 32; i += 8) t reads in         4 sectors     4
  41  for (int i = 0; i < 32; i += 8) o writes out       4 sectors     4

estimate for an H100: 3.3 us, limited by L1 and shared memory
  L1 and shared memory 0.57, waiting 0.42, L2 0.065 us
  the grid would fill 1.5% of the GPU's threads; the least to move takes 2.5 us
"""


def test_the_text(transposition: Counts) -> None:
    text = report.text(transposition, title="128 x 128 float")
    rows = [row for row in text.splitlines() if "registers" not in row]
    assert "\n".join(rows) + "\n" == EXPECTED


def test_the_same_for_programs(transposition: Counts) -> None:
    found = json.loads(json.dumps(report.as_dict(transposition, GPUS["RTX 4090"])))
    assert found["kernel"] == "transpose_plain"
    assert found["grid"] == [4, 4, 1]
    assert found["total"]["shared_loads"]["turns"] == 16384
    assert found["total"]["least_bytes"] == {"read": 65536, "written": 65536}
    worst = found["lines"][0]
    assert (worst["line"], worst["array"], worst["stride"]) == (41, "tile", 128)
    assert worst["reason"].endswith("all in one bank")
    assert found["estimate"]["gpu"] == "RTX 4090"
    assert found["estimate"]["limit"] == max(
        found["estimate"]["terms"], key=found["estimate"]["terms"].get
    )
    (barrier,) = found["meetings"]
    assert barrier == {"line": 40, "operation": "__syncthreads", "count": 16}


def test_registers_are_shown_where_the_compiler_is(transposition: Counts) -> None:
    try:
        Nvrtc()
    except DeviceError as error:
        pytest.skip(str(error))
    (row,) = [row for row in report.text(transposition).splitlines() if "registers" in row]
    assert "none spilled; they leave room for" in row
    figures = report.as_dict(transposition)["registers"]
    assert 8 <= figures["per_thread"] <= 64
    assert figures["spill_bytes"] == 0
    assert figures["blocks_per_multiprocessor"] >= 4


REASONS = {
    "stride2": (8192, "neighbouring lanes are 8 bytes apart, and each uses 4 of them"),
    "stride32": (131072, "128 bytes apart: each moves a sector of its own"),
}


@pytest.mark.parametrize(("name", "case"), REASONS.items())
def test_a_waste_has_its_reason(requests: EmulatedModule, name: str, case: tuple[int, str]) -> None:
    size, reason = case
    out, inp = emulated_empty(4096), emulated(np.zeros(size, np.float32))
    text = report.text(count(requests, name, (16,), (256,), out, inp))
    assert any(reason in row for row in text.splitlines()), text


def test_lanes_that_share_what_they_read_need_less(requests: EmulatedModule) -> None:
    out, inp = emulated_empty(4096), emulated(np.zeros(4096, np.float32))
    counts = count(requests, "broadcast", (16,), (256,), out, inp)
    (row,) = (row for row in report.text(counts).splitlines() if "reads in" in row)
    assert row.split()[-3:] == ["1", "sector", "1"]


def test_idle_lanes_are_a_waste(requests: EmulatedModule) -> None:
    arrays = [emulated(np.ones(4096, np.float32)) for _ in range(3)]
    text = report.text(count(requests, "divergent", (16,), (256,), *arrays))
    assert "! only 16 of 32 lanes take part" in text
    assert "exp, log, ...       2.0k" in text


def test_a_small_waste_is_shown_where_there_is_no_large_one() -> None:
    def cost(line: int, moved: int) -> LineCost:
        return LineCost(line, "shared", "read", f"tile_{line}", 4, 10, 320, moved, 10, moved, 128)

    most = [cost(line, 10) for line in range(1, 7)]
    assert [x.line for x in report._chosen([*most, cost(7, 15), cost(8, 20)])] == [8, 7, 1, 2]
    hidden = replace(cost(8, 20), cycles=1)
    assert [x.line for x in report._chosen([*most, hidden])] == [1, 2, 3, 4, 8]
    assert [x.line for x in report._chosen(most)] == [1, 2, 3, 4]


def test_no_row_is_wider_than_a_terminal(requests: EmulatedModule, tmp_path: Path) -> None:
    name = "a_kernel_with_a_very_long_name_" * 3
    source = tmp_path / f"{'long' * 20}.cu"
    source.write_text(
        f'extern "C" __global__ void {name}(float* an_output_with_a_long_name) {{\n'
        f"    an_output_with_a_long_name[threadIdx.x * 33] = 1.0f;  // \x1b[31m{'x' * 90}\n}}\n"
    )
    kernel = EmulatedModule(source, mode=Mode.COUNTED).get_function(name)
    text = report.text(kernel.count((1,), (32,), (emulated_empty(33 * 32),)), title="t" * 90)
    assert max(map(len, text.splitlines())) <= report.WIDTH
    assert "\x1b" not in text


def test_a_kernel_that_does_nothing_has_a_report(tmp_path: Path) -> None:
    source = tmp_path / "nothing.cu"
    source.write_text('extern "C" __global__ void nothing() { __syncwarp(); }\n')
    counts = EmulatedModule(source, mode=Mode.COUNTED).get_function("nothing").count((1,), (1,), ())
    text = report.text(counts, with_registers=False)
    assert "it asks memory for nothing" in text
    assert "1 __syncwarp" in text
    assert "2.5 us, limited by the launch itself" in text
    assert report.as_dict(counts, with_registers=False)["registers"] is None


def test_figures() -> None:
    assert [two_figures(x) for x in (0, 0.0519, 0.5, 1, 1.66, 21.4, 448)] == [
        *("0", "0.052", "0.5", "1", "1.7", "21", "450")
    ]
    assert [words_of_time(x) for x in (2.94, 625.7, 996, 8961, 34020)] == [
        *("2.9 us", "630 us", "1.0 ms", "9.0 ms", "34 ms")
    ]
    assert [bytes_words(x) for x in (32, 8192, 2_097_152, 283 * 10**9)] == [
        *("32 B", "8.2 KB", "2.1 MB", "283.0 GB")
    ]
    assert [percent(x) for x in (1, 0.0612, 0.5)] == ["100%", "6.1%", "50%"]
