"""A data set from nanoGPT's files, which hold token ids and nothing else."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from cupygpt.data.token_files import Tokens
from cupygpt.data.token_format import TokenFormat
from cupygpt.data.token_record import NAMED_SOURCES, Origin
from cupygpt.data.token_writer import headerless_blocks
from cupygpt.data.tokenizer import Tokenizer
from cupygpt.errors import DataError
from cupygpt.texts.find_input import Note, find_input
from cupygpt.texts.request import VAL_FRACTION, Request

Pieces: TypeAlias = Iterator[tuple[Tokens, Tokens]]
"""Training and validation tokens; a piece ends where a document does."""


def headerless_files(request: Request, tokenizer: Tokenizer, note: Note) -> tuple[Origin, Pieces]:
    """Files of token ids alone; those named val* are for validation, else the end of each.

    Raises DataError for a file that cannot be read, or holds ids that the tokenizer lacks.
    """
    paths = [Path(file) for file in find_input(request, note).files]
    val_paths = [path for path in paths if path.name.startswith("val")]
    fraction = VAL_FRACTION if request.val_fraction is None else request.val_fraction
    held_out = f"the last {100 * fraction:g} % of each file"
    if val_paths:
        held_out, fraction = "the files named val*", 0.0
    digest = hashlib.sha256()
    largest = 0
    for path in paths:
        for block in headerless_blocks(path, tokenizer.format):
            digest.update(block.tobytes())
            largest = max(largest, int(block.max()))
    if largest >= tokenizer.vocab_size:
        raise DataError(
            f"the files hold token id {largest:,}, but tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size:,} ids. Name the tokenizer that they were made with."
        )
    if largest < tokenizer.vocab_size // 2:
        note(
            f"no token id is above {largest:,}, but tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size:,} ids. If these are characters (nanoGPT's shakespeare_char), "
            f"prepare its input.txt with --tokenizer bytes instead"
        )
    names = [path.name for path in paths]
    origin = Origin(names[:NAMED_SOURCES], len(names), digest.hexdigest(), held_out)
    shares = {path: 1.0 if path in val_paths else fraction for path in paths}
    return origin, (
        parts
        for path, share in shares.items()
        for parts in _headerless_parts(path, tokenizer.format, share)
    )


def _headerless_parts(path: Path, token_format: TokenFormat, share: float) -> Pieces:
    """The tokens of a file block by block; the last `share` of the file is for validation."""
    num_tokens = path.stat().st_size // token_format.id_bytes
    num_train = num_tokens - int(share * num_tokens)
    for block in headerless_blocks(path, token_format):
        cut = min(max(num_train, 0), block.size)
        yield block[:cut], block[cut:]
        num_train -= block.size
