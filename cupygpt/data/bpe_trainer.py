"""Byte-pair encoding: which pairs of tokens to join, learnt from counted pieces of text.

Sennrich et al. 2016 (arXiv:1508.07909), on bytes as in GPT-2. All distinct pieces lie one after the
other in one array of symbols, in which each symbol knows its neighbours. A merge takes the places
of one pair, joins them all at once, and changes the counts of the pairs around them.

The merges are those of the package `tokenizers`: the most frequent pair comes first; of equally
frequent ones that with the smallest left id, then with the smallest right id; single bytes have
GPT-2's ids.
"""

import heapq
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cupygpt.data.tokenizer_files import LONGEST_TOKEN
from cupygpt.data.vocabulary import byte_alphabet

FEWEST_TIMES = 2
"""A pair that occurs less often is no pair to learn."""

Places: TypeAlias = npt.NDArray[np.int32]
Keys: TypeAlias = npt.NDArray[np.int64]

_ID_BITS = 20
_KEY_BITS = 2 * _ID_BITS
_HIGHEST = 1 << 62


def learn_tokens(
    counts: Mapping[str, int],
    num_merges: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[bytes]:
    """The tokens in the order of their ids: the 256 bytes, then the results of the merges.

    `counts` says how often each piece of text occurs; no token reaches over its end. There are
    fewer merges than asked for if no pair occurs twice any more. `report` is called with the number
    of merges after each of them.
    """
    alphabet = byte_alphabet()
    tokens = [bytes([byte]) for byte in sorted(range(256), key=lambda byte: alphabet[byte])]
    pieces = _Pieces(counts, tokens)
    while len(tokens) < 256 + num_merges and (pair := pieces.most_frequent()) is not None:
        left, right = pair
        token = tokens[left] + tokens[right]
        if len(token) <= LONGEST_TOKEN:
            pieces.merge(left, right, len(tokens))
            tokens.append(token)
            report(len(tokens) - 256)
    return tokens


class _Pieces:
    """The symbols of all pieces, and the pairs of neighbours that they hold.

    The last place is none of a piece: it stands for the neighbour of a symbol that has none. A
    symbol that was joined to its left neighbour becomes -1.

    The number of places of a pair never rises after the merge that made the newer of its two ids.
    So a pair is counted then, once and for all, with all its places; `_made` keeps these places by
    that id. A heap holds the pairs by their count; a count that has fallen since is corrected when
    its pair comes up.
    """

    def __init__(self, counts: Mapping[str, int], single_bytes: list[bytes]) -> None:
        pieces = [piece.encode() for piece in counts]
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        text = np.frombuffer(b"".join(pieces), np.uint8)
        del pieces
        self._none = len(text)
        id_of = np.empty(256, np.int32)
        for number, byte in enumerate(single_bytes):
            id_of[byte[0]] = number
        self._symbols = np.append(id_of[text], np.int32(-1))
        self._weights: Places = np.repeat(np.array(list(counts.values()), np.int32), lengths)
        places = np.arange(len(text) + 1, dtype=np.int32)
        self._left, self._right = places - 1, places + 1
        ends = np.cumsum(lengths)
        self._right[ends[lengths > 0] - 1] = self._none
        self._left[(ends - lengths)[lengths > 0]] = self._none
        self._counts: dict[int, int] = {}
        self._heap: list[int] = []
        self._made: dict[int, tuple[Keys, Places, Places]] = {}
        first = places[:-1][self._right[:-1] != self._none]
        self._add(0, first)

    def most_frequent(self) -> tuple[int, int] | None:
        """The pair to merge next, which is forgotten; None if none occurs often enough."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            key = entry & ((1 << _KEY_BITS) - 1)
            count = self._counts.get(key, 0)
            if count < FEWEST_TIMES:
                self._counts.pop(key, None)
            elif entry != _entry(key, count):
                heapq.heappush(self._heap, _entry(key, count))
            else:
                del self._counts[key]
                return key >> _ID_BITS, key & ((1 << _ID_BITS) - 1)
        return None

    def merge(self, left: int, right: int, new: int) -> None:
        """Join all places of a pair, from left to right, into the symbol `new`."""
        first = self._places(left, right)
        second = self._right[first]
        before, after = self._left[first], self._right[second]
        # Between two neighbouring places of the pair there is one pair, which must count once.
        apart = np.ones(len(first), bool)
        apart[1:] = before[1:] != second[:-1]
        has_before, has_after = apart & (before != self._none), after != self._none
        self._subtract(np.concatenate([before[has_before], second[has_after]]))
        self._symbols[first], self._symbols[second] = new, -1
        self._right[first], self._left[after] = after, first
        self._add(new, np.concatenate([before[has_before], first[has_after]]))

    def _places(self, left: int, right: int) -> Places:
        """Where the pair stands, in order, without those that share a symbol with one before."""
        newer = max(left, right)
        keys, ends, places = self._made[newer if newer > 255 else 0]
        at = int(np.searchsorted(keys, left << _ID_BITS | right))
        first = places[ends[at - 1] if at else 0 : ends[at]]
        first = first[self._symbols[first] == left]
        first = np.sort(first[self._symbols[self._right[first]] == right])
        if left == right and len(first) > 1:
            # In a run of the same symbol every second place is a beginning.
            starts = np.ones(len(first), bool)
            starts[1:] = self._right[first[:-1]] != first[1:]
            number = np.arange(len(first))
            run_start = np.maximum.accumulate(np.where(starts, number, 0))
            first = first[(number - run_start) % 2 == 0]
        return first

    def _subtract(self, first: Places) -> None:
        """Take the pairs that begin at these places out of the counts."""
        keys, _, times, _ = self._grouped(first)
        counts = self._counts
        for key, number in zip(keys.tolist(), times.tolist(), strict=True):
            if key in counts:
                counts[key] -= number

    def _add(self, new: int, first: Places) -> None:
        """Count the pairs that begin at these places; all of them hold the id `new`."""
        keys, ends, times, first = self._grouped(first)
        for key, number in zip(keys.tolist(), times.tolist(), strict=True):
            if number >= FEWEST_TIMES:
                self._counts[key] = number
                heapq.heappush(self._heap, _entry(key, number))
        self._made[new] = keys, ends, first

    def _grouped(self, first: Places) -> tuple[Keys, Places, Keys, Places]:
        """The pairs that begin at these places, and the places sorted by pair.

        Returns each pair as one number, where its places end, how often it occurs in the text, and
        the places.
        """
        left = self._symbols[first].astype(np.int64)
        keys = left << _ID_BITS | self._symbols[self._right[first]]
        order = np.argsort(keys, kind="stable")
        keys, first = keys[order], first[order]
        is_last = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=is_last[:-1])
        last = np.flatnonzero(is_last)
        times = np.cumsum(self._weights[first], dtype=np.int64)[last]
        times[1:] -= times[:-1].copy()
        return keys[last], (last + 1).astype(np.int32), times, first


def _entry(key: int, count: int) -> int:
    """A number for the heap: the smallest is the most frequent pair, and of these the lowest."""
    return (_HIGHEST - count) << _KEY_BITS | key
