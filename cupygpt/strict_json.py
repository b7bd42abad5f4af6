"""JSON files from strangers: bounded in size, one object, no name twice, an error in any case."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from cupygpt.errors import CheckpointError, CupyGPTError
from cupygpt.files import check_can_end

_SHOWN = 60


def read_object(
    path: Path, most_bytes: int, error: type[CupyGPTError] = CheckpointError
) -> dict[str, Any]:
    """The JSON object in a file of at most `most_bytes`. Raises `error` for anything else."""
    check_can_end(path, error)
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise error(
                f"{path}: {size:,} bytes, but this file has at most {most_bytes:,}. It is damaged, "
                f"or another kind of file."
            )
        raw = path.read_bytes()
    except OSError as reason:
        raise error(
            f"{path}: could not be read ({reason.strerror or reason}). "
            f"Check the path and its permissions."
        ) from reason
    return parse_object(path, raw, error)


def parse_object(
    path: Path, raw: bytes, error: type[CupyGPTError] = CheckpointError
) -> dict[str, Any]:
    """The JSON object that `raw`, read from `path`, holds. Raises `error` for anything else."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_no_name_twice, parse_constant=_refuse
        )
    except RecursionError as reason:
        raise error(f"{path}: damaged; its JSON is nested too deeply. Copy it again.") from reason
    except ValueError as reason:  # also what is not UTF-8
        raise error(f"{path}: damaged; this is no JSON ({reason}). Copy it again.") from reason
    if type(value) is not dict:
        raise error(f"{path}: damaged; its JSON should be an object ({{...}}). Copy it again.")
    return value


def is_count(value: object) -> bool:
    """Whether a value is a whole number, 0 or more, that fits 63 bits; True and 2.0 are none."""
    return type(value) is int and 0 <= value < 2**63


def quoted(value: object) -> str:
    """A value from a file as a message can show it: without control characters, and short."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = Counter(name for name, _ in pairs)
        [(twice, _)] = names.most_common(1)
        raise ValueError(f"the name {quoted(twice)} occurs twice")
    return result


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number in JSON")
