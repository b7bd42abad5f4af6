"""Parquet files: the texts of one column, read in small batches."""

from collections.abc import Callable, Iterator
from typing import IO, Any

from cupygpt.errors import ConfigError, DataError
from cupygpt.texts.reading.json_lines import checked_text, choose_field, no_field
from cupygpt.texts.reading.reading import Reading, Tally

INSTALL = "pip install 'cupygpt[parquet]'"
BATCH_ROWS = 256
BUFFER_BYTES = 65536


def parquet_texts(
    file: IO[bytes],
    name: str,
    size: int,
    how: Reading,
    tally: Tally,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[str]:
    """The text of each row of the open `file` of `size` bytes; none for an empty one.

    `advance` is told how many bytes of the file were read so far. Raises DataError that names the
    row, or what is damaged; ConfigError if pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"{name}: reading parquet needs the package pyarrow. Install it: {INSTALL}"
        ) from error
    row = 0
    try:
        # Other settings keep whole row groups, or what was read of the file.
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
        field = _field(table.schema_arrow, name, how)
        rows = max(1, table.metadata.num_rows)
        for batch in table.iter_batches(BATCH_ROWS, columns=[field], use_threads=False):
            for value in batch.column(0).to_pylist():
                row += 1
                yield from checked_text(_as_text(value, name, row), tally)
            advance(size * row // rows)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{name}: after row {row:,}, this is no parquet file, or it is damaged ({reason}). "
            f"Copy the file again."
        ) from error
    tally.fields[field] += 1


def _field(schema: Any, name: str, how: Reading) -> str:
    names = list(schema.names)
    strings = [
        column.name
        for column in schema
        if str(column.type) in ("string", "large_string", "string_view")
        or str(column.type).startswith("dictionary<values=string")
    ]
    if how.field is None:
        return choose_field(strings, names, name)
    if how.field not in names:
        raise no_field(name, how.field, names)
    if how.field not in strings and str(schema.field(how.field).type) not in ("binary",):
        raise DataError(
            f"{name}: the column {how.field!r} holds no text, but {schema.field(how.field).type}. "
            f"Columns with text: {', '.join(strings) or 'none'}; --field names one."
        )
    return how.field


def _as_text(value: str | bytes | None, name: str, row: int) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: row {row:,} is not UTF-8 text: byte {value[error.start]:#04x} at offset "
                f"{error.start:,} of it."
            ) from error
    return value
