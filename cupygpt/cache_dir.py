"""The cache folder, for what can be made again: measured choices, the built-in corpus."""

import os
from pathlib import Path


def cache_dir() -> Path | None:
    """The folder $CUPYGPT_CACHE_DIR, else $XDG_CACHE_HOME/cupygpt, else ~/.cache/cupygpt.

    It may not exist yet. None for a user without a home folder: then nothing is kept.
    """
    chosen = os.environ.get("CUPYGPT_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(chosen).expanduser() if chosen else Path(base).expanduser() / "cupygpt"
    except RuntimeError:  # no home folder is known
        return None
