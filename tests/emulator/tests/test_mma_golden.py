"""The emulator's mma, ldmatrix and tf32 rounding agree with what a GPU computed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator.make_mma_golden import CUDA_DIR, GOLDEN, GPU, SOURCE, make_inputs, run_kernels
from support.gpu import require_cupy, require_gpu

from cupygpt.emulator.arrays import emulated, emulated_empty
from cupygpt.emulator.emulate import EmulatedModule
from cupygpt.emulator.toolchain import preprocess
from cupygpt.lab.tolerance import assert_close, limit

Arrays = dict[str, np.ndarray[Any, Any]]


class Emulator:
    """The emulated device in the form that run_kernels takes."""

    def __init__(self) -> None:
        self.get_function = EmulatedModule(SOURCE, [f"-I{CUDA_DIR}"]).get_function
        self.put, self.empty = emulated, emulated_empty


def assert_agree(got: Arrays, want: Arrays, inputs: Arrays) -> None:
    """Bits move exactly; products may differ by the order and rounding of their sums."""
    for name, values in want.items():
        if values.dtype == np.uint32:
            np.testing.assert_array_equal(got[name], values, err_msg=name)
            continue
        kernel = name.partition(".")[0]
        terms = 4 * (inputs[f"{kernel}.a"].shape[1] + 1)  # tensor cores cut sums off
        assert_close(name, got[name], values, limit("float32", terms, np.abs(values).max()))


@pytest.mark.golden
def test_emulator_agrees_with_stored_hardware_answers() -> None:
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN.name} is missing: run make_mma_golden.py on a GPU")
    with np.load(GOLDEN) as file:
        stored = {name: file[name] for name in file.files if name != "device"}
    inputs = make_inputs()
    for name, values in inputs.items():
        np.testing.assert_array_equal(stored.pop(name), values, err_msg=name)
    got = {name: np.asarray(x) for name, x in run_kernels(inputs, Emulator()).items()}
    assert got.keys() == stored.keys()
    assert_agree(got, stored, inputs)


@pytest.mark.gpu
def test_hardware_agrees_with_emulator() -> None:
    cupy = require_cupy()
    if require_gpu().compute_capability < (8, 0):
        pytest.skip("mma for bf16 and tf32 needs compute capability 8.0")
    inputs = make_inputs()
    want = {name: out.get() for name, out in run_kernels(inputs, GPU(cupy)).items()}
    got = {name: np.asarray(x) for name, x in run_kernels(inputs, Emulator()).items()}
    assert_agree(got, want, inputs)


WITHOUT_HOST_VERSION = {"copy_zfill", "shared_address"}
"""Only the wrappers of ptx.cuh themselves use them."""


@pytest.mark.parametrize("header", ["ptx", "ptx_hopper"])
def test_every_wrapper_has_a_host_version(header: str, tmp_path: Path) -> None:
    text = (CUDA_DIR / "lib" / f"{header}.cuh").read_text()
    wrappers = set(re.findall(r"__forceinline__ [\w ]+?(\w+)\(", text)) - WITHOUT_HOST_VERSION
    assert len(wrappers) > 3
    source = tmp_path / "includes.cu"
    source.write_text(f'#include "lib/{header}.cuh"\n')
    inline = r"\binline (?:__attribute__\(\(always_inline\)\) )?[\w ]+? (\w+)\("
    host_versions = set(re.findall(inline, preprocess(source, [f"-I{CUDA_DIR}"])))
    assert wrappers <= host_versions, wrappers - host_versions
