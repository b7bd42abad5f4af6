"""`--tokenizer bpe:4096`: a vocabulary that is learnt from the text itself.

The text to learn from is the part that is for training, or an even share of it: from some hundred
megabytes on more text hardly changes the tokens. Memory follows the number of different pieces of
text, not the size of the text, and is bounded.
"""

import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cupygpt.config import MAX_VOCAB
from cupygpt.data.bpe_trainer import learn_tokens
from cupygpt.data.token_record import unfinished
from cupygpt.data.tokenizer import LEARN, Tokenizer, load_tokenizer
from cupygpt.data.tokenizer_files import GPT2_SPLIT, pattern_file, pattern_path, rank_lines
from cupygpt.errors import ConfigError
from cupygpt.files import atomic_write
from cupygpt.texts.reading.documents import Piece

Say: TypeAlias = Callable[[str], None]

AUTO = "auto"
FEWEST_IDS = 258
"""The 256 bytes, one merge, and end of text."""

IDS_OF_THE_ROOT = 4
SMALLEST_PROPOSED, LARGEST_PROPOSED = 512, 32_768
"""bpe:auto takes so many times the root of the bytes of text, to the nearest power of two. The
number of different words of a text grows about like the root of its length (Heaps' law), and of a
megabyte 4,096 ids were better than 1,024, bytes, and the 50,257 of GPT-2."""

MOST_TEXT_BYTES = 2**27
MOST_PIECES = 2**20
MOST_PIECE_BYTES = 2**23
"""So much text is learnt from; so many different pieces of it, of so many bytes together, are kept.
Of more the rarest are left out."""

BLOCK_CHARACTERS = 2**20
REPORT_S = 10.0


def is_own(spec: str | None) -> bool:
    """Whether the name of a tokenizer asks for a vocabulary to be learnt."""
    return spec is not None and spec.startswith(LEARN)


def check_own(spec: str | None, *, has_text: bool) -> None:
    """Raise ConfigError if a vocabulary is to be learnt of an impossible size, or without text."""
    if spec is None or not is_own(spec):
        return
    _size_asked(spec)
    if not has_text:
        raise ConfigError(
            f"--tokenizer {spec} learns from text, but --headerless files hold token ids. Name the "
            f"tokenizer that they were made with."
        )


def _size_asked(spec: str) -> int | None:
    """The number of ids that `bpe:4096` asks for; None for bpe:auto. Raises ConfigError."""
    size = spec.removeprefix(LEARN)
    if size == AUTO:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", size) or not FEWEST_IDS <= int(size) <= MAX_VOCAB:
        raise ConfigError(
            f"--tokenizer {spec}: write {LEARN}4096 for a vocabulary of 4,096 ids ({FEWEST_IDS} "
            f"to {MAX_VOCAB:,}), or {LEARN}{AUTO}."
        )
    return int(size)


@dataclass
class TrainingText:
    """Documents for training, in pieces; of each the last `held_out` (a share) is for validation.

    `num_bytes` is their size as far as it is known; of more than MOST_TEXT_BYTES an even share is
    taken.
    """

    pieces: Iterable[Piece]
    num_bytes: int
    held_out: float = 0.0
    taken: int = 0
    """Bytes that `blocks` has given so far."""

    @property
    def share(self) -> float:
        """The share of the text that is looked at."""
        return min(1.0, MOST_TEXT_BYTES / max(self.num_bytes, 1))

    def blocks(self) -> Iterator[str]:
        """The text to learn from."""
        document = _Document(self.held_out)
        seen = looked_at = 0
        for piece in self.pieces:
            if piece is None:
                yield from self._counted(document.end())
                document = _Document(self.held_out)
                continue
            size = len(piece.encode())
            take = looked_at <= self.share * seen < MOST_TEXT_BYTES
            seen += size
            looked_at += size * take
            yield from self._counted(document.add(piece, size, take=take))
        yield from self._counted(document.end())

    def _counted(self, blocks: Iterable[str]) -> Iterator[str]:
        for block in blocks:
            self.taken += len(block.encode())
            yield block


class _Document:
    """One document, of which `add` and `end` give what is not of its end, once that is known."""

    def __init__(self, held_out: float) -> None:
        self._train_share = 1.0 - held_out
        self._waiting: deque[tuple[str, int]] = deque()
        self._seen = 0

    def add(self, piece: str, size: int, *, take: bool) -> Iterator[str]:
        """Another piece of `size` bytes; those that are not to be taken only count."""
        self._seen += size
        if take:
            self._waiting.append((piece, self._seen))
        # However long the document becomes, what ends so early does not belong to its end.
        while self._waiting and self._waiting[0][1] <= self._train_share * self._seen:
            yield self._waiting.popleft()[0]

    def end(self) -> Iterator[str]:
        """No piece follows."""
        for piece, end in self._waiting:
            size = len(piece.encode())
            share = 1.0 - (end - self._train_share * self._seen) / size
            if share > 0:
                yield piece[: int(share * len(piece))]


def train_tokenizer(spec: str, text: TrainingText, path: Path, say: Say) -> Tokenizer:
    """Learn the vocabulary that `spec` asks for, write it, and load it; it will be called `path`.

    Until the token files are complete too, it is called `unfinished(path)`: those of an earlier run
    need their own. Its split pattern is GPT-2's, and lies in the file beside it. `say` gets
    remarks, and a line now and then while it takes long. Raises ConfigError for a spec that asks
    for no possible size, RunError if the files cannot be written.
    """
    asked = _size_asked(spec)
    counts = _count_pieces(text, say)
    if asked is None:
        size = int(text.taken / text.share)
        asked = proposed_size(size)
        say(
            f"{spec}: {asked:,} ids for {size:,} bytes of text for training: about "
            f"{IDS_OF_THE_ROOT} times the root of the bytes, because the number of different words "
            f"grows like it ({SMALLEST_PROPOSED} to {LARGEST_PROPOSED:,}, a power of two)"
        )
    tokens = learn_tokens(counts, asked - 257, _Progress("merge", asked - 257, say))
    now = unfinished(path)
    with atomic_write(pattern_path(now)) as file:
        file.write(pattern_file(GPT2_SPLIT))
    with atomic_write(now) as file:
        file.write(rank_lines({token: rank for rank, token in enumerate(tokens)}))
    V = len(tokens) + 1
    if asked > V:
        say(
            f"no two tokens that stand side by side do so twice any more: {V:,} ids instead of "
            f"{asked:,}"
        )
    share = "" if text.share == 1.0 else f" (an even share, {100 * text.share:.2g} %)"
    say(
        f"{path}: {V:,} ids (256 bytes, {V - 257:,} merge{'s' * (V != 258)}, end of text), learnt "
        f"from {text.taken:,} bytes of the text for training{share}"
    )
    tokenizer = load_tokenizer(str(now))
    tokenizer.name = str(path)
    return tokenizer


def proposed_size(text_bytes: int) -> int:
    """How many ids suit a text of so many bytes."""
    power = round(math.log2(IDS_OF_THE_ROOT * math.sqrt(max(text_bytes, 1))))
    return int(min(max(1 << power, SMALLEST_PROPOSED), LARGEST_PROPOSED))


def _count_pieces(text: TrainingText, say: Say) -> Counter[str]:
    """How often each piece occurs into which GPT-2's pattern splits the text."""
    import regex

    find = regex.compile(GPT2_SPLIT).findall
    counts: Counter[str] = Counter()
    progress = _Progress("bytes of text counted", text.num_bytes, say)
    new_bytes, rare = 0, False
    for block in text.blocks():
        for part in _cut(block):
            counts.update(find(part))
            new_bytes += len(part)
            if len(counts) > 2 * MOST_PIECES or new_bytes > 2 * MOST_PIECE_BYTES:
                rare |= _drop_rarest(counts)
                new_bytes = sum(map(len, counts))
        progress(text.taken)
    rare |= _drop_rarest(counts)
    if rare:
        say(
            f"the text has so many different words that the rarest were left out: {len(counts):,} "
            f"are kept, to save memory"
        )
    return counts


def _cut(block: str) -> Iterator[str]:
    """A block in parts of bounded size, each up to a line feed if there is one."""
    start = 0
    while start < len(block):
        end = start + BLOCK_CHARACTERS
        if end < len(block):
            end = max(block.rfind("\n", start + 1, end), 0) or end
        yield block[start:end]
        start = end


def _drop_rarest(counts: Counter[str]) -> bool:
    """Drop what is over the limits, the rarest pieces first; returns whether there was any."""
    before, room = len(counts), MOST_PIECE_BYTES
    if before <= MOST_PIECES and sum(len(piece.encode()) for piece in counts) <= room:
        return False
    kept = {}
    for piece, count in counts.most_common(MOST_PIECES):
        room -= len(piece.encode())
        if room < 0:
            break
        kept[piece] = count
    counts.clear()
    counts.update(kept)
    return len(kept) < before


class _Progress:
    """Says how far a long piece of work is, every ten seconds."""

    def __init__(self, what: str, total: int, say: Say) -> None:
        self._what, self._total, self._say = what, total, say
        self._next = time.monotonic() + REPORT_S

    def __call__(self, done: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REPORT_S
        self._say(f"learning the vocabulary: {self._what} {done:,} of {self._total:,}")
