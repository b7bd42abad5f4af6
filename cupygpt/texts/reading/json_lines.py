"""JSON lines: one record in a line, and the text in one of its fields."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cupygpt.console.paste import shell_word
from cupygpt.errors import DataError
from cupygpt.texts.reading.decoding import unix_text, without_surrogates
from cupygpt.texts.reading.reading import Reading, Tally

USUAL_FIELDS = ("text", "content", "story")
"""Which field holds the text where several hold strings: the first of these that is there."""

MOST_CHARACTERS = 2**25
"""A longer line is refused: it would take more memory than all other work together."""


def json_texts(blocks: Iterable[str], name: str, how: Reading, tally: Tally) -> Iterator[str]:
    """The text of each record; none for a record whose text is empty.

    `blocks` are the text of the file called `name`. Raises DataError that names the line for what
    is no JSON object, or has no text in the field.
    """
    field = how.field
    for number, line in enumerate(_lines(blocks, name), 1):
        if not line or line.isspace():
            continue
        record = _record(line, name, number)
        if field is None:
            strings = [key for key, value in record.items() if isinstance(value, str)]
            if not strings and any(value is None for value in record.values()):
                tally.empty += 1
                continue
            field = choose_field(strings, list(record), f"{name}: line {number:,}")
        text = _text_of(record, field, name, number)
        yield from checked_text(text, tally)
    if field is not None:
        tally.fields[field] += 1


def checked_text(text: str | None, tally: Tally) -> Iterator[str]:
    """The text of a record as a document, or nothing if it has no visible character."""
    if text is None or not text or text.isspace():
        tally.empty += 1
        return
    yield unix_text(without_surrogates(text, tally), tally)


def choose_field(strings: Sequence[str], names: Sequence[str], where: str) -> str:
    """The field of a record that holds the text: the only one with a string, else a usual one.

    Raises DataError, with all `names` of fields, if there is none.
    """
    if len(strings) == 1:
        return strings[0]
    usual = next((field for field in USUAL_FIELDS if field in strings), None)
    if usual is not None:
        return usual
    raise DataError(
        f"{where}: {len(strings)} fields hold text. Name the right one with --field; "
        f"the fields are {_listed(names)}."
    )


def no_field(where: str, field: str, names: Sequence[str]) -> DataError:
    """The error for records that lack a field."""
    return DataError(
        f"{where}: there is no field {field!r}; the fields are {_listed(names)}. "
        f"Name the field with the text: --field NAME"
    )


def _lines(blocks: Iterable[str], name: str) -> Iterator[str]:
    pending: list[str] = []
    length, number = 0, 1
    for block in blocks:
        first, *others = block.split("\n")
        pending.append(first)
        length += len(first)
        if length > MOST_CHARACTERS:
            raise DataError(
                f"{name}: line {number:,} has more than {MOST_CHARACTERS:,} characters. Is this "
                f"a file with one JSON record in each line?"
            )
        if others:
            yield "".join(pending)
            yield from others[:-1]
            pending, length = [others[-1]], len(others[-1])
            number += len(others)
    yield "".join(pending)


def _record(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        if number == 1 and line.lstrip().startswith("["):
            raise _one_list(name) from error
        raise DataError(
            f"{name}: line {number:,} is not JSON ({reason}): {line[:40]!r}. The file is damaged, "
            f"or holds something else than one record in each line."
        ) from error
    if number == 1 and isinstance(record, list):
        raise _one_list(name)
    if not isinstance(record, dict):
        raise DataError(
            f'{name}: line {number:,} is not a JSON object, such as {{"text": "..."}}, but '
            f"{line[:40]!r}."
        )
    return record


def _one_list(name: str) -> DataError:
    return DataError(
        f"{name}: this is one JSON list; each line must hold one record. Write it so: "
        f"jq -c '.[]' {shell_word(name)} > records.jsonl"
    )


def _text_of(record: dict[str, Any], field: str, name: str, number: int) -> str | None:
    where = f"{name}: line {number:,}"
    value: Any = record
    for part in [field] if field in record else field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise no_field(where, field, list(record))
        value = value[part]
    if value is None or isinstance(value, str):
        return value
    raise DataError(
        f"{where}: the field {field!r} holds no text, but {json.dumps(value)[:40]}. "
        f"Name the field with the text: --field NAME"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown} and {len(names) - 12:,} more" if len(names) > 12 else shown or "none"
