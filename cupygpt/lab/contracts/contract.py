"""What an op takes and computes.

A contract has the op's parameters in order, outputs first. Its arrays begin as the op's tests have
them: an output that is written holds a NaN which no computation makes, one that is accumulated
holds STARTED_AT, and what is only read must not change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_IN_CPP = {"f32": "float", "i32": "int", "i64": "long long"}

Sizes = Mapping[str, int]
Axis = Mapping[str, tuple[int, ...]]
"""Sizes that grow together, each with its small values; the first one is the coordinate."""
Values = dict[str, np.ndarray]
Arrays = Mapping[str, Any]
Empty = Callable[[int], Any]
"""Makes a float32 array of so many elements on the device of the arrays: scratch."""


@dataclass(frozen=True)
class Contract:
    """One op.

    `parameters` are words `name:type`, as in kernels.kernel.Kernel. Those of the arrays that are in
    none of `written`, `accumulated` and `updated` are only read.
    """

    name: str
    summary: str
    parameters: str
    awkward: tuple[Sizes, ...]
    """Sizes at which mistakes show: one row, odd numbers, more than a block, no whole tile."""
    large: Sizes
    """The sizes of the ladder's table."""
    inputs: Callable[[Sizes, np.random.Generator], Values]
    """Values of all arrays that are read or updated."""
    want: Callable[[Sizes, Values], Values]
    """The formula: all outputs, in the dtype of the values; an accumulated one begins at 0."""
    terms: Callable[[Sizes], int]
    """How many numbers are added up for one element of an output."""
    own: Callable[[Arrays, Sizes, Empty], None] | None = None
    """Runs the trainer's own kernels; None where it has none for this."""
    op: Callable[..., None] | None = None
    """The trainer's op with these parameters and more; None where training has none."""
    sizes_of: Callable[[Mapping[str, Any]], dict[str, int]] = lambda a: {}
    """The sizes of a call of `op`, from its arguments by name."""
    plain: Callable[[Sizes, Values, str], Values] | None = None
    """The formula with the roundings that a good kernel makes, in float32, for values of a dtype;
    None if that is `want` in float32."""
    written: tuple[str, ...] = ()
    accumulated: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    """Inputs that become outputs."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    constants: Mapping[str, float] = field(default_factory=dict)
    """Scalar parameters that are no sizes."""

    shapes: Callable[[Sizes], dict[str, tuple[int, ...]]] = lambda s: {}
    """The shapes of written and accumulated outputs."""
    axes: tuple[Axis, ...] = ()
    """Small sizes from which the counts of the large ones follow (large_counts.py); none: the large
    ones are counted."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Written, accumulated and updated arrays."""
        return self.written + self.accumulated + self.updated

    @property
    def declaration(self) -> str:
        """The parameters as a kernel declares them."""
        words = []
        for name, kind in self.types.items():
            element = _IN_CPP.get(kind.rstrip("*"), kind.rstrip("*"))
            is_array = kind.endswith("*")
            const = "const " if is_array and name not in self.outputs else ""
            words.append(f"{const}{element}{'*' if is_array else ''} {name}")
        return ", ".join(words)

    @property
    def types(self) -> dict[str, str]:
        """The type of each parameter, in order: floatX*, f32*, i32 ..."""
        return dict(word.split(":") for word in self.parameters.split())
