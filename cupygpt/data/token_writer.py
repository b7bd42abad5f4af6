"""Token files written, whole or piece by piece; token_format.py has the format.

Also read here: files of token ids that lack the header, which get one when they are written again.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cupygpt.data.token_files import SCAN_BLOCK_TOKENS, Tokens, reading
from cupygpt.data.token_format import TWO_BYTES, TokenFormat
from cupygpt.errors import DataError
from cupygpt.files import (
    HEADER_BYTES,
    atomic_write,
    check_can_end,
    kind_of,
    os_errors_name,
)

MAX_TOKENS = 2**31 - 1  # The count is a signed 32-bit int in the header.


@contextlib.contextmanager
def shard_writer(
    path: Path, token_format: TokenFormat = TWO_BYTES
) -> Iterator[Callable[[npt.ArrayLike], None]]:
    """Write a token file piece by piece: yields `append(tokens)`; the file appears at the end.

    `tokens` is 1-d, integers that the format can hold (`format_for(V)` chooses it). After an
    exception inside the block the old file is still there, or none. Raises DataError for other ids
    and for fewer than 2 or more than 2**31 - 1 tokens; RunError if the file cannot be written.
    """
    count = 0
    with atomic_write(path) as file:
        file.write(bytes(HEADER_BYTES))

        def append(tokens: npt.ArrayLike) -> None:
            nonlocal count
            piece = _as_token_ids(path, tokens, token_format)
            count += piece.size
            if count > MAX_TOKENS:
                token_header(path, count, token_format)
            # Two files may be open at once; the error must name the one that could not be written.
            with os_errors_name(path):
                file.write(piece.tobytes())

        yield append
        header = token_header(path, count, token_format)
        file.seek(0)
        file.write(header)


def token_header(path: Path, count: int, token_format: TokenFormat) -> bytes:
    """The header of the token file `path` with `count` tokens.

    Raises DataError if a file cannot hold so many, or needs more.
    """
    if count > MAX_TOKENS:
        raise DataError(
            f"{path}: a token file holds at most {MAX_TOKENS:,} tokens. "
            f"Write several, with a smaller --shard-tokens."
        )
    if count < 2:
        raise DataError(
            f"{path}: {count} token(s) to write; a token file needs at least 2 "
            f"(one to read, one to predict). Give more text."
        )
    words = [token_format.kind.magic, token_format.version, count]
    return np.array(words, dtype="<i4").tobytes().ljust(HEADER_BYTES, b"\0")


def write_shard(path: Path, tokens: npt.ArrayLike, token_format: TokenFormat = TWO_BYTES) -> None:
    """Write `tokens` (n,), integers that the format can hold, n >= 2, as one file, atomically.

    Raises DataError for values that a token file cannot hold, RunError if writing fails.
    """
    with shard_writer(path, token_format) as append:
        append(tokens)


def _as_token_ids(path: Path, tokens: npt.ArrayLike, token_format: TokenFormat) -> Tokens:
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
        raise DataError(
            f"{path}: tokens must be a one-dimensional array of integers, "
            f"not {ids.dtype} of shape {ids.shape}."
        )
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < token_format.num_ids:
        raise DataError(
            f"{path}: token ids from {ids.min()} to {ids.max()}; ids of {token_format.id_bytes} "
            f"bytes are 0 to {token_format.num_ids - 1}."
        )
    return ids.astype(token_format.dtype)


def headerless_blocks(path: Path, token_format: TokenFormat) -> Iterator[Tokens]:
    """The token ids of a file that holds nothing else, as nanoGPT's, in blocks of 2**22.

    Raises DataError if it cannot be read, or holds anything else.
    """
    check_can_end(path, DataError)
    with reading(path):
        size = path.stat().st_size
        if size == 0 or size % token_format.id_bytes:
            raise DataError(
                f"{path}: {size:,} bytes, which is no number of token ids of "
                f"{token_format.id_bytes} bytes."
            )
        tokens = np.memmap(path, token_format.dtype, mode="r")
    if (kind := kind_of(int.from_bytes(tokens[:2].tobytes()[:4], "little"))) is not None:
        raise DataError(
            f"{path}: this is {kind.title}, with a header. A token file needs no "
            f"preparation: give it to python -m cupygpt.train."
        )
    for start in range(0, tokens.size, SCAN_BLOCK_TOKENS):
        yield tokens[start : start + SCAN_BLOCK_TOKENS]
