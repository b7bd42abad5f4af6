"""What a model is evaluated on: token files, text files and questions, and the tokenizer for them.

Each file is known by its content: llm.c's token files and evaluation files by their magic number,
questions by the ending .jsonl; anything else is UTF-8 text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cupygpt.data.token_files import TokenShard, check_ids, matching_files, open_shards, record_path
from cupygpt.data.token_format import FOUR_BYTES, TWO_BYTES
from cupygpt.data.token_record import (
    TokenRecord,
    check_tokenizer,
    load_recorded_tokenizer,
    read_token_record,
)
from cupygpt.data.tokenizer import Tokenizer, check_vocab_size, load_tokenizer_for
from cupygpt.errors import DataError, TokenizerError
from cupygpt.evaluation.questions import Question, is_question_file, read_questions
from cupygpt.evaluation.windows import EncodedText, TokenText
from cupygpt.files import FileKind, kind_of
from cupygpt.flags.llmc import HELLASWAG as LLMC_HELLASWAG
from cupygpt.texts.reading.documents import Documents
from cupygpt.texts.reading.reading import Reading

TOKEN_KINDS = (TWO_BYTES.kind, FOUR_BYTES.kind)

HELLASWAG = "hellaswag"
HELLASWAG_ORIGIN = (
    "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
)


@dataclass
class Files:
    """The files that were named, in their order: token files or paths of text, and questions."""

    texts: list[TokenShard | Path] = field(default_factory=list)
    questions: list[Path] = field(default_factory=list)

    @property
    def shards(self) -> list[TokenShard]:
        """The token files among the texts."""
        return [text for text in self.texts if isinstance(text, TokenShard)]


@dataclass(frozen=True)
class Inputs:
    """What is evaluated. `tokenizer` is None if none is known, and `note` says why."""

    texts: list[TokenText]
    questions: list[tuple[Path, list[Question]]]
    tokenizer: Tokenizer | None
    note: str | None


def find_files(names: Sequence[str], hellaswag: Path | None) -> Files:
    """The files that names, patterns and the word `hellaswag` stand for.

    Raises DataError for a name without a file, and for a file that holds none of the kinds.
    """
    files = Files()
    for name in names:
        if name == HELLASWAG:
            files.questions.append(hellaswag_file(hellaswag))
            continue
        hint = "Name token files, UTF-8 text, questions as .jsonl, or hellaswag."
        paths = matching_files(name, kind="files", example="*_val.bin", hint=hint)
        records = {record_path(path) for path in paths}
        for path in paths:
            if path in records:
                continue
            if _magic_of(path) in {kind.magic for kind in TOKEN_KINDS}:
                files.texts += open_shards(str(path))
            elif is_question_file(path):
                files.questions.append(path)
            else:
                files.texts.append(path)
    return files


def hellaswag_file(source: Path | None) -> Path:
    """HellaSwag: the file `source`, or the one that llm.c's script has written here."""
    path = source or Path(LLMC_HELLASWAG)
    if not path.is_file():
        raise DataError(
            f"{path}: HellaSwag is not there. Download {HELLASWAG_ORIGIN} and name it with "
            f"--source; or run llm.c's dev/data/hellaswag.py here."
        )
    if not is_question_file(path):
        raise DataError(f"{path}: this is neither llm.c's evaluation file nor a .jsonl file.")
    return path


def open_inputs(
    files: Files,
    V: int,
    *,
    asked: str | None,
    of_model: str | None,
    split: bool,
    most_questions: int | None,
) -> Inputs:
    """Read the files for a model with V ids.

    The tokenizer is the one that is `asked` for, else that `of_model`, that of the token files, or
    the usual one for V ids. With `split`, the text `<|endoftext|>` separates the documents of a
    text file; each begins with the id of end of text, as `prepare` writes it. Raises DataError and
    TokenizerError for what cannot be read, and for tokens of another tokenizer than the model's.
    """
    shards = files.shards
    check_ids(shards, V)
    record = read_token_record(shards) if shards else None
    tokenizer, note = _find_tokenizer(asked, of_model, record, V)
    if tokenizer is not None and record is not None:
        check_tokenizer(tokenizer, record, shards)
    texts: list[TokenText] = []
    for text in files.texts:
        if isinstance(text, TokenShard):
            texts.append(text)
        elif tokenizer is None:
            raise TokenizerError(f"{text}: text needs the model's tokenizer: {note}")
        else:
            texts.append(_encoded(text, tokenizer, split=split))
    questions = [
        (path, read_questions(path, tokenizer, V, most_questions)) for path in files.questions
    ]
    return Inputs(texts, questions, tokenizer, note)


def _find_tokenizer(
    asked: str | None, of_model: str | None, record: TokenRecord | None, V: int
) -> tuple[Tokenizer | None, str | None]:
    """A tokenizer with V ids, or None and why; TokenizerError if one is named that does not fit."""
    spec = asked or of_model
    try:
        if spec is None and record is not None:
            tokenizer = load_recorded_tokenizer(record.tokenizer)
        else:
            tokenizer = load_tokenizer_for(V, spec)
    except TokenizerError as error:
        if asked:
            raise
        return None, str(error)
    check_vocab_size(tokenizer.name, tokenizer.vocab_size, V)
    return tokenizer, None


def _encoded(path: Path, tokenizer: Tokenizer, *, split: bool) -> EncodedText:
    """The tokens of a text file, each document after an end of text."""
    parts: list[np.ndarray] = []
    is_new = True
    for part in Documents([str(path)], Reading(split=split)).pieces():
        if part is None:
            is_new = True
            continue
        if is_new:
            parts.append(np.array([tokenizer.eot], tokenizer.format.dtype))
            is_new = False
        parts.append(tokenizer.encode(part))
    tokens = np.concatenate(parts) if parts else np.zeros(0, tokenizer.format.dtype)
    if len(tokens) < 2:
        raise DataError(f"{path}: there is no text in this file.")
    return EncodedText(path, tokens)


def _magic_of(path: Path) -> int | None:
    """The first 4 bytes of a file. Raises DataError for llm.c's files that are no data."""
    try:
        with path.open("rb") as file:
            magic = int.from_bytes(file.read(4), "little")
    except OSError:
        return None  # whoever reads it says why it cannot be read
    kind = kind_of(magic)
    if kind not in (None, *TOKEN_KINDS, FileKind.EVALUATION):
        raise DataError(
            f"{path}: this is {kind.title}, nothing to evaluate a model on. The model comes first: "
            f"python -m cupygpt.evaluate MODEL FILE"
        )
    return magic
