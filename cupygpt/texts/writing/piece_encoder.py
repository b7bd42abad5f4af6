"""GPT-2's BPE over whole blocks of text with NumPy, several times as fast as word by word.

GPT-2's pattern cuts a text into pieces (a word with the blank before it, a number, signs, white
space), and BPE works inside a piece. A piece that was seen before has known tokens. So the pieces
of a block are found by comparing the classes of neighbouring characters, and their tokens are
looked up in a hash table, all of them at once. Pieces that are not in the table, or too long for
it, are encoded by tiktoken. The tokens are the same; tests compare them.

NumPy releases the interpreter's lock in most of this, so that threads share the cores.
"""

import functools
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cupygpt.data.tokenizer import BPETokenizer

Array: TypeAlias = npt.NDArray[Any]

BREAK, LETTER, NUMBER, OTHER, WHITE, BLANK, UNKNOWN = range(7)
"""Classes of characters. BREAK stands between two texts; BLANK is the one that a word takes along;
UNKNOWN is a character that Python does not know yet, but tiktoken may."""

WHITE_SPACE = frozenset(
    (
        *(*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)),
        *(0x2028, 0x2029, 0x202F, 0x205F, 0x3000),
    )
)
"""What `\\s` is in tiktoken's patterns; in Python it is more than that."""

KNOWN_CHARACTERS = 0x20000
"""Characters beyond these, rare signs of Chinese, are all UNKNOWN."""

MOST_BYTES = 15
"""The longest piece in the table: two words of 8 bytes, and the length in the last byte."""
MOST_TOKENS = 4
MOST_PIECES = 2**18
"""So many pieces are in the table at most; it then takes 20 MB."""
MOST_CHARACTERS_TOGETHER = 1000
"""Longer pieces are encoded each by itself."""
PROBES = 8
"""A piece is in one of so many neighbouring places of the table, or not in it."""

_ONE, _TWO = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_MASKS = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)


@dataclass(frozen=True)
class Table:
    """Pieces and their tokens, by open addressing. It never changes, so threads can read it.

    `first`, `second` are the two words of a piece, 0 for an empty place; `counts` and `tokens`
    (places, MOST_TOKENS) what it is encoded to.
    """

    first: Array
    second: Array
    counts: Array
    tokens: Array

    def places(self, first: Array, second: Array) -> Array:
        """The place of each piece (n,) int64; -1 for one that is not in the table."""
        places = np.full(first.size, -1, np.int64)
        slots = _slots(first, second, self.first.size)
        left = np.arange(first.size)
        for _ in range(PROBES):
            found = (self.first[slots] == first[left]) & (self.second[slots] == second[left])
            places[left[found]] = slots[found]
            left, slots = left[~found], slots[~found]
            if not left.size:
                break
            occupied = self.second[slots] != 0
            left, slots = left[occupied], (slots[occupied] + 1) & (self.first.size - 1)
        return places


class PieceEncoder:
    """Encodes blocks of texts as `tokenizer` does, which must split by GPT-2's pattern.

    Several threads may call `encode`; they share what they learn.
    """

    def __init__(self, tokenizer: BPETokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[bytes, bytes] = {}  # the tokens of a piece as uint32
        self._in_table = 0
        self._table = _table({})
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """The tokens of all texts, joined, and where each text ends in them."""
        if not all(texts):
            raise ValueError("an empty text has no place between two breaks")
        joined = "\0".join(texts)
        codes = _codes(joined)
        classes = _classes(codes)
        if classes is None:
            return self._encode_plainly(texts)
        breaks = np.cumsum([len(text) + 1 for text in texts]) - 1  # the last one is the end
        classes[breaks[:-1]] = BREAK
        starts = np.flatnonzero(_boundaries(codes, classes))
        raw = joined.encode()
        if len(raw) != len(joined):
            offsets = _byte_offsets(codes)
            starts, breaks = offsets[starts], offsets[breaks]
        at = np.searchsorted(starts, breaks)  # which pieces are breaks
        lengths = np.diff(starts, append=len(raw))
        lengths[at[:-1]] = 0
        tokens, counts = self._tokens_of(raw, starts, lengths)
        return tokens, np.cumsum(counts)[at - 1]

    def _tokens_of(self, raw: bytes, starts: Array, lengths: Array) -> tuple[Array, Array]:
        """The tokens of the pieces of `raw`, joined, and how many each piece has."""
        table = self._table
        first, second = _words(raw, starts, lengths)
        places = table.places(first, second)
        places[lengths > MOST_BYTES] = -1
        missed = np.flatnonzero((places < 0) & (lengths > 0))
        counts = table.counts[places]
        counts[lengths == 0] = 0
        others, counts[missed] = self._missed(raw, starts[missed], lengths[missed])
        ends = np.cumsum(counts)
        begins = ends - counts
        tokens = np.empty(int(ends[-1]) if ends.size else 0, self._tokenizer.format.dtype)
        has = np.flatnonzero((places >= 0) & (counts > 0))
        for i in range(MOST_TOKENS):
            tokens[begins[has] + i] = table.tokens[places[has], i]
            has = has[counts[has] > i + 1]
        before = np.cumsum(counts[missed]) - counts[missed]
        tokens[np.repeat(begins[missed] - before, counts[missed]) + np.arange(others.size)] = others
        return tokens, counts

    def _missed(self, raw: bytes, starts: Array, lengths: Array) -> tuple[Array, Array]:
        """The tokens of pieces that are not in the table, joined, and how many each has."""
        bounds = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
        pieces = [raw[start:end] for start, end in bounds]
        known = self._known
        unknown = [piece for piece in dict.fromkeys(pieces) if piece not in known]
        if unknown:
            new = dict(zip(unknown, self._encode_unknown(unknown), strict=True))
            tokens = [known.get(piece) or new[piece] for piece in pieces]
            if len(known) < MOST_PIECES:
                known.update(new)
                self._learn()
        else:
            tokens = [known[piece] for piece in pieces]
        return np.frombuffer(b"".join(tokens), np.uint32), np.array(list(map(len, tokens))) // 4

    def _encode_unknown(self, pieces: Sequence[bytes]) -> list[bytes]:
        """The tokens of pieces, as uint32: the short ones together, by tiktoken."""
        texts = [piece.decode() for piece in pieces]
        short = [text for text in texts if len(text) <= MOST_CHARACTERS_TOGETHER]
        ids, ends = self._tokenizer.encode_pieces(short) if short else ((), ())
        joined = np.asarray(ids, np.uint32).tobytes()
        bounds = pairwise([0, *(4 * np.asarray(ends, np.int64)).tolist()])
        together = iter([joined[start:end] for start, end in bounds])
        return [
            next(together)
            if len(text) <= MOST_CHARACTERS_TOGETHER
            else self._tokenizer.encode(text).astype(np.uint32).tobytes()
            for text in texts
        ]

    def _learn(self) -> None:
        """Make a new table if there are many pieces that the old one lacks."""
        count = len(self._known)
        is_last = count >= MOST_PIECES and count > self._in_table
        if not is_last and count <= 1.5 * self._in_table + 500:
            return
        if self._lock.acquire(blocking=False):
            try:
                known = dict(self._known)
                self._table, self._in_table = _table(known), len(known)
            finally:
                self._lock.release()

    def _encode_plainly(self, texts: Sequence[str]) -> tuple[Array, Array]:
        encoded = [self._tokenizer.encode(text) for text in texts]
        return np.concatenate(encoded), np.cumsum([tokens.size for tokens in encoded])


def _table(known: dict[bytes, bytes]) -> Table:
    """A table of the pieces that fit one; some are left out where too many share a place."""
    pieces = [
        piece
        for piece, tokens in known.items()
        if len(piece) <= MOST_BYTES and len(tokens) <= 4 * MOST_TOKENS
    ]
    size = 1 << (2 * len(pieces) + 1024).bit_length()
    table = Table(
        np.zeros(size, np.uint64),
        np.zeros(size, np.uint64),
        np.zeros(size, np.int64),
        np.zeros((size, MOST_TOKENS), np.uint32),
    )
    if not pieces:
        return table
    lengths = np.array(list(map(len, pieces)))
    first, second = _words(b"".join(pieces), np.cumsum(lengths) - lengths, lengths)
    counts = np.array([len(known[piece]) for piece in pieces]) // 4
    padded = b"".join(known[piece].ljust(4 * MOST_TOKENS, b"\0") for piece in pieces)
    tokens = np.frombuffer(padded, np.uint32).reshape(-1, MOST_TOKENS)
    left = np.arange(len(pieces))
    slots = _slots(first, second, size)
    for _ in range(PROBES):
        free = np.flatnonzero(table.second[slots] == 0)
        places, at = np.unique(slots[free], return_index=True)
        placed = free[at]
        table.first[places], table.second[places] = first[left[placed]], second[left[placed]]
        table.counts[places], table.tokens[places] = counts[left[placed]], tokens[left[placed]]
        rest = np.ones(left.size, bool)
        rest[placed] = False
        left, slots = left[rest], (slots[rest] + 1) & (size - 1)
    return table


def _words(raw: bytes, starts: Array, lengths: Array) -> tuple[Array, Array]:
    """The first 16 bytes of each piece as two uint64, with its length as the last byte."""
    words = np.frombuffer(raw + bytes(32 - len(raw) % 8), np.uint64)
    index, shift = starts >> 3, ((starts & 7) << 3).astype(np.uint64)
    low, middle, high = words[index], words[index + 1], words[index + 2]
    # A shift by 64 is undefined, so the shift to the left is made in two steps.
    rest = np.uint64(63) - shift
    first = (low >> shift) | ((middle << np.uint64(1)) << rest)
    second = (middle >> shift) | ((high << np.uint64(1)) << rest)
    first &= _MASKS[np.minimum(lengths, 8)]
    second &= _MASKS[np.clip(lengths - 8, 0, 7)]
    second |= np.minimum(lengths, 255).astype(np.uint64) << np.uint64(56)
    return first, second


def _slots(first: Array, second: Array, size: int) -> Array:
    mixed = (first * _ONE) ^ (second * _TWO)
    mixed ^= mixed >> np.uint64(29)
    mixed *= _ONE
    return (mixed >> np.uint64(64 - (size.bit_length() - 1))).astype(np.int64)


def _codes(text: str) -> Array:
    """The characters of `text` (n,) by number."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _classes(codes: Array) -> Array | None:
    """The class of each character (n,) uint8; None if one of them is UNKNOWN."""
    if codes.dtype == np.uint8:
        return np.frombuffer(bytearray(codes.tobytes().translate(_ascii_classes())), np.uint8)
    classes: Array = np.take(_all_classes(), codes, mode="clip")
    return None if (classes == UNKNOWN).any() else classes


@functools.cache
def _ascii_classes() -> bytes:
    return bytes(_class_of(code) for code in range(128)).ljust(256)


@functools.cache
def _all_classes() -> Array:
    classes = [_class_of(code) for code in range(KNOWN_CHARACTERS)]
    return np.array([*classes, UNKNOWN], np.uint8)


def _class_of(code: int) -> int:
    if code in WHITE_SPACE:
        return BLANK if code == 32 else WHITE
    category = unicodedata.category(chr(code))
    if category in ("Cn", "Cs"):
        return UNKNOWN
    return {"L": LETTER, "N": NUMBER}.get(category[0], OTHER)


def _starts_piece(before: int, here: int, *, sign_follows: bool) -> bool:
    """Whether GPT-2's pattern cuts between two characters, contractions aside.

    `sign_follows`: the character after them is no white space, and of the same text.
    """
    if BREAK in (before, here):
        return True
    if here in (WHITE, BLANK):
        # A run of white space is a piece; its last character begins another one if a sign follows.
        return before not in (WHITE, BLANK) or sign_follows
    if before in (WHITE, BLANK):
        return before == WHITE
    return before != here


@functools.cache
def _cuts() -> bytes:
    """`_starts_piece` as a table: index before * 16 + here * 2 + sign_follows."""
    return bytes(
        index < 128 and _starts_piece(index >> 4, index >> 1 & 7, sign_follows=bool(index & 1))
        for index in range(256)
    )


def _boundaries(codes: Array, classes: Array) -> Array:
    """Whether a piece starts at each character (n,) bool."""
    follows = np.zeros(classes.size, np.uint8)
    follows[:-1] = (classes[1:] - np.uint8(1)) < 3  # LETTER, NUMBER or OTHER; BREAK wraps around
    index = (classes << 1) | follows
    index[1:] |= classes[:-1] << 4
    starts = np.frombuffer(bytearray(index.tobytes().translate(_cuts())), bool)
    starts[:1] = True
    _join_contractions(codes, classes, starts)
    return starts


def _join_contractions(codes: Array, classes: Array, starts: Array) -> None:
    """'s, 't, 'll and so on are pieces where an apostrophe begins one."""
    at = np.flatnonzero((codes[:-1] == ord("'")) & (classes[1:] == LETTER))
    at = at[starts[at]]
    one, two = codes[at + 1], codes[np.minimum(at + 2, codes.size - 1)]
    short = np.isin(one, [ord(letter) for letter in "sdmt"])
    long = np.zeros(at.size, bool)
    for letters in ("ll", "ve", "re"):
        long |= (one == ord(letters[0])) & (two == ord(letters[1])) & (at + 2 < codes.size)
    starts[at[short | long] + 1] = False
    ends = np.concatenate([at[short] + 2, at[long] + 3])
    starts[ends[ends < codes.size]] = True


def _byte_offsets(codes: Array) -> Array:
    """Where each character begins in UTF-8, and the end (n + 1,)."""
    sizes = np.ones(codes.size, np.uint8)
    for limit in (0x7F, 0x7FF, 0xFFFF):
        sizes += codes > limit
    offsets = np.zeros(codes.size + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets
