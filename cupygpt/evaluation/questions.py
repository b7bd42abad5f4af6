"""Multiple-choice questions, from llm.c's evaluation files and from jsonl.

llm.c's file (llm.c dev/data/data_common.py, llmc/dataloader.h): a header of 256 int32 (magic
number, version 1, number of examples, bytes of the longest), then uint16: for each example 65535,
its bytes including these first fields, its index, the label, the number of choices, the length of
the context and its ids, and for each choice its length and ids.

jsonl: one object a line, with a context (`ctx`, `context` or `question`), the choices (`endings` or
`choices`) and the `label`, the index of the right one. As in llm.c the context is encoded as it is,
and a choice with a space before it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cupygpt.data.token_files import Tokens
from cupygpt.data.token_format import TWO_BYTES
from cupygpt.data.tokenizer import Tokenizer
from cupygpt.errors import DataError
from cupygpt.files import HEADER_BYTES, FileKind, check_can_end, check_kind, read_header

VERSION = 1
START_OF_EXAMPLE = 65535
FEWEST_CHOICES, MOST_CHOICES = 2, 64
FIELDS = 6
"""Numbers of an example before the ids of its context."""

MOST_LINE_BYTES = 2**20

CONTEXTS, CHOICES, LABEL = ("ctx", "context", "question"), ("endings", "choices"), "label"


@dataclass(frozen=True, eq=False)
class Question:
    """A context, choices that continue it, and the index of the right one.

    `characters` are those of the text of each choice, without the space before it; None if they
    are not known.
    """

    context: Tokens
    choices: tuple[Tokens, ...]
    label: int
    characters: tuple[int, ...] | None


def read_questions(
    path: Path, tokenizer: Tokenizer | None, V: int, most: int | None = None
) -> list[Question]:
    """The questions of a file, or the first `most`: llm.c's file or jsonl, known by its beginning.

    Raises DataError, with the place, for a file that is damaged or holds anything else, and for
    token ids that are not below V.
    """
    questions = list(islice(_questions(path, tokenizer, V), most))
    if not questions:
        raise DataError(f"{path}: there is no question in this file.")
    return questions


def is_question_file(path: Path) -> bool:
    """Whether a file is llm.c's evaluation file, or named as jsonl."""
    if path.suffix.lower() == ".jsonl":
        return True
    check_can_end(path, DataError)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError:
        return False  # whoever reads it says why it cannot be read
    return magic == FileKind.EVALUATION.magic.to_bytes(4, "little")


def _questions(path: Path, tokenizer: Tokenizer | None, V: int) -> Iterator[Question]:
    if path.suffix.lower() != ".jsonl":
        return _from_llmc(path, tokenizer, V)
    if tokenizer is None:
        raise DataError(
            f"{path}: questions in words need the model's tokenizer. Name it with --tokenizer."
        )
    return _from_jsonl(path, tokenizer)


# ---- llm.c's file ------------------------------------------------------------------------------


def _from_llmc(path: Path, tokenizer: Tokenizer | None, V: int) -> Iterator[Question]:
    if TWO_BYTES.num_ids < V:
        raise DataError(
            f"{path}: llm.c's evaluation files hold ids of 2 bytes, so there is none for the "
            f"model's vocabulary of {V:,} ids. Take the questions as jsonl."
        )
    numbers, count, longest = _open_llmc(path)
    place = 0
    for index in range(count):
        example = _Example(path, index, numbers[place : place + longest // TWO_BYTES.id_bytes])
        question = example.read(tokenizer, V)
        place += example.size
        yield question
    if place != len(numbers):
        raise DataError(
            f"{path}: {2 * (len(numbers) - place):,} bytes follow the last of its {count:,} "
            f"examples. {_AGAIN}"
        )


_AGAIN = "The file is damaged; make or copy it again."


def _open_llmc(path: Path) -> tuple[Tokens, int, int]:
    """The numbers after the header, how many examples they hold, and the bytes of the longest."""
    header = read_header(path, DataError)
    check_kind(path, header, FileKind.EVALUATION, DataError)
    version, count, longest = (int(x) for x in header[1:4])
    if version != VERSION:
        raise DataError(
            f"{path}: evaluation file of version {version}; only version {VERSION} is known."
        )
    size = path.stat().st_size - HEADER_BYTES
    fewest = TWO_BYTES.id_bytes * (FIELDS + 1 + 2 * FEWEST_CHOICES)
    if not 0 < count < START_OF_EXAMPLE + 1 or not fewest <= longest <= START_OF_EXAMPLE:
        raise DataError(
            f"{path}: its header counts {count:,} examples of at most {longest:,} bytes; there "
            f"can be 1 to 65,535, of {fewest} to 65,535 bytes. {_AGAIN}"
        )
    if size % TWO_BYTES.id_bytes or not count * fewest <= size <= count * longest:
        raise DataError(
            f"{path}: {size:,} bytes follow the header, which cannot hold its {count:,} examples "
            f"of at most {longest:,} bytes. The file is cut short or damaged; make or copy it "
            f"again."
        )
    return np.memmap(path, TWO_BYTES.dtype, mode="r", offset=HEADER_BYTES), count, longest


class _Example:
    """Reads one example of llm.c's file: every count is checked before it is used."""

    def __init__(self, path: Path, index: int, numbers: Tokens) -> None:
        self._path, self._index, self._numbers = path, index, numbers
        self.size = 0
        """Numbers of the example that were read."""

    def read(self, tokenizer: Tokenizer | None, V: int) -> Question:
        start, num_bytes, index, label, num_choices = (self._next() for _ in range(5))
        if start != START_OF_EXAMPLE:
            self._fail(f"it begins with {start}, not with {START_OF_EXAMPLE}")
        if num_bytes % TWO_BYTES.id_bytes or num_bytes > 2 * len(self._numbers):
            self._fail(f"its size is given as {num_bytes:,} bytes")
        self._numbers = self._numbers[: num_bytes // TWO_BYTES.id_bytes]
        if index != self._index:
            self._fail(f"its number is given as {index:,}")
        if not FEWEST_CHOICES <= num_choices <= MOST_CHOICES:
            self._fail(
                f"it has {num_choices:,} choices; {FEWEST_CHOICES} to {MOST_CHOICES} can be "
                f"evaluated"
            )
        if label >= num_choices:
            self._fail(f"its right choice is number {label:,} of {num_choices}, counted from 0")
        context = self._ids("the context", V)
        choices = tuple(self._ids(f"choice {i}", V) for i in range(num_choices))
        if self.size != len(self._numbers):
            self._fail(f"{2 * self.size:,} of its {num_bytes:,} bytes are used")
        characters = None
        if tokenizer is not None:
            characters = tuple(len(_text(tokenizer, ids)) for ids in choices)
        return Question(context, choices, label, characters)

    def _ids(self, what: str, V: int) -> Tokens:
        count = self._next()
        left = len(self._numbers) - self.size
        if not 0 < count <= left:
            self._fail(f"{what} has {count:,} tokens, where 1 to {left:,} are possible")
        ids = self._numbers[self.size : self.size + count]
        self.size += count
        if int(ids.max()) >= V:
            raise DataError(
                f"{self._path}: {what} of example {self._index:,} has token id {ids.max()}, but "
                f"the model's vocabulary has {V:,} ids. llm.c's files are made with GPT-2's "
                f"tokenizer: take the questions as jsonl, or a model with that vocabulary."
            )
        return ids

    def _next(self) -> int:
        if self.size >= len(self._numbers):
            self._fail("it is cut short")
        self.size += 1
        return int(self._numbers[self.size - 1])

    def _fail(self, why: str) -> NoReturn:
        raise DataError(f"{self._path}: example {self._index:,}: {why}. {_AGAIN}")


def _text(tokenizer: Tokenizer, ids: Sequence[int] | Tokens) -> str:
    return tokenizer.decode(int(i) for i in ids).removeprefix(" ")


# ---- jsonl -------------------------------------------------------------------------------------


def _from_jsonl(path: Path, tokenizer: Tokenizer) -> Iterator[Question]:
    for number, line in _lines(path):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _line_error(path, number, f"it is not JSON in UTF-8 ({error})") from error
        context, choices, label = _fields(path, number, values)
        yield Question(
            tokenizer.encode(context),
            tuple(tokenizer.encode(f" {text}") for text in choices),
            label,
            tuple(len(text) for text in choices),
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    check_can_end(path, DataError)
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                if len(line) > MOST_LINE_BYTES:
                    raise _line_error(path, number, f"it has more than {MOST_LINE_BYTES:,} bytes")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(
            f"{path}: could not be read ({error.strerror or error}). Check the path."
        ) from error


def _fields(path: Path, number: int, values: Any) -> tuple[str, list[str], int]:
    """Context, choices and label of a line."""
    if not isinstance(values, dict):
        raise _line_error(path, number, "it is not a JSON object")
    context = next((values[name] for name in CONTEXTS if name in values), None)
    choices = next((values[name] for name in CHOICES if name in values), None)
    if not isinstance(context, str) or not context:
        raise _line_error(path, number, f"it needs a text in {' or '.join(CONTEXTS)}", values)
    if not isinstance(choices, list) or not all(isinstance(x, str) and x for x in choices):
        raise _line_error(
            path, number, f"it needs a list of texts in {' or '.join(CHOICES)}", values
        )
    if not FEWEST_CHOICES <= len(choices) <= MOST_CHOICES:
        raise _line_error(
            path,
            number,
            f"it has {len(choices)} choices; {FEWEST_CHOICES} to {MOST_CHOICES} can be evaluated",
        )
    return context, choices, _label(path, number, values, len(choices))


def _label(path: Path, number: int, values: dict[str, Any], num_choices: int) -> int:
    label = values.get(LABEL)
    if isinstance(label, str) and label.isascii() and label.isdigit() and len(label) < len("1000"):
        label = int(label)
    if label is None or label in ("", -1):
        raise _line_error(
            path, number, "it has no label, as in a test split; take the validation split", values
        )
    if type(label) is not int or not 0 <= label < num_choices:
        raise _line_error(
            path,
            number,
            f"its label is {str(label)[:20]!r}; it must be the index of the right choice, 0 to "
            f"{num_choices - 1}",
        )
    return label


def _line_error(path: Path, number: int, why: str, values: Any = None) -> DataError:
    there = ""
    if isinstance(values, dict):
        names = [str(name)[:20] for name in islice(values, 12)]
        there = f" It has: {', '.join(map(ascii, names)) or 'nothing'}."
    return DataError(f"{path}: line {number:,}: {why}.{there}")
