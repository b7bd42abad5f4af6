"""The tokenizer that goes with a converted model, in the form that the target needs."""

from dataclasses import dataclass, replace

from cupygpt.config import BYTES_VOCAB, GPT2_VOCAB
from cupygpt.data import tokenizer_files
from cupygpt.data.hf_tokenizer import is_tokenizer_json
from cupygpt.data.tokenizer import check_vocab_size, default_tokenizer_spec, load_tokenizer
from cupygpt.data.tokenizer_files import GPT2_SPLIT, pattern_file
from cupygpt.data.vocabulary import BUILTIN_SHA256, Vocabulary
from cupygpt.errors import TokenizerError
from cupygpt.exchange.source import WeightSource
from cupygpt.files import user_path


@dataclass(frozen=True)
class NotedTokenizer:
    """For the note of a model file: the name of a tokenizer, or the content of its file.

    `split` is the content of the file with its split pattern, None for GPT-2's. `doubt` says
    why there is none, though the source has one.
    """

    name: str | None = None
    file: bytes | None = None
    split: bytes | None = None
    doubt: str | None = None


def noted_tokenizer(source: WeightSource, named: str | None, V: int) -> NotedTokenizer:
    """What a note says of the tokenizer: that of the flag (`named`), or else the source's own.

    Nothing is downloaded. Raises TokenizerError if the one of the flag has not V ids.
    """
    spec = named or source.tokenizer
    if spec is None and source.vocabulary is None:
        return NotedTokenizer()
    try:
        return _noted(source, spec, V)
    except TokenizerError as error:
        if named is not None:
            raise
        return NotedTokenizer(doubt=str(error))


def _noted(source: WeightSource, spec: str | None, V: int) -> NotedTokenizer:
    if spec in BUILTIN_SHA256:
        check_vocab_size(spec, {"bytes": BYTES_VOCAB, "gpt2": GPT2_VOCAB}[spec], V)
        return NotedTokenizer(name=spec)
    if spec is not None:
        tokenizer = load_tokenizer(spec)
        check_vocab_size(spec, tokenizer.vocab_size, V)
        content = tokenizer_files.read(user_path(spec))
        split = None if is_tokenizer_json(content) else _split_file(tokenizer.split)
        return NotedTokenizer(file=content, split=split)
    assert source.vocabulary is not None
    check_vocab_size("of the folder", len(source.vocabulary.tokens), V)
    split = _split_file(source.vocabulary.split)
    return NotedTokenizer(file=_rank_lines(source.vocabulary), split=split)


def _split_file(split: str) -> bytes | None:
    return None if split == GPT2_SPLIT else pattern_file(split)


def vocabulary_of(source: WeightSource, named: str | None, V: int) -> Vocabulary | None:
    """The vocabulary with its merges, of the same tokenizer, or else of the usual one for V ids.

    None if no tokenizer is known. A Hugging Face folder's own may have fewer than V ids, as other
    programs round V up; the rest are unused then. Raises TokenizerError for other numbers.
    """
    if named is None and source.vocabulary is not None:
        tokens = source.vocabulary.tokens
        if len(tokens) > V:
            check_vocab_size("of the folder", len(tokens), V)
        return replace(source.vocabulary, tokens=[*tokens, *(V - len(tokens)) * [b""]])
    spec = named or source.tokenizer or default_tokenizer_spec(V)
    if spec is None:
        return None
    vocabulary = load_tokenizer(spec).vocabulary()
    check_vocab_size(spec, len(vocabulary.tokens), V)
    return vocabulary


def sha256_of(source: WeightSource) -> str | None:
    """What identifies the tokenizer that a model was trained with; None if it is not known."""
    if source.vocabulary is not None:
        return source.vocabulary.sha256
    if source.tokenizer is None or source.tokenizer in BUILTIN_SHA256:
        return BUILTIN_SHA256.get(str(source.tokenizer))
    try:
        return load_tokenizer(source.tokenizer).sha256
    except TokenizerError:
        return None  # its file is not there any more


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
    return tokenizer_files.rank_lines(ranks)
