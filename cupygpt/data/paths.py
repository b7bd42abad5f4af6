"""Files named by a path or a pattern."""

import glob
import os
from pathlib import Path

from cupygpt.errors import DataError


def matching_files(pattern: str, *, kind: str, example: str, hint: str) -> list[Path]:
    """The file called `pattern`, else those that match it as a glob, sorted by byte value.

    A path that exists is taken literally, even if it holds `*`, `?` or `[`; folders never match.
    Raises DataError for a folder (naming the `kind` of files and `pattern`/`example`) and where
    nothing matches (ending in `hint`).
    """
    expanded = os.path.expanduser(pattern)  # noqa: PTH111 (leaves an unknown ~user as it is)
    literal = Path(expanded)
    if literal.is_dir():
        raise DataError(
            f"{pattern}: is a folder. Name the {kind} in it, for example '{literal / example}'."
        )
    if literal.exists():
        return [literal]
    paths = map(Path, glob.glob(expanded))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = sorted((path for path in paths if not path.is_dir()), key=os.fsencode)
    if not files:
        raise DataError(f"{pattern}: no such file, and no file matches it as a pattern. {hint}")
    return files
