"""The folder for what can be made again: measured choices, the built-in corpus, compiled tests."""

import os
from pathlib import Path


def cache_dir() -> Path | None:
    """$CUPYGPT_CACHE_DIR, else $XDG_CACHE_HOME/cupygpt, else ~/.cache/cupygpt; it may be missing.

    None for a user without a home folder. A program then works without a cache.
    """
    chosen = os.environ.get("CUPYGPT_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(chosen).expanduser() if chosen else Path(base).expanduser() / "cupygpt"
    except RuntimeError:  # no home folder is known
        return None
