"""One call of an op on the emulator: its arguments, and whether the result is right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.emulator.arrays import EmulatedArray, emulated, emulated_empty, unwritten
from cupygpt.emulator.emulate import loader
from cupygpt.kernels.load import FLOATX_TYPES, register_loader
from cupygpt.lab.contracts.contract import Contract, Sizes, Values
from cupygpt.lab.kernel_file import Arguments
from cupygpt.lab.tolerance import assert_close, limit

STARTED_AT = 3.0
"""What accumulated outputs hold before the call."""

_STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
}


class WrongResult(Exception):
    """The kernel ran, and its result is not the op's. The message names the worst element."""


@dataclass(frozen=True)
class Case:
    """A contract's call at `sizes` with floatX of `dtype` (float32 or bfloat16)."""

    contract: Contract
    sizes: Sizes
    dtype: str
    arrays: dict[str, Any]
    """In emulated memory, by name."""
    before: dict[str, bytes]
    """The bytes of the arrays that must not change."""
    want: Values
    allowed: Values
    """How far each element of an output may lie from `want`."""

    @classmethod
    def make(cls, contract: Contract, sizes: Sizes, dtype: str, seed: int = 0) -> "Case":
        """Fill the arrays and compute what the op must give."""
        stored = _stored_inputs(contract, sizes, dtype, seed)
        values = {name: _values(array, np.float64) for name, array in stored.items()}
        singles = {name: _values(array, np.float32) for name, array in stored.items()}
        want = contract.want(sizes, values)
        if contract.plain is None:
            plain = contract.want(sizes, singles)
        else:
            plain = contract.plain(sizes, singles, dtype)
        allowed = {}
        for name in contract.outputs:
            start = STARTED_AT if name in contract.accumulated else 0.0
            element = _element(contract.types[name], dtype)
            want[name] = want[name] + start
            rounded = _values(_stored(plain[name] + np.float32(start), element), np.float64)
            allowed[name] = limit(
                element,
                contract.terms(sizes),
                np.abs(want[name]).max(),
                plain_error=np.abs(rounded - want[name]).max(),
            )
        shapes = {name: want[name].shape for name in contract.outputs}
        arrays = _filled(contract, dtype, stored, shapes, emulated)
        read_only = {n: arrays[n].tobytes() for n in arrays if n not in contract.outputs}
        return cls(contract, sizes, dtype, arrays, read_only, want, allowed)

    @property
    def label(self) -> str:
        """For messages: `bfloat16, N 3, C 24`."""
        return ", ".join([self.dtype, *(f"{name} {size}" for name, size in self.sizes.items())])

    def arguments(self) -> Arguments:
        """What a kernel of this op is called with."""
        return arguments_of(self.contract, self.sizes, self.dtype, self.arrays)

    def run_own(self) -> None:
        """Run the trainer's own kernels."""
        assert self.contract.own is not None, self.contract.name
        register_loader(EmulatedArray, loader)
        self.contract.own(self.arrays, self.sizes, emulated_empty)

    def verify(self) -> None:
        """Compare all outputs with the oracle. Raises WrongResult."""
        for name, want in self.want.items():
            found = _values(np.asarray(self.arrays[name]), np.float64)
            try:
                assert_close(name, found, want, self.allowed[name])
            except AssertionError as error:
                raise WrongResult(f"{self.label}: {error}") from None
        for name, bytes_before in self.before.items():
            if self.arrays[name].tobytes() != bytes_before:
                raise WrongResult(f"{self.label}: {name} is only to be read, but it was changed.")


def arguments_of(
    contract: Contract, sizes: Sizes, dtype: str, arrays: Mapping[str, Any]
) -> Arguments:
    """What a kernel of an op is called with: arrays and numbers in the op's order."""
    numbers = {**sizes, **contract.constants}
    parameters = {
        name: arrays[name] if kind.endswith("*") else numbers[name]
        for name, kind in contract.types.items()
    }
    return Arguments(parameters, sizes, FLOATX_TYPES[_STORED[dtype]])


def filled_arrays(
    contract: Contract, sizes: Sizes, dtype: str, put: Callable[[np.ndarray], Any]
) -> dict[str, Any]:
    """All arrays of a call, put on a device, without an answer to compare with."""
    stored = _stored_inputs(contract, sizes, dtype, seed=0)
    return _filled(contract, dtype, stored, contract.shapes(sizes), put)


def _stored_inputs(
    contract: Contract, sizes: Sizes, dtype: str, seed: int
) -> dict[str, np.ndarray]:
    given = contract.inputs(sizes, np.random.default_rng(seed))
    return {
        name: _stored(given[name], _element(kind, dtype))
        for name, kind in contract.types.items()
        if name in given
    }


def _filled(
    contract: Contract,
    dtype: str,
    stored: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    put: Callable[[np.ndarray], Any],
) -> dict[str, Any]:
    """The inputs, and the outputs as they are before the call."""
    arrays = {}
    for name, kind in contract.types.items():
        element = _element(kind, dtype)
        if name in stored:
            arrays[name] = put(stored[name])
        elif name in contract.accumulated:
            arrays[name] = put(_stored(np.full(shapes[name], STARTED_AT), element))
        elif kind.endswith("*"):
            arrays[name] = put(unwritten(shapes[name], _STORED.get(element, np.float32)))
    return arrays


def _element(kind: str, dtype: str) -> str:
    """float32, bfloat16 or int32, of a parameter's type such as floatX*."""
    return dtype if kind == "floatX*" else "int32" if kind == "i32*" else "float32"


def _stored(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bfloat16":
        return to_bfloat16(np.asarray(values, np.float32))
    return np.asarray(values, np.dtype(kind))


def _values(stored: np.ndarray, dtype: Any) -> np.ndarray:
    """The numbers in an array, bfloat16 decoded; whole numbers as they are."""
    if stored.dtype == np.int32:
        return stored
    return (from_bfloat16(stored) if stored.dtype == np.uint16 else stored).astype(dtype)
