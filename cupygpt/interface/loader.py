"""Batches of token files, for a training loop of one's own."""

from collections.abc import Iterator, Sequence
from os import PathLike

import numpy as np

from cupygpt.data.loader import START, Batch, Position, TrainLoader
from cupygpt.data.token_files import TokenShard, open_shards
from cupygpt.errors import ConfigError
from cupygpt.interface import arguments
from cupygpt.interface.words import speaking_python

Files = str | PathLike[str] | Sequence[str | PathLike[str]]

ANY_ID = np.iinfo(np.int32).max
"""The loader does not know the model: the trainer checks the ids."""


class Loader:
    """Batches of the rows of token files: `inputs` and `targets` (B, T) int32.

    Each iteration goes through one epoch, in an order of its own that follows from the seed and the
    number of the epoch; the next iteration goes on with the next epoch. A run of `train_model` with
    the same files, sizes and seed sees the same batches. A loop that is left early goes on where it
    was. `position` says where the loader stands, and another loader can start there.

    `files` is a path, a pattern such as "train_*.bin", or a list of them. Raises DataError for
    files that are missing, damaged or too short.
    """

    @speaking_python
    def __init__(
        self,
        files: Files,
        batch_size: int,
        seq_len: int,
        *,
        seed: int = 42,
        shuffle: bool = True,
        position: Position = START,
    ) -> None:
        if not isinstance(position, Position):
            raise ConfigError(
                f"position must be the position of a Loader, not {type(position).__name__}."
            )
        self._loader = TrainLoader(
            open_files(files),
            arguments.whole_number("batch_size", batch_size, least=1),
            arguments.whole_number("seq_len", seq_len, least=1),
            ANY_ID,
            seed=arguments.whole_number("seed", seed, least=0),
            shuffle=bool(shuffle),
            position=position,
        )

    @property
    def position(self) -> Position:
        """The epoch, and how many of its rows were used."""
        return self._loader.position

    def __len__(self) -> int:
        """How many batches are left of this epoch."""
        loader = self._loader
        rows = loader.rows_per_epoch(loader.position.epoch) - loader.position.rows
        return -(-rows // loader.B)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._loader.position.epoch
        while self._loader.position.epoch == epoch:
            yield self._loader.next_batch()


def open_files(files: Files) -> list[TokenShard]:
    """The token files that a path, a pattern, or a list of them stands for."""
    names = [files] if isinstance(files, str | PathLike) else files
    if not isinstance(names, list | tuple) or not names:
        raise ConfigError("files must be a path, a pattern, or a list of them.")
    return [
        shard for name in names for shard in open_shards(arguments.path_text(name, what="a file"))
    ]
