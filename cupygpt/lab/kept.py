"""Results of the lab that are kept between commands, by the content that they follow from."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cupygpt.cache_dir import cache_dir
from cupygpt.files import atomic_write
from cupygpt.kernels.load import find_cuda_dir

_ROOMS = ("lab", "emulator", "performance", "ops", "kernels")
"""What results follow from, beside the kernels themselves."""


def kept(parts: Iterable[str], compute: Callable[[], Any]) -> Any:
    """`compute()`, a value that JSON holds, or what an earlier call with the same parts gave.

    The version of the lab, the emulator and the kernels belongs to the parts. Where nothing can be
    kept (no cache folder, a full disk), the value is computed each time.
    """
    path = _path(parts)
    found = _read(path)
    if found is not None:
        return found
    value = compute()
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(value).encode())
    return value


def known(parts: Iterable[str]) -> Any:
    """What `kept` has kept for these parts; None where it would have to compute."""
    return _read(_path(parts))


def _path(parts: Iterable[str]) -> Path | None:
    folder = cache_dir()
    if folder is None:
        return None
    key = hashlib.sha256("\0".join([_version(), *parts]).encode()).hexdigest()[:32]
    return folder / "lab" / f"{key}.json"


def _read(path: Path | None) -> Any:
    with contextlib.suppress(OSError, ValueError):
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))
    return None


@functools.cache
def _version() -> str:
    """A digest of the code that results follow from."""
    package = Path(__file__).parents[1]
    files = [
        path
        for folder in (*(package / room for room in _ROOMS), find_cuda_dir())
        for path in sorted(folder.rglob("*"))
        if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"}
    ]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
