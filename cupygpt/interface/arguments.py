"""The arguments of the interface: each wrong one is answered by one sentence."""

import operator
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from cupygpt.config import GPTConfig
from cupygpt.data.token_files import Ids
from cupygpt.device.callers import to_host
from cupygpt.errors import ConfigError
from cupygpt.flags.field import Range
from cupygpt.flags.writing import RANGES


def path_text(path: Any, *, what: str) -> str:
    """A path or a name as text."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{what} must be a path, not {_kind(path)}.")
    text = os.fspath(path)
    if isinstance(text, bytes):
        raise ConfigError(f"{what} must be a path of type str, not bytes.")
    return text


def whole_number(name: str, value: Any, *, least: int) -> int:
    """A whole number of at least `least`; NumPy's count too, True and False do not."""
    number = _as_index(value)
    if number is None or number < least:
        shown = value if number is not None else _kind(value)
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {shown}.")
    return number


def number(name: str, value: Any, allowed: Range) -> float:
    """A number in the range that is allowed."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise ConfigError(f"{name} must be a number, not {_kind(value)}.")
    if not allowed.holds(value):
        raise ConfigError(f"{name} is {value}, but must be {allowed.words}.")
    return float(value)


def check_writing(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a number that no text can be written with."""
    for name, value in values.items():
        number(name, value, RANGES[name])
        if name not in ("temperature", "top_p"):
            whole_number(name, value, least=0)


def token_ids(
    ids: Any, config: GPTConfig, *, axes: tuple[int, ...], ignored: int | None = None
) -> Ids:
    """Ids (n,) or (B, n), as int32 on the host. `ignored` is allowed besides those of the model.

    Raises ConfigError for what is no array of whole numbers, has another number of axes, is empty,
    or holds an id outside the vocabulary.
    """
    if isinstance(ids, str | bytes):
        raise ConfigError(
            f"ids must be whole numbers, not {_kind(ids)}: model.tokenizer.encode(text) gives them."
        )
    try:
        array = np.asarray(to_host(ids))
    except (ValueError, TypeError) as error:
        raise ConfigError("ids must be rows of equal length.") from error
    if array.dtype.kind not in "iu" and array.size:
        raise ConfigError(f"ids must be whole numbers, not {array.dtype}.")
    if not array.size:
        raise ConfigError("there are no ids: at least one is needed.")
    if array.ndim not in axes:
        shapes = " or ".join({1: "(T,)", 2: "(B, T)"}[count] for count in axes)
        raise ConfigError(f"ids have the shape {array.shape}, but must have {shapes}.")
    outside = (array < 0) | (array >= config.V)
    if ignored is not None:
        outside &= array != ignored
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ConfigError(
            f"id {array[place]} at {list(place)} is not in the vocabulary of the model, which has "
            f"{config.V:,} ids (0 to {config.V - 1})."
        )
    return np.ascontiguousarray(array, np.int32)


def check_fits_positions(ids: Ids, config: GPTConfig, what: str) -> None:
    """Raise ConfigError for rows that are longer than the model has positions."""
    if ids.shape[-1] > config.maxT:
        raise ConfigError(
            f"{what} of {ids.shape[-1]:,} ids cannot be computed: the model has {config.maxT:,} "
            f"positions. Pass {config.maxT:,} ids or fewer; loss() reads longer texts in windows."
        )


def text(value: Any, what: str) -> str:
    """Text that is not empty."""
    if isinstance(value, bytes | bytearray):
        raise ConfigError(f"{what} must be text, not bytes: decode it, as in data.decode('utf-8').")
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be text (str), not {_kind(value)}.")
    if not value:
        raise ConfigError(f"{what} is empty.")
    return value


def is_row_of_ids(value: Any) -> bool:
    """Whether it stands for ids: an array, or a list that begins with a number."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], int | np.integer)
    return hasattr(value, "shape") and not isinstance(value, str)


def _as_index(value: Any) -> int | None:
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _kind(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__}"
