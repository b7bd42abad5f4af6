"""The built-in corpus: prose that every Python carries, read without network or files.

Documents are the language reference topics behind `help()` (pydoc_data.topics, 0.5 MB) and the
docstrings of the standard library's modules, classes and functions (1.6 MB), read with `ast`.
"""

import ast
import gc
import hashlib
import importlib
import json
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cupygpt
from cupygpt.cache_dir import cache_dir
from cupygpt.errors import DataError, RunError
from cupygpt.files import atomic_write

# Tests, and packages that are data, other languages' text or third-party code.
SKIPPED_FOLDERS = frozenset(
    {"__phello__", "__pycache__", "dist-packages", "encodings", "ensurepip", "idle_test"}
    | {"idlelib", "lib-dynload", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
    | {"turtledemo"}
)
# A whole standard library has about 7,200 distinct docstrings.
FEW_DOCSTRINGS = 1000

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
EMPTY_MODULE = ast.Module([], [])
STATEMENT_LISTS = ("body", "orelse", "handlers", "finalbody")


@dataclass(frozen=True)
class PythonDocs:
    """The corpus: distinct documents in a fixed order, and notes on what could not be read."""

    documents: tuple[str, ...]
    notes: tuple[str, ...]


def python_docs_text() -> PythonDocs:
    """The corpus of the running Python; one installation always gives the same documents.

    The first call takes 2 to 4 s on one core. The result is kept in the cache folder if that can be
    written, under a name that depends on Python's version and location and on this package's
    version. If the library's sources are missing (a zipped or compiled Python), the corpus is the
    topics alone, and a note says so. Raises DataError if there is no text at all.
    """
    library = Path(sysconfig.get_path("stdlib"))
    path = _cache_path(library)
    docs = _load(path) if path else None
    if docs is None:
        docs = read_python_docs(library)
        if path:
            _save(path, docs)
    return docs


def read_python_docs(library: Path) -> PythonDocs:
    """The corpus of the topics and of the sources in the folder `library`, not from the cache."""
    notes = []
    topics = _topics()
    if not topics:
        notes.append("this Python has no pydoc_data.topics; the corpus is docstrings only")
    docstrings = _docstrings(library)
    if len(docstrings) < FEW_DOCSTRINGS:
        notes.append(
            f"{len(docstrings)} docstrings found in {library} (7,000 are usual): "
            f"this Python comes without its library's sources"
        )
    documents = tuple(dict.fromkeys([*topics, *docstrings]))
    if not documents:
        raise DataError(
            f"this Python ({sys.executable}) has neither pydoc_data.topics nor library sources in "
            f"{library}, so there is no built-in text. Train on your own: "
            f"python -m cupygpt.prepare FILE"
        )
    return PythonDocs(documents, tuple(notes))


def _topics() -> list[str]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return [topics[name].strip() + "\n" for name in sorted(topics)]


def _docstrings(library: Path) -> list[str]:
    paths = sorted(_sources(library), key=lambda path: path.relative_to(library).as_posix())
    # The garbage collector would take a quarter of the time, though syntax trees have no cycles.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return [text for path in paths for text in _docstrings_below(_parsed(path))]
    finally:
        if collecting:
            gc.enable()


def _sources(library: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in SKIPPED_FOLDERS and not name.startswith("config-")
        ]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _parsed(path: Path) -> ast.Module:
    """The syntax tree; empty for a file that has no docstrings or cannot be parsed."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return EMPTY_MODULE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old sources that are not ours
            return ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return EMPTY_MODULE


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    """The docstrings of `node` and of what is defined in it, in source order."""
    if isinstance(node, DOCUMENTED):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring + "\n"
    for field in STATEMENT_LISTS:
        children: Any = getattr(node, field, None)
        # The `body` of a lambda or a conditional expression is one node, not a list of statements.
        if isinstance(children, list):
            for child in children:
                yield from _docstrings_below(child)


def _cache_path(library: Path) -> Path | None:
    """The file that keeps the corpus; None if there is no cache folder."""
    folder = cache_dir()
    if folder is None:
        return None
    identity = f"{sys.version} {library} {cupygpt.__version__}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return folder / f"python-docs-{platform.python_version()}-{digest}.json"


def _load(path: Path) -> PythonDocs | None:
    """The kept corpus; None if there is none or it is damaged."""
    try:
        record = json.loads(path.read_bytes())
        documents, notes = record["documents"], record["notes"]
        if record["sha256"] == _digest(documents):
            return PythonDocs(tuple(documents), tuple(notes))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the sources are read again, and the file is replaced
    return None


def _save(path: Path, docs: PythonDocs) -> None:
    record = {
        "sha256": _digest(docs.documents),
        "documents": docs.documents,
        "notes": docs.notes,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(record).encode())
    except (OSError, RunError):
        pass  # the cache only saves time: the next run reads the sources again


def _digest(documents: Any) -> str:
    return hashlib.sha256("\0".join(documents).encode("utf-8", "surrogatepass")).hexdigest()
