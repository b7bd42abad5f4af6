"""Pieces of documents are gathered into blocks, and these encoded by several threads, in order.

Threads, not processes: the encoders let go of the interpreter's lock in most of their work. So
memory is shared, and nothing is left running when the process ends in any way.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cupygpt.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer
from cupygpt.data.tokenizer_files import GPT2_SPLIT
from cupygpt.texts.reading.documents import Piece
from cupygpt.texts.writing.piece_encoder import PieceEncoder

BLOCK_CHARACTERS = 2**18
"""A block is encoded at once. Larger ones do not fit the caches of a core."""

MOST_WORKERS = 16
"""More would wait for the thread that reads."""

Ids: TypeAlias = npt.NDArray[Any]
Encode: TypeAlias = Callable[[Sequence[str]], tuple[Ids, Ids]]


@dataclass
class Block:
    """Texts of one part, "train" or "val": each one a document, but for the first and the last.

    `begins` says whether the first text begins a document, `ends` whether the last one ends one.
    """

    held_out: bool
    begins: bool
    texts: list[str] = field(default_factory=list)
    ends: bool = True
    characters: int = 0


@dataclass(frozen=True)
class EncodedBlock:
    """The tokens of a block, with end of text before each document, and where documents end."""

    held_out: bool
    ids: Ids
    ends: Ids


def blocks(
    pieces: Iterator[tuple[Piece, bool]], block_characters: int = BLOCK_CHARACTERS
) -> Iterator[Block]:
    """The pieces, each with whether its document is held out, in blocks of either kind.

    They depend on the pieces alone. A block that ends a document holds something of it.
    """
    open_blocks = [Block(held_out=False, begins=True), Block(held_out=True, begins=True)]
    for piece, held_out in pieces:
        block = open_blocks[held_out]
        if piece is None:
            block.ends = True
            continue
        if block.characters >= block_characters:
            yield block
            block = open_blocks[held_out] = Block(held_out, begins=block.ends)
        if block.ends or not block.texts:
            block.texts.append(piece)
        else:
            block.texts[-1] += piece
        block.ends = False
        block.characters += len(piece)
    yield from (block for block in open_blocks if block.texts)


def encoded(
    all_blocks: Iterator[Block], tokenizer: Tokenizer, workers: int
) -> Iterator[EncodedBlock]:
    """The blocks, encoded by so many `workers` at once, in their order."""
    encode = _encoder(tokenizer)
    if workers == 1:
        yield from (_encode(block, tokenizer, encode) for block in all_blocks)
        return
    waiting: deque[Future[EncodedBlock]] = deque()
    pool = ThreadPoolExecutor(workers, "encode")
    try:
        for block in all_blocks:
            waiting.append(pool.submit(_encode, block, tokenizer, encode))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(block: Block, tokenizer: Tokenizer, encode: Encode) -> EncodedBlock:
    ids, ends = encode(block.texts)
    begins = np.concatenate([[0], ends[:-1]])[0 if block.begins else 1 :]
    if begins.size:
        ids = np.insert(ids, begins, tokenizer.eot)
    ends = ends + np.arange(len(ends)) + block.begins
    return EncodedBlock(block.held_out, ids, ends if block.ends else ends[:-1])


def _encoder(tokenizer: Tokenizer) -> Encode:
    if isinstance(tokenizer, BPETokenizer) and tokenizer.split == GPT2_SPLIT:
        return PieceEncoder(tokenizer).encode
    if isinstance(tokenizer, ByteTokenizer):
        return _encode_bytes
    return functools.partial(_encode_one_by_one, tokenizer)


def _encode_bytes(texts: Sequence[str]) -> tuple[Ids, Ids]:
    raw = [text.encode() for text in texts]
    ids = np.frombuffer(b"".join(raw), np.uint8).astype(np.uint16)
    return ids, np.cumsum([len(one) for one in raw])


def _encode_one_by_one(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Ids, Ids]:
    ids = [tokenizer.encode(text) for text in texts]
    return np.concatenate(ids), np.cumsum([one.size for one in ids])
