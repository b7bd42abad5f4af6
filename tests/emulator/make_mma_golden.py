"""Write the golden file: what a GPU's tensor cores compute from the fragments in ptx.cuh.

Run on a GPU of compute capability 8.0 or higher: python tests/emulator/make_mma_golden.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
SOURCE = TESTS / "emulator" / "samples" / "fragments.cu"
CUDA_DIR = TESTS.parent / "cuda"
GOLDEN = TESTS / "golden" / "mma_fragments.npz"

SHAPES: dict[str, list[tuple[str, tuple[int, ...], type[np.generic]]]] = {
    "mma_bf16": [
        ("d", (16, 8), np.float32),
        ("a", (16, 16), np.uint16),
        ("b", (8, 16), np.uint16),
        ("c", (16, 8), np.float32),
    ],
    "mma_tf32": [
        ("d", (16, 8), np.float32),
        ("a", (16, 8), np.float32),
        ("b", (8, 8), np.float32),
        ("c", (16, 8), np.float32),
    ],
    "ldmatrix_all": [("out", (12, 32), np.uint32), ("tile", (32, 8), np.uint16)],
    "round_tf32": [("out", (256,), np.uint32), ("inp", (256,), np.float32)],
}
SHAPES["mma_tf32_unrounded"] = SHAPES["mma_tf32"]
"""The arrays of each kernel of fragments.cu, the output first."""


def make_inputs() -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs, by kernel and name: "mma_bf16.a"."""
    rng = np.random.default_rng(34)
    inputs = {}
    for kernel, arrays in SHAPES.items():
        for name, shape, dtype in arrays[1:]:
            values = rng.standard_normal(shape).astype(np.float32)
            if kernel == "mma_bf16" and dtype is np.uint16:
                inputs[f"{kernel}.{name}"] = (values.view(np.uint32) >> 16).astype(np.uint16)
            elif dtype is np.uint16:
                inputs[f"{kernel}.{name}"] = rng.integers(0, 2**16, shape, dtype=np.uint16)
            else:
                inputs[f"{kernel}.{name}"] = values
    ties = np.uint32(0x3F800000) + np.arange(64, dtype=np.uint32) * np.uint32(0x800)
    inputs["round_tf32.inp"][:64] = ties.view(np.float32)
    return inputs


def run_kernels(inputs: dict[str, np.ndarray[Any, Any]], device: Any) -> dict[str, Any]:
    """The outputs on a device, by "kernel.output".

    `device` has get_function(name), put(array) and empty(shape, dtype).
    """
    outputs = {}
    for kernel, arrays in SHAPES.items():
        (output, shape, dtype), *rest = arrays
        out = device.empty(shape, dtype)
        args = [out, *(device.put(inputs[f"{kernel}.{name}"]) for name, _, _ in rest)]
        if kernel == "round_tf32":
            args.append(np.int32(shape[0]))
        device.get_function(kernel)((1,), (32,), tuple(args))
        outputs[f"{kernel}.{output}"] = out
    return outputs


class GPU:
    """The first CUDA device, through CuPy."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        options = ("-std=c++17", f"-I{CUDA_DIR}")
        self._module = cupy.RawModule(code=SOURCE.read_text(), options=options)
        self.put, self.empty = cupy.asarray, cupy.empty

    def get_function(self, name: str) -> Any:
        """A kernel of fragments.cu."""
        return self._module.get_function(name)

    @property
    def name(self) -> str:
        """The driver's name of it."""
        return str(self._cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())


def main() -> None:
    """Write the golden file."""
    import cupy

    gpu = GPU(cupy)
    inputs = make_inputs()
    outputs = {name: out.get() for name, out in run_kernels(inputs, gpu).items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, device=np.array(gpu.name), **inputs, **outputs)
    sys.stdout.write(f"{GOLDEN}: {len(outputs)} outputs of {gpu.name}\n")


if __name__ == "__main__":
    main()
