"""Tokenizer files of Hugging Face: tokenizer.json, or vocab.json with merges.txt.

Read if they mean GPT-2's byte-level BPE. Then the ids are the ranks of a `.tiktoken` file.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cupygpt.config import MAX_VOCAB
from cupygpt.data.tokenizer_files import GPT2_SPLIT, is_portable, usable_pattern
from cupygpt.data.vocabulary import END_OF_TEXT, Merge, Vocabulary, from_alphabet
from cupygpt.errors import TokenizerError
from cupygpt.files import check_can_end
from cupygpt.strict_json import is_count, parse_object, quoted, read_object

TOKENIZER_JSON = "tokenizer.json"
VOCAB_JSON = "vocab.json"
MERGES_TXT = "merges.txt"

MOST_BYTES = 1 << 26
"""GPT-2's tokenizer.json has 3.6 MB."""

_PLAIN_BPE: dict[str, tuple[Any, ...]] = {
    "type": ("BPE",),
    "dropout": (None, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
"""What the model of tokenizer.json must be where these keys are there."""


def read_folder(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model's folder, None if there are no tokenizer files.

    Raises TokenizerError if they are damaged, or mean another tokenizer than GPT-2's BPE.
    """
    path = folder / TOKENIZER_JSON
    if path.exists():
        return from_tokenizer_json(path, read_object(path, MOST_BYTES, TokenizerError))
    path = folder / VOCAB_JSON
    if not path.exists():
        return None
    table = read_object(path, MOST_BYTES, TokenizerError)
    return _build(path, table, _merge_lines(folder / MERGES_TXT), [END_OF_TEXT.decode()])


def is_tokenizer_json(content: bytes) -> bool:
    """Whether the content of a file may be a tokenizer.json: no other tokenizer begins so."""
    return content[:1] == b"{"


def parse_tokenizer_json(path: Path, content: bytes) -> Vocabulary:
    """The vocabulary that the content of a tokenizer.json gives. Raises TokenizerError."""
    return from_tokenizer_json(path, parse_object(path, content, TokenizerError))


def from_tokenizer_json(path: Path, values: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a tokenizer.json. Raises TokenizerError if it is not GPT-2's BPE."""
    model = values.get("model")
    if type(model) is not dict or type(model.get("vocab")) is not dict:
        raise _damaged(path, "it holds no vocabulary")
    for key, allowed in _PLAIN_BPE.items():
        if key in model and model[key] not in allowed:
            raise _another(path, f"its {key} is {quoted(model[key])}")
    if values.get("normalizer") is not None:
        raise _another(path, "it changes the text before it is split (normalizer)")
    split = _split_of(path, values.get("pre_tokenizer"))
    merges = model.get("merges")
    if type(merges) is not list:
        raise _damaged(path, "it holds no list of merges")
    added = values.get("added_tokens") or []
    if type(added) is not list or not all(type(token) is dict for token in added):
        raise _damaged(path, "its added tokens are no list of objects")
    table = dict(model["vocab"])
    for token in added:
        name, number = token.get("content"), token.get("id")
        if type(name) is not str or table.setdefault(name, number) != number:
            raise _damaged(path, f"the added token {quoted(name)} has two ids")
    return _build(path, table, merges, [token["content"] for token in added], split)


def _split_of(path: Path, steps: Any) -> str:
    """The pattern that splits text: GPT-2's, or one that stands before the step to bytes."""
    known = [step if type(step) is dict else {} for step in _steps(steps)]
    kinds = [step.get("type") for step in known]
    own_pattern = kinds == ["Split", "ByteLevel"]
    if not own_pattern and kinds != ["ByteLevel"]:
        raise _another(path, "it splits text in another way than by one pattern")
    if known[-1].get("use_regex", True) is own_pattern:
        raise _another(path, "it splits text by no pattern, or by two (use_regex)")
    if known[-1].get("add_prefix_space", True) is not False:
        raise _another(path, "it puts a blank before each text (add_prefix_space)")
    if not own_pattern:
        return GPT2_SPLIT
    how, pattern = known[0].get("behavior"), known[0].get("pattern")
    text = pattern.get("Regex") if type(pattern) is dict else None
    if type(text) is not str or how != "Isolated" or known[0].get("invert", False) is not False:
        raise _another(path, "it does not keep the pieces of its split pattern as they are")
    if not is_portable(text):
        raise _another(path, "tiktoken would read its split pattern in another way ({n,m}+)")
    return usable_pattern(text, str(path))


def _steps(pre_tokenizer: Any) -> list[Any]:
    if type(pre_tokenizer) is dict and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer.get("pretokenizers")
        return steps if type(steps) is list else []
    return [pre_tokenizer]


def _merge_lines(path: Path) -> list[str]:
    check_can_end(path, TokenizerError)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _damaged(path, "it is too large")
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"could not be read: {error}") from error
    lines = [line.removesuffix("\r") for line in lines]
    return [line for line in lines if line and not line.startswith("#version")]


def _build(
    path: Path,
    table: dict[str, Any],
    merges: Iterable[Any],
    special: Sequence[str],
    split: str = GPT2_SPLIT,
) -> Vocabulary:
    """The vocabulary of a table text -> id, its merges, and its special tokens."""
    eot = END_OF_TEXT.decode()
    others = [name for name in special if name != eot]
    if eot not in table or others:
        raise _another(
            path,
            f"it has the special token {quoted(others[0])}"
            if others
            else f"it has no end of text ({eot})",
        )
    if not all(map(is_count, table.values())) or len(set(table.values())) < len(table):
        raise _damaged(path, "two tokens have the same id, or an id is no number")
    num_ids = max(table.values()) + 1
    if num_ids > MAX_VOCAB:
        raise TokenizerError(
            f"{path}: {num_ids:,} ids, but {MAX_VOCAB:,} are the most that can be used here."
        )
    tokens = [b""] * num_ids
    for text, number in table.items():
        try:
            tokens[number] = END_OF_TEXT if text == eot else from_alphabet(text)
        except KeyError as error:
            raise _another(path, f"the token {quoted(text)} is not made of bytes") from error
    pairs = [_parse_merge(path, merge) for merge in merges]
    vocabulary = Vocabulary(tokens, table[eot], pairs, split)
    _check_order(path, vocabulary)
    return vocabulary


def _parse_merge(path: Path, merge: Any) -> Merge:
    """A merge is `["left", "right"]`, or the older text `left right`."""
    parts = merge.split(" ") if type(merge) is str else merge
    try:
        left, right = map(from_alphabet, parts)
    except (TypeError, ValueError, KeyError) as error:
        raise _damaged(path, f"{quoted(merge)} is no merge") from error
    return left, right


def _check_order(path: Path, vocabulary: Vocabulary) -> None:
    """Raise TokenizerError unless ids serve as ranks: those of merged tokens rise in their order.

    Every single byte must be there, and every longer token be the result of one merge.
    """
    ranks = vocabulary.ranks()
    missing = sum(bytes([i]) not in ranks for i in range(256))
    if missing:
        raise _another(path, f"{missing} of the 256 single bytes are missing")
    made = [left + right for left, right in vocabulary.merges]
    numbers = [ranks.get(token, -1) for token in made]
    parts_known = all(ranks.keys() >= set(merge) for merge in vocabulary.merges)
    if -1 in numbers or not parts_known:
        raise _damaged(path, "a merge has a part or a result that is not in the vocabulary")
    if sorted(set(numbers)) != numbers:
        raise _another(path, "the ids of its merges do not rise, so that they are no ranks")
    unmade = ranks.keys() - set(made) - {bytes([i]) for i in range(256)}
    if unmade:
        raise _another(path, f"no merge makes the token {quoted(min(unmade))}")


def _damaged(path: Path, reason: str) -> TokenizerError:
    return TokenizerError(f"{path}: damaged; {reason}. Copy the file again.")


def _another(path: Path, reason: str) -> TokenizerError:
    return TokenizerError(
        f"{path}: not the byte-level BPE of GPT-2, the only kind that can be read: {reason}. "
        f"Name another tokenizer with --tokenizer."
    )
