"""Token files written, whole or piece by piece; token_files.py has the format and reads them.

Also read here: files of token ids that lack the header, which get one when they are written again.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import SCAN_BLOCK_TOKENS, TOKEN_DTYPE, VERSION, Tokens, reading
from cupygpt.errors import DataError
from cupygpt.files import (
    HEADER_BYTES,
    FileKind,
    atomic_write,
    check_can_end,
    kind_of,
    os_errors_name,
)

MAX_TOKENS = 2**31 - 1  # The count is a signed 32-bit int in the header.


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[Callable[[npt.ArrayLike], None]]:
    """Write a token file piece by piece: yields `append(tokens)`; the file appears at the end.

    `tokens` is 1-d, integers in [0, 65535]. After an exception inside the block the old file is
    still there, or none. Raises DataError for ids outside that range and for fewer than 2 or more
    than 2**31 - 1 tokens; RunError if the file cannot be written.
    """
    count = 0
    with atomic_write(path) as file:
        file.write(bytes(HEADER_BYTES))

        def append(tokens: npt.ArrayLike) -> None:
            nonlocal count
            piece = _as_token_ids(path, tokens)
            count += piece.size
            if count > MAX_TOKENS:
                raise DataError(
                    f"{path}: a token file holds at most {MAX_TOKENS:,} tokens. "
                    f"Write several, with a smaller --shard-tokens."
                )
            # Two files may be open at once; the error must name the one that could not be written.
            with os_errors_name(path):
                file.write(piece.tobytes())

        yield append
        if count < 2:
            raise DataError(
                f"{path}: {count} token(s) to write; a token file needs at least 2 "
                f"(one to read, one to predict). Give more text."
            )
        file.seek(0)
        file.write(np.array([FileKind.TOKENS.magic, VERSION, count], dtype="<i4").tobytes())


def write_shard(path: Path, tokens: npt.ArrayLike) -> None:
    """Write `tokens` (n,), integers in [0, 65535], n >= 2, as one token file, atomically.

    Raises DataError for values that a token file cannot hold, RunError if writing fails.
    """
    with shard_writer(path) as append:
        append(tokens)


def _as_token_ids(path: Path, tokens: npt.ArrayLike) -> Tokens:
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
        raise DataError(
            f"{path}: tokens must be a one-dimensional array of integers, "
            f"not {ids.dtype} of shape {ids.shape}."
        )
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= np.iinfo(np.uint16).max:
        raise DataError(
            f"{path}: token ids from {ids.min()} to {ids.max()}; a token file holds 0 to 65535. "
            f"Use a tokenizer with at most 65536 ids."
        )
    return ids.astype(TOKEN_DTYPE)


def headerless_blocks(path: Path) -> Iterator[Tokens]:
    """The token ids of a file that holds nothing else, as nanoGPT's, in blocks of 2**22.

    Raises DataError if it cannot be read, or holds anything else.
    """
    check_can_end(path, DataError)
    with reading(path):
        size = path.stat().st_size
        if size == 0 or size % TOKEN_DTYPE.itemsize:
            raise DataError(f"{path}: {size:,} bytes, which is no number of token ids of 2 bytes.")
        tokens = np.memmap(path, TOKEN_DTYPE, mode="r")
    if (kind := kind_of(int.from_bytes(tokens[:2].tobytes(), "little"))) is not None:
        raise DataError(
            f"{path}: this is {kind.title}, with a header. A GPT-2 token file needs no "
            f"preparation: give it to python -m cupygpt.train."
        )
    for start in range(0, tokens.size, SCAN_BLOCK_TOKENS):
        yield tokens[start : start + SCAN_BLOCK_TOKENS]
