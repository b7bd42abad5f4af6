"""Tokenizers: text to ids and back. GPT-2's, bytes, and files of tiktoken, Hugging Face and llm.c.

tiktoken is imported only when it is needed.
"""

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cupygpt.config import BYTES_VOCAB, GPT2_VOCAB
from cupygpt.data import tokenizer_files
from cupygpt.data.gpt2_bpe import load_encoding
from cupygpt.data.hf_tokenizer import is_tokenizer_json, parse_tokenizer_json
from cupygpt.data.token_files import Tokens
from cupygpt.data.token_format import TokenFormat, format_for
from cupygpt.data.tokenizer_files import GPT2_SPLIT, pattern_path, read_pattern
from cupygpt.data.vocabulary import (
    END_OF_TEXT,
    GPT2_SHA256,
    Vocabulary,
    from_ranks,
    vocabulary_sha256,
)
from cupygpt.errors import TokenizerError
from cupygpt.files import user_path

if TYPE_CHECKING:
    import tiktoken

# What Unicode calls White_Space, as \\s does in Rust; in Python, \\s is more than that.
BLANKS = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
LONG_BLANKS = re.compile(f"[{BLANKS}]{{10000,}}")


LEARN = "bpe:"
"""What a size follows of a vocabulary that is to be learnt: no tokenizer yet."""


class Tokenizer(ABC):
    """Text to token ids and back.

    `name` is what `load_tokenizer` was given; `vocab_size` the number of ids; `eot` the id that
    separates documents; `file` the file that the tokenizer was read from, or None for gpt2 and
    bytes; `split` the pattern that splits text before it is encoded; `note` what a person who
    encodes text should know, or None.
    """

    split = GPT2_SPLIT
    note: str | None = None

    def __init__(
        self, name: str, table: Sequence[bytes], eot: int, file: Path | None = None
    ) -> None:
        self.name = name
        self.vocab_size = len(table)
        self.eot = eot
        self.file = file
        self._table = table

    @functools.cached_property
    def sha256(self) -> str:
        """What identifies the vocabulary (`vocabulary_sha256`).

        GPT-2's BPE has the same in all its forms.
        """
        return vocabulary_sha256(self._table, self.eot, self.split)

    def vocabulary(self) -> Vocabulary:
        """The vocabulary with its merges, as other programs need it.

        Raises TokenizerError if it has no merges.
        """
        return from_ranks(self.name, self._table, self.eot, self.split)

    @property
    def format(self) -> TokenFormat:
        """How token files hold the ids; `encode` returns them in its dtype."""
        return format_for(self.vocab_size)

    def text_bytes(self, ids: Tokens) -> int:
        """The bytes of text that `ids` (n,) stand for; end of text counts none."""
        counts = np.bincount(ids, minlength=self.vocab_size)
        return int(counts @ self.text_lengths)

    @functools.cached_property
    def text_lengths(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) the bytes of text that each id stands for; end of text counts none."""
        lengths = np.array([len(token) for token in self._table], np.int64)
        lengths[self.eot] = 0
        return lengths

    @abstractmethod
    def encode(self, text: str) -> Tokens:
        """The ids (n,) of ordinary text; `<|endoftext|>` in it is text like any other.

        Half of a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD. Raises TokenizerError
        if this tokenizer can only decode.
        """

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; `eot` gives `<|endoftext|>`, an unused id nothing.

        Raises TokenizerError for an id outside [0, vocab_size).
        """
        return b"".join(map(self._bytes_of, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def _bytes_of(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise TokenizerError(
                f"token id {token} is not in the vocabulary of tokenizer {self.name} "
                f"({self.vocab_size:,} ids). Name the tokenizer of the data with --tokenizer."
            )
        return self._table[token]


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8 text, 256 is end of text; V = 257. Needs no files."""

    def __init__(self) -> None:
        super().__init__("bytes", [*(bytes([i]) for i in range(256)), END_OF_TEXT], 256)

    def text_bytes(self, ids: Tokens) -> int:
        """All ids but those of end of text are a byte."""
        return int(np.count_nonzero(ids < self.eot))

    def encode(self, text: str) -> Tokens:
        """One id per byte of UTF-8."""
        return np.frombuffer(_encodable(text).encode(), np.uint8).astype(np.uint16)


class BPETokenizer(Tokenizer):
    """Byte-pair encoding by tiktoken."""

    def __init__(
        self,
        name: str,
        encoding: "tiktoken.Encoding",
        file: Path | None = None,
        split: str = GPT2_SPLIT,
    ) -> None:
        self.split = split
        table = [_token_bytes(encoding, token) for token in range(encoding.n_vocab)]
        super().__init__(name, table, encoding.eot_token, file)
        self._encoding = encoding

    def encode(self, text: str) -> Tokens:
        """BPE tokens of the text; the id of end of text never occurs."""
        text = _encodable(text)
        if self.split != GPT2_SPLIT:
            return self._encode_whole(text)
        parts = [self._encode_part(part) for part in split_at_long_blanks(text)]
        return np.array([token for part in parts for token in part], self.format.dtype)

    def encode_pieces(self, pieces: Sequence[str]) -> tuple[Tokens, npt.NDArray[np.int64]]:
        """The ids of many short texts, joined, and where each text ends, by one call of tiktoken.

        None of them may hold the text `<|endoftext|>`, which stands between them here.
        """
        end = END_OF_TEXT.decode()
        ids = np.array(self._encoding.encode(end.join(pieces), allowed_special={end}))
        is_end = ids == self.eot
        ends = np.append(np.flatnonzero(is_end), ids.size) - np.arange(len(pieces))
        return ids[~is_end].astype(self.format.dtype), ends

    def _encode_whole(self, text: str) -> Tokens:
        """Encode by a pattern that may leave out parts of a text, which is refused."""
        ids = np.array(self._encode_part(text), self.format.dtype)
        missing = len(text.encode()) - self.text_bytes(ids)
        if missing:
            raise TokenizerError(
                f"tokenizer {self.name}: its split pattern leaves out {missing:,} bytes of a text "
                f"that begins with {text[:40]!r}. Correct the pattern: it must match every "
                f"character."
            )
        return ids

    def _encode_part(self, text: str) -> list[int]:
        try:
            return self._encoding.encode_ordinary(text)
        except BaseException as error:
            # A panic of tiktoken's Rust code is no Exception.
            if type(error).__name__ != "PanicException":
                raise
            raise TokenizerError(
                f"tiktoken failed ({error}) on a text of {len(text):,} characters that begins with "
                f"{text[:40]!r}. Break the text into lines, or use --tokenizer bytes."
            ) from error


def split_at_long_blanks(text: str) -> Iterator[str]:
    """Parts of `text` that are tokenised like the whole, each with few blanks before a non-blank.

    tiktoken looks for the last of all blanks before a word by stepping back from each of them, and
    fails when there are some 10**6. GPT-2's pattern makes all of them but the last one piece of
    text, and that last one begins the next piece, so the text can be cut around that piece.
    """
    done = 0
    for run in LONG_BLANKS.finditer(text):
        last = run.end() if run.end() == len(text) else run.end() - 1
        for end in (run.start(), last):
            if end > done:
                yield text[done:end]
                done = end
    if done < len(text):
        yield text[done:]


class DecodeOnlyTokenizer(Tokenizer):
    """llm.c's tokenizer.bin: the bytes of each id, without the merges that encoding needs."""

    def encode(self, text: str) -> Tokens:
        """Always raises TokenizerError."""
        raise TokenizerError(
            f"{self.name}: a tokenizer of llm.c holds no merges, so it can decode but not encode "
            f"{text[:20]!r}. Use --tokenizer gpt2 or a .tiktoken file."
        )

    def vocabulary(self) -> Vocabulary:
        """GPT-2's, if these are its bytes; else raises TokenizerError."""
        if self.sha256 != GPT2_SHA256:
            raise TokenizerError(
                f"{self.name}: a tokenizer of llm.c holds no merges, which other programs need. "
                f"Name the .tiktoken file that it was made from with --tokenizer."
            )
        return super().vocabulary()


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer named by `spec`: "gpt2", "bytes", or the path of a file.

    gpt2: GPT-2's BPE, V = 50257, end of text 50256, from tiktoken's cache or the network.
    A `.tiktoken` file (lines of base64 token and rank): V = highest rank + 2, and the last id is
    end of text. Text is split by the pattern in the file beside it, or else by GPT-2's.
    Hugging Face's tokenizer.json, if it is GPT-2's BPE with other merges.
    llm.c's tokenizer.bin, recognised by its magic number or its name: decoding only.

    Raises TokenizerError that says what is missing or damaged, and what to do instead.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if spec == "gpt2":
        return BPETokenizer("gpt2", load_encoding())
    path = user_path(spec)
    if spec.startswith(LEARN) and not path.exists():
        raise TokenizerError(
            f"{spec} asks python -m cupygpt.prepare to learn a vocabulary from a text. Here name "
            f"the .tiktoken file that it wrote."
        )
    content = tokenizer_files.read(path)
    if path.suffix == ".bin" or tokenizer_files.is_llmc(content):
        return DecodeOnlyTokenizer(spec, *tokenizer_files.parse_llmc(path, content), path)
    if is_tokenizer_json(content):
        vocabulary = parse_tokenizer_json(path, content)
        return _bpe_from_ranks(spec, vocabulary.ranks(), vocabulary.eot, path, vocabulary.split)
    ranks = tokenizer_files.parse_ranks(path, content)
    split = read_pattern(path)
    tokenizer = _bpe_from_ranks(
        spec, ranks, max(ranks.values()) + 1, path, GPT2_SPLIT if split is None else split
    )
    if split is None:
        tokenizer.note = (
            f"{path} says nothing of how text is split before it is encoded, and there is no "
            f"{pattern_path(path).name} beside it: GPT-2's pattern is used"
        )
    return tokenizer


def default_tokenizer_spec(V: int) -> str | None:
    """The tokenizer that a vocabulary of V ids suggests: "bytes", "gpt2" or None."""
    return {BYTES_VOCAB: "bytes", GPT2_VOCAB: "gpt2"}.get(V)


def load_tokenizer_for(V: int, spec: str | None) -> Tokenizer:
    """The tokenizer `spec`, or the usual one for V ids. Raises TokenizerError unless it has V."""
    spec = spec or default_tokenizer_spec(V)
    if spec is None:
        raise TokenizerError(
            f"no tokenizer is known for a vocabulary of {V:,}; pass --tokenizer FILE."
        )
    tokenizer = load_tokenizer(spec)
    check_vocab_size(spec, tokenizer.vocab_size, V)
    return tokenizer


def check_vocab_size(name: str, vocab_size: int, V: int) -> None:
    """Raise TokenizerError unless the tokenizer `name` has as many ids as the model."""
    if vocab_size != V:
        raise TokenizerError(
            f"the tokenizer {name} has {vocab_size:,} ids, but the model {V:,}. Name the one that "
            f"it was trained with: --tokenizer gpt2, bytes or a file."
        )


def _bpe_from_ranks(
    name: str, ranks: dict[bytes, int], eot: int, file: Path, split: str
) -> Tokenizer:
    import tiktoken

    try:
        encoding = tiktoken.Encoding(
            name,
            pat_str=split,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT.decode(): eot},
        )
    except ValueError as error:
        raise TokenizerError(
            f"tokenizer {name}: tiktoken cannot use its split pattern ({error}). Patterns are "
            f"written as in Rust's regex and fancy-regex."
        ) from error
    return BPETokenizer(name, encoding, file, split)


def _token_bytes(encoding: "tiktoken.Encoding", token: int) -> bytes:
    """The bytes of a token id; none if no token has this id."""
    try:
        return encoding.decode_single_token_bytes(token)
    except KeyError:
        return b""


def _encodable(text: str) -> str:
    """`text` with lone surrogates replaced, as tiktoken does; UTF-8 cannot hold them."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
