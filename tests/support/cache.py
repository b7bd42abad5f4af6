"""What tests keep from one run to the next: compiled kernels and the logs of compilations."""

import tempfile
from pathlib import Path

from cupygpt.cache_dir import cache_dir


def cache_folder(name: str) -> Path:
    """A folder for files that can be made again; in the temporary folder if there is no home."""
    folder = (cache_dir() or Path(tempfile.gettempdir()) / "cupygpt") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
