"""The tokenizer that goes with a converted model, in the form that the target needs."""

import base64
from dataclasses import dataclass

from cupygpt.data import tokenizer_files
from cupygpt.data.tokenizer import default_tokenizer_spec, load_tokenizer
from cupygpt.data.vocabulary import Vocabulary
from cupygpt.errors import TokenizerError
from cupygpt.exchange.source import WeightSource
from cupygpt.files import user_path

BUILTIN = ("gpt2", "bytes")


@dataclass(frozen=True)
class NotedTokenizer:
    """For the note of a model file: the name of a tokenizer, or the content of its file."""

    name: str | None = None
    file: bytes | None = None


def noted_tokenizer(source: WeightSource, named: str | None, V: int) -> NotedTokenizer:
    """What a note says of the tokenizer: that of the flag (`named`), or else the source's own.

    Nothing is downloaded. Raises TokenizerError unless it has V ids.
    """
    spec = named or source.tokenizer
    if spec in BUILTIN:
        if default_tokenizer_spec(V) != spec:
            raise _another_size(spec, "another number of ids", V)
        return NotedTokenizer(name=spec)
    if spec is None and source.vocabulary is not None:
        _check_size("the folder's own", len(source.vocabulary.tokens), V)
        return NotedTokenizer(file=_rank_lines(source.vocabulary))
    if spec is None:
        return NotedTokenizer()
    _check_size(spec, load_tokenizer(spec).vocab_size, V)
    return NotedTokenizer(file=tokenizer_files.read(user_path(spec)))


def vocabulary_of(source: WeightSource, named: str | None, V: int) -> Vocabulary | None:
    """The vocabulary with its merges, of the same tokenizer, or else of the usual one for V ids.

    None if no tokenizer is known. Raises TokenizerError unless it has V ids.
    """
    if named is None and source.vocabulary is not None:
        vocabulary = source.vocabulary
    else:
        spec = named or source.tokenizer or default_tokenizer_spec(V)
        if spec is None:
            return None
        vocabulary = load_tokenizer(spec).vocabulary()
    _check_size(named or source.tokenizer or "the usual", len(vocabulary.tokens), V)
    return vocabulary


def is_guessed(source: WeightSource, named: str | None) -> bool:
    """Whether `vocabulary_of` goes by the number of ids alone."""
    return named is None and source.vocabulary is None and source.tokenizer is None


def _rank_lines(vocabulary: Vocabulary) -> bytes:
    """The content of a `.tiktoken` file, in which end of text is the id after the last one."""
    ranks = vocabulary.ranks()
    if vocabulary.eot != max(ranks.values()) + 1:
        raise TokenizerError(
            f"end of text is id {vocabulary.eot:,}, but a .tiktoken file cannot say so: there it "
            f"follows the last one. Save the tokenizer with transformers, which writes a "
            f"tokenizer.json."
        )
    return b"".join(b"%s %d\n" % (base64.b64encode(token), i) for token, i in ranks.items())


def _check_size(name: str, size: int, V: int) -> None:
    if size != V:
        raise _another_size(name, f"{size:,} ids", V)


def _another_size(name: str, size: str, V: int) -> TokenizerError:
    return TokenizerError(
        f"the tokenizer {name} has {size}, but the model {V:,}. Name the one that it was trained "
        f"with: --tokenizer gpt2, bytes or a file."
    )
