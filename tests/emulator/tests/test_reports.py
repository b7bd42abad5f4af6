"""What a kernel hacker reads: the first example, and what a report names first."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support.devices import Device, EmulatedDevice

from cupygpt.emulator.arrays import emulated, emulated_empty
from cupygpt.emulator.emulate import EmulatedModule
from cupygpt.emulator.faults import KernelFault
from cupygpt.lab import oracle

ROOT = Path(__file__).parents[3]


def test_the_examples_of_the_readme(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "cupygpt/emulator/README.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, object] = {}
    exec(first, names)
    capsys.readouterr()
    exec(second, names)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "125"  # 1000 floats in sectors of 8
    assert said[1] == "gelu_forward"
    assert any(row.startswith("estimate for an RTX 4090: ") for row in said)
    want = oracle.gelu_forward(np.linspace(-3, 3, 1000))
    np.testing.assert_allclose(np.asarray(names["out"]), want, atol=1e-6)


KERNELS = """\
    #include "lib/helpers.cuh"
    extern "C" __global__ void copy(float* out, const float* __restrict__ inp, int n) {
        int i = threadIdx.x;
        store(out + i, read(inp + i));  // OWN LINE
    }
    extern "C" __global__ void wait(float* out) {
        if (threadIdx.x == 0) {
            meet();  // OWN LINE
            return;
        }
        __syncthreads();
    }
    __device__ inline int index(int i) { return twice(i); }
    extern "C" __global__ void lookup(int* out) {
        __shared__ int table[4];
        out[0] = table[index(2)];  // OWN LINE
    }
"""
HELPERS = """\
    __device__ __forceinline__ float read(const float* address) { return *address; }
    __device__ __forceinline__ void store(float* address, float value) { *address = value; }
    __device__ __forceinline__ void meet() { __syncthreads(); }
    __device__ __forceinline__ int twice(int i) { return 2 * i; }
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> EmulatedModule:
    folder = tmp_path_factory.mktemp("author")
    (folder / "lib").mkdir()
    (folder / "lib" / "helpers.cuh").write_text(textwrap.dedent(HELPERS))
    (folder / "own.cu").write_text(textwrap.dedent(KERNELS))
    return EmulatedModule(folder / "own.cu")


def own_lines(module: EmulatedModule) -> list[int]:
    rows = module.path.read_text().splitlines()
    return [number for number, row in enumerate(rows, 1) if "OWN LINE" in row]


def test_the_own_line_and_the_parameter_come_first(module: EmulatedModule) -> None:
    out, inp = emulated_empty(64), emulated(np.zeros(60, np.float32))
    with pytest.raises(KernelFault) as caught:
        module.get_function("copy")((1,), (64,), (out, inp, np.int32(64)))
    first, *others = str(caught.value).splitlines()
    line = own_lines(module)[0]
    assert f"own.cu:{line}: 4-byte read at inp[60]; inp has 60 elements of 4 bytes" in first
    assert any("helpers.cuh:1" in other for other in others), others
    assert caught.value.where is not None
    assert caught.value.where.line == line


@pytest.mark.parametrize(
    ("start", "message"),
    [(0, "write at out[60]; out has 60 elements"), (-4, "write at out[-4]; out has 60 elements")],
)
def test_an_element_outside_an_array_has_an_index(
    module: EmulatedModule, start: int, message: str
) -> None:
    memory = emulated_empty(64)
    out = memory[-start : 60 - start]
    source = 'extern "C" __global__ void set(float* out, int i) { out[i] = 1.0f; }'
    path = module.path.with_name("set.cu")
    path.write_text(source)
    index = np.int32(60 if start == 0 else start)
    with pytest.raises(KernelFault, match=re.escape(message)):
        EmulatedModule(path).get_function("set")((1,), (1,), (out, index))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (100_000, "write at first[100000]; first has 60 elements"),
        (-100_000, "write at first[-100000]; first has 60 elements"),
        (1 << 30, "write at an address outside all arrays, 4"),
    ],
)
def test_far_outside_the_array_that_was_meant_is_named_where_it_can_be(
    module: EmulatedModule, index: int, message: str
) -> None:
    arrays = [emulated_empty(60) for _ in range(3)]
    source = 'extern "C" __global__ void set(float* before, float* first, float* after, int i) {\n'
    path = module.path.with_name("far.cu")
    path.write_text(source + "    first[(long long)i] = 1.0f;\n}\n")
    with pytest.raises(KernelFault, match=re.escape(message)):
        EmulatedModule(path).get_function("set")((1,), (1,), (*arrays, np.int32(index)))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("i != 1", "while lane 0 of its warp waits at this __syncwarp"),
        ("i < 2", "while lanes 0, 1 of its warp wait at this __syncwarp"),
        ("i < 30", "while lanes 0 to 29 of its warp wait at this __syncwarp"),
        ("i > 0", "lane 0 of the warp returned before this __syncwarp"),
    ],
)
def test_lanes_that_wait_are_named_by_their_numbers(
    module: EmulatedModule, condition: str, message: str
) -> None:
    path = module.path.with_name("lanes.cu")
    path.write_text(
        'extern "C" __global__ void few() {\n'
        f"    const int i = threadIdx.x;\n    if ({condition}) __syncwarp();\n}}\n"
    )
    with pytest.raises(KernelFault, match=message):
        EmulatedModule(path).get_function("few")((1,), (32,), ())


def test_the_other_thread_of_a_race_has_its_place(module: EmulatedModule) -> None:
    source = 'extern "C" __global__ void both(float* out) { out[0] = 1.0f; }'
    path = module.path.with_name("both.cu")
    path.write_text(source)
    kernel = EmulatedModule(path).get_function("both")
    with pytest.raises(KernelFault, match=r"block \(0, 0, 0\), thread \(\d, \d, 0\)"):
        kernel((1,), (2, 3), (emulated_empty(1),))
    with pytest.raises(KernelFault, match=r"block \(\d, \d, 0\), thread \(0, 0, 0\)"):
        kernel((2, 3), (1,), (emulated_empty(1),))


def test_a_barrier_in_a_header_is_reported_at_the_own_line(module: EmulatedModule) -> None:
    with pytest.raises(KernelFault) as caught:
        module.get_function("wait")((1,), (32,), (emulated_empty(1),))
    fault = caught.value
    assert fault.kind == "divergent_barrier"
    assert fault.where is not None
    assert fault.other is not None
    assert own_lines(module)[1] in {fault.where.line, fault.other.line}
    assert fault.where.file == fault.other.file == module.path


def test_an_array_index_is_reported_at_the_own_line(module: EmulatedModule) -> None:
    with pytest.raises(KernelFault, match="array index 4 is outside") as caught:
        module.get_function("lookup")((1,), (1,), (emulated_empty(1, np.int32),))
    assert caught.value.where is not None
    assert caught.value.where.line == own_lines(module)[2]


def test_a_wrong_argument_is_named(module: EmulatedModule) -> None:
    with pytest.raises(TypeError, match=r"copy, argument 1 \(inp\): the kernel takes float32"):
        module.get_function("copy")(
            (1,), (1,), (emulated_empty(4), emulated_empty(4, np.int32), np.int32(4))
        )


@pytest.mark.parametrize("device", [Device, EmulatedDevice])
@pytest.mark.parametrize("floatX", ["float32", "bfloat16"])
def test_a_wrong_result_names_the_worst_element(device: type[Device], floatX: str) -> None:
    dev, want = device(floatX), np.arange(12.0).reshape(3, 4)
    out = dev.output((3, 4))
    with pytest.raises(
        AssertionError,
        match=r"out on \w+ \w+\[0, 0\] was never written, or added to .*; want 0; so are 12 of 12",
    ):
        dev.agree("out", out, want, want, n=1)
    dev.get(out)[:2] = dev.get(dev.array(want))[:2]
    with pytest.raises(AssertionError, match=r"\[2, 0\] was never .*; want 8; so are 4 of 12"):
        dev.agree("out", out, want, want, n=1)
    dev.get(out)[...] = dev.get(dev.array(want))
    dev.agree("out", out, want, want, n=1)
    for element, wrong in (((1, 1), 7.0), ((2, 3), 13.0)):
        dev.get(out)[element] = dev.get(dev.array([wrong]))[0]
    with pytest.raises(AssertionError, match=r"\[1, 1\]: got 7, want 5, off by .*; 2 of 12"):
        dev.agree("out", out, want, want, n=1)
