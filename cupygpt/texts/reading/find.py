"""Which files a person means: paths, patterns, folders, and `-` for standard input."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cupygpt.errors import DataError
from cupygpt.files import check_can_end, user_path
from cupygpt.texts.reading.opening import PACKINGS

STDIN = "-"
PIPE_ADVICE = "Text from a program comes as standard input: PROGRAM | python -m cupygpt.prepare -"

TEXT_ENDINGS = (".txt",)
RECORD_ENDINGS = (".jsonl", ".ndjson")
PARQUET_ENDING = ".parquet"
ARCHIVES = (".tar", ".tgz", ".zip", ".7z", ".bz2", ".xz", ".rar")
"""Files that must be unpacked first: as text they would be learnt as they are."""

_OF_FOLDERS = (*TEXT_ENDINGS, *RECORD_ENDINGS)


@dataclass
class Found:
    """The files, each once, sorted within each thing that was named.

    `for_validation` are those among them that are for validation as a whole. `again` are those that
    were named twice. `left_out` counts the files in named folders that have
    none of the endings taken there, by their endings.
    """

    files: list[str] = field(default_factory=list)
    for_validation: frozenset[str] = frozenset()
    again: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def find_files(what: Sequence[str], hint: str) -> Found:
    """The files that `what` names: paths, folders, and patterns in which `**` is any folders.

    A path that exists is taken literally, even if it holds `*`, `?` or `[`, and so is the part of a
    pattern up to the last folder that exists. Of a folder all files of text, jsonl and parquet are
    taken, however deep they lie. Hidden files and folders need their own name.
    Raises DataError, with the `hint`, if nothing is found, and for what cannot be read as a file.
    """
    found = Found()
    known: set[str] = set()
    folders: dict[str, str] = {}
    for name in what:
        paths = _files_of(name, found, hint)
        links = {path for path in paths if os.path.islink(path)}  # noqa: PTH114
        kept: set[str] = set()
        # Of several names of one file the shortest counts, and one that is no link.
        for path in sorted(paths, key=lambda path: (path.count(os.sep), path in links)):
            place = os.path.realpath(path) if path in links else _place_of(path, folders)
            if place not in known:
                known.add(place)
                kept.add(path)
        for path in paths:
            if _unpacked(path).endswith(ARCHIVES):
                raise DataError(f"{path}: this is an archive. Unpack it, and name its files.")
            (found.files if path in kept else found.again).append(path)
    return found


def is_records(name: str, field: str | None) -> bool:
    """Whether a file holds JSON lines, by its name; `.json` does if a `field` of it is named."""
    endings = RECORD_ENDINGS if field is None else (*RECORD_ENDINGS, ".json")
    return _unpacked(name).endswith(endings)


def is_parquet(name: str) -> bool:
    """Whether a file is a parquet file, by its name."""
    return name.lower().endswith(PARQUET_ENDING)


def _unpacked(name: str) -> str:
    """The name in lower case, without the ending of a packed file."""
    name = name.lower()
    ending = os.path.splitext(name)[1]  # noqa: PTH122 (Path costs ten times as much)
    return name[: -len(ending)] if ending in PACKINGS else name


def _files_of(name: str, found: Found, hint: str) -> list[str]:
    if name == STDIN:
        return [STDIN]
    literal = user_path(name)
    if os.path.isdir(literal):  # noqa: PTH112 (Path's own fails where a folder cannot be searched)
        return _files_in(str(literal), name, found)
    if os.path.exists(literal):  # noqa: PTH110
        check_can_end(literal, DataError, PIPE_ADVICE)
        return [str(literal)]
    paths = glob.glob(_as_glob(literal), recursive=True)  # noqa: PTH207 (Path's: no absolute ones)
    files = sorted(_only_files(paths), key=os.fsencode)
    if not files:
        bracket = " In a pattern, write [[] for the character [." if "[" in name else ""
        raise DataError(
            f"{name}: no such file, and no file matches it as a pattern.{bracket} {hint}"
        )
    return files


def _files_in(folder: str, name: str, found: Found) -> list[str]:
    files = []

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: this folder could not be read ({error.strerror or error})."
        ) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [one for one in folders if not one.startswith(".")]
        for one in names:
            if one.startswith("."):
                continue
            if _unpacked(one).endswith(_OF_FOLDERS) or is_parquet(one):
                files.append(os.path.join(place, one))  # noqa: PTH118 (fast)
            else:
                found.left_out[Path(one).suffix or "without an ending"] += 1
    if not files:
        kinds = ", ".join((*_OF_FOLDERS, PARQUET_ENDING))
        others = found.left_out.total()
        raise DataError(
            f"{name}: this is a folder without {kinds} files"
            + (f", but with {others:,} others" if others else "")
            + f". Name the text files in it, for example '{Path(folder) / '**/*.md'}'."
        )
    return sorted(_only_files(files), key=os.fsencode)


def _only_files(paths: Sequence[str]) -> Iterator[str]:
    """Without folders. Raises DataError for what may never end: a FIFO, a socket, a device."""
    for path in paths:
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 (Path costs ten times as much)
        except OSError:
            mode = stat.S_IFREG  # a broken link: whoever opens it says why it cannot be read
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            check_can_end(Path(path), DataError, PIPE_ADVICE)
        if not stat.S_ISDIR(mode):
            yield path


def _place_of(path: str, folders: dict[str, str]) -> str:
    """Where a file that is no link really lies; `folders` remembers this for folders."""
    if path == STDIN:
        return path
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return f"{folders[folder]}{os.sep}{name}"


def _as_glob(pattern: Path) -> str:
    """`pattern`, with `*`, `?` and `[` in the names of folders that exist taken literally."""
    folder = next((parent for parent in pattern.parents if parent.is_dir()), None)
    if folder is None:
        return str(pattern)
    return str(Path(glob.escape(str(folder)), pattern.relative_to(folder)))
