"""A vocabulary as other programs store it: GPT-2's byte alphabet, and merges instead of ranks.

tiktoken gives each token a rank and joins the pair of neighbours whose join has the lowest one.
Hugging Face and llama.cpp keep a list of merges and apply them in its order. In a vocabulary that
was made by BPE training a part ranks below the whole, so both visit the same states, and each form
follows from the other.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cupygpt.data.tokenizer_files import GPT2_SPLIT
from cupygpt.errors import TokenizerError

END_OF_TEXT = b"<|endoftext|>"

Merge = tuple[bytes, bytes]

GPT2_SHA256 = "c7a3751296701f3d24b48ac98ac4d6f3f2bb2b49601553ce8644eacc284bff32"
BYTES_SHA256 = "b5297166ef36ea2def7c7ebefa7248f31a0b5c54c951928bad1ace1b2a661822"
BUILTIN_SHA256 = {"gpt2": GPT2_SHA256, "bytes": BYTES_SHA256}
"""`vocabulary_sha256` of the two vocabularies that need no file."""


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of each id (none for an unused one), the id of end of text, and the merges.

    `split` is the pattern that splits text before it is encoded.
    """

    tokens: Sequence[bytes]
    eot: int
    merges: Sequence[Merge]
    split: str = GPT2_SPLIT

    @property
    def sha256(self) -> str:
        """What identifies it (`vocabulary_sha256`)."""
        return vocabulary_sha256(self.tokens, self.eot, self.split)

    @property
    def builtin_name(self) -> str | None:
        """The name of the tokenizer if it is "gpt2" or "bytes", else None."""
        return {sha256: name for name, sha256 in BUILTIN_SHA256.items()}.get(self.sha256)

    def ranks(self) -> dict[bytes, int]:
        """The rank of each token but end of text, as a `.tiktoken` file holds them."""
        return {t: i for i, t in enumerate(self.tokens) if t and i != self.eot}


def vocabulary_sha256(tokens: Iterable[bytes], eot: int, split: str = GPT2_SPLIT) -> str:
    """What identifies a vocabulary, whatever the tokenizer or its file is called.

    The SHA-256 of the bytes of each id, each preceded by their number, of the id of end of text,
    and of a split pattern other than GPT-2's.
    """
    digest = hashlib.sha256()
    for token in tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    digest.update(eot.to_bytes(4, "little"))
    if split != GPT2_SPLIT:
        digest.update(split.encode())
    return digest.hexdigest()


def from_ranks(name: str, tokens: Sequence[bytes], eot: int, split: str = GPT2_SPLIT) -> Vocabulary:
    """The vocabulary whose ids are ranks. Raises TokenizerError unless BPE training made it."""
    ranks = {token: i for i, token in enumerate(tokens) if token and i != eot}
    if END_OF_TEXT in ranks:
        raise TokenizerError(
            f"tokenizer {name}: {END_OF_TEXT.decode()} is an ordinary token there (id "
            f"{ranks[END_OF_TEXT]:,}) besides end of text (id {eot:,}). Other programs know a "
            f"token by its text and could not tell the two apart."
        )
    merges = [_parts(name, token, ranks) for token in ranks if len(token) > 1]
    return Vocabulary(tokens, eot, merges, split)


def _parts(name: str, token: bytes, ranks: dict[bytes, int]) -> Merge:
    """The two tokens of which BPE joins `token`, found by joining its bytes by lower ranks."""
    parts = [token[i : i + 1] for i in range(len(token))]
    highest = ranks[token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, highest) for a, b in pairwise(parts)]
        lowest = min(joined)
        if lowest >= highest:
            break
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2 or any(ranks.get(part, highest) >= highest for part in parts if part):
        _refuse_unreachable(name, token, highest)
    return parts[0], parts[1]


def _refuse_unreachable(name: str, token: bytes, rank: int) -> None:
    raise TokenizerError(
        f"tokenizer {name}: the token {token!r} (id {rank:,}) is no join of two tokens of lower "
        f"ids. The file was not made by BPE training, so there is no list of merges for it, which "
        f"other programs need."
    )


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabulary files (openai/gpt-2).

    Bytes that print stand for themselves. The others follow at U+0100, in ascending order: the
    blank is U+0120, the newline U+010A.
    """
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte if byte in prints else next(rest)) for byte in range(256)]


_CHARACTERS = byte_alphabet()
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


def in_alphabet(token: bytes) -> str:
    """The text of a token in the vocabulary files: a character for each byte."""
    return "".join(_CHARACTERS[byte] for byte in token)


def from_alphabet(text: str) -> bytes:
    """The bytes for which the characters stand. Raises KeyError for one that stands for none."""
    return bytes(_BYTES[character] for character in text)
