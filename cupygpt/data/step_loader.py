"""The input of an optimizer step, packed into one array that one copy brings to the device."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cupygpt.data.rows import Batch, BatchSource, Position

Packed = npt.NDArray[np.int32]
"""(3, A, B, T): tokens, targets and token order of A micro-batches."""


class StepLoader:
    """The batches of a loader, `accumulation` at a time: the input of one step each."""

    def __init__(self, loader: BatchSource[Batch], accumulation: int) -> None:
        self._loader, self._accumulation = loader, accumulation
        self.position: Position = loader.position

    def next_batch(self) -> Packed:
        """The packed input of the next step; moves `position` past it."""
        packed = pack([self._loader.next_batch() for _ in range(self._accumulation)])
        self.position = self._loader.position
        return packed


def pack(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> Packed:
    """Pack A micro-batches, (tokens, targets) pairs of (B, T) int32, into (3, A, B, T) int32.

    The third array of a micro-batch is its `token_order`, which encoder_backward needs.
    """
    B, T = batches[0][0].shape
    packed = np.empty((3, len(batches), B, T), np.int32)
    for i, (tokens, targets) in enumerate(batches):
        packed[0, i], packed[1, i] = tokens, targets
        packed[2, i] = token_order(tokens).reshape(B, T)
    return packed


def token_order(tokens: np.ndarray) -> npt.NDArray[np.int32]:
    """Positions (B * T,) int32 of the tokens, sorted by token id; equal ids keep their order."""
    # Ids fit in 16 bits, which NumPy sorts by radix, in about a tenth of the time.
    order = np.argsort(tokens.astype(np.uint16), axis=None, kind="stable")
    return order.astype(np.int32)
