"""One call of an op on the emulator: its arguments, and whether the result is right."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.emulator.arrays import EmulatedArray, emulated, emulated_empty
from cupygpt.emulator.emulate import loader
from cupygpt.kernels.load import FLOATX_TYPES, register_loader
from cupygpt.lab.contracts import Contract, Sizes, Values
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
        given = contract.inputs(sizes, np.random.default_rng(seed))
        stored = {
            name: _stored(given[name], dtype if kind == "floatX*" else kind)
            for name, kind in contract.types.items()
            if name in given
        }
        values = {name: _values(array, np.float64) for name, array in stored.items()}
        singles = {name: _values(array, np.float32) for name, array in stored.items()}
        want = contract.want(sizes, values)
        if contract.plain is None:
            plain = contract.want(sizes, singles)
        else:
            plain = contract.plain(sizes, singles, dtype)
        arrays, allowed = {}, {}
        for name, kind in contract.types.items():
            if name in stored:
                arrays[name] = emulated(stored[name])
            elif kind.endswith("*"):
                arrays[name] = _new_output(contract, name, want[name], kind, dtype)
            if name in contract.outputs:
                start = STARTED_AT if name in contract.accumulated else 0.0
                want[name] = want[name] + start
                format_ = dtype if kind == "floatX*" else "float32"
                rounded = _values(_stored(plain[name] + np.float32(start), format_), np.float64)
                allowed[name] = limit(
                    format_,
                    contract.terms(sizes),
                    np.abs(want[name]).max(),
                    plain_error=np.abs(rounded - want[name]).max(),
                )
        read_only = {n: arrays[n].tobytes() for n in arrays if n not in contract.outputs}
        return cls(contract, sizes, dtype, arrays, read_only, want, allowed)

    @property
    def label(self) -> str:
        """For messages: `bfloat16, N 3, C 24`."""
        return ", ".join([self.dtype, *(f"{name} {size}" for name, size in self.sizes.items())])

    def arguments(self) -> Arguments:
        """What a kernel of this op is called with."""
        numbers = {**self.sizes, **self.contract.constants}
        parameters = {
            name: self.arrays[name] if kind.endswith("*") else numbers[name]
            for name, kind in self.contract.types.items()
        }
        return Arguments(parameters, self.sizes, FLOATX_TYPES[_STORED[self.dtype]])

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


def _new_output(contract: Contract, name: str, like: np.ndarray, kind: str, dtype: str) -> Any:
    element = dtype if kind == "floatX*" else kind
    if name in contract.accumulated:
        return emulated(_stored(np.full(like.shape, STARTED_AT), element))
    return emulated_empty(like.shape, _STORED.get(element, _STORED["float32"]))


def _stored(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bfloat16":
        return to_bfloat16(np.asarray(values, np.float32))
    return np.asarray(values, np.int32 if kind == "i32*" else np.float32)


def _values(stored: np.ndarray, dtype: Any) -> np.ndarray:
    """The numbers in an array, bfloat16 decoded; whole numbers as they are."""
    if stored.dtype == np.int32:
        return stored
    return (from_bfloat16(stored) if stored.dtype == np.uint16 else stored).astype(dtype)
