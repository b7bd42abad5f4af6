"""The input of whole optimizer steps, packed so that one copy brings it to the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cupygpt.data.rows import Batch, Position


@dataclass(frozen=True)
class StepBatch:
    """`packed` as `pack` makes it, and the loader's position after it."""

    packed: np.ndarray
    position: Position


class Loader(Protocol):
    """What gives single batches: a TrainLoader."""

    position: Position

    def next_batch(self) -> Batch:
        """The next batch."""


def pack(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(3, A, B, T) int32 of A micro-batches: tokens, targets, and the order of the tokens.

    Read: (tokens, targets) pairs (B, T) int32. The order is what encoder_backward needs.
    """
    tokens = [x for x, _ in batches]
    targets = [y for _, y in batches]
    orders = [token_order(x).reshape(x.shape) for x in tokens]
    return np.array([tokens, targets, orders], np.int32)


class StepLoader:
    """A loader of steps: `accumulation` batches at a time, packed; runs on the loader's thread."""

    def __init__(self, loader: Loader, accumulation: int) -> None:
        self._loader, self._accumulation = loader, accumulation
        self.position = loader.position

    def next_batch(self) -> StepBatch:
        """The input of the next step; moves `position` past it."""
        batches = [self._loader.next_batch() for _ in range(self._accumulation)]
        self.position = batches[-1].position
        return StepBatch(pack([(b.inputs, b.targets) for b in batches]), self.position)


def token_order(tokens: np.ndarray) -> np.ndarray:
    """Positions (B * T,) int32 that sort the tokens: made on the host, for encoder_backward."""
    # Ids fit in 16 bits, for which NumPy sorts by radix: about a tenth of the time.
    order = np.argsort(tokens.astype(np.uint16), axis=None, kind="stable")
    return order.astype(np.int32)
