"""Files that some tests use where they are present: $CUPYGPT_TEST_DATA names their folder.

It holds `tinyshakespeare.txt` and `tiktoken-cache/`, GPT-2's BPE files as tiktoken caches them.
"""

import os
from pathlib import Path

import pytest


def shakespeare_file() -> Path:
    """The TinyShakespeare text; skips the test if it is not there."""
    return _existing("tinyshakespeare.txt")


def use_gpt2_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point tiktoken to GPT-2's files; skips the test if they are not there."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(_existing("tiktoken-cache")))


def _existing(name: str) -> Path:
    folder = os.environ.get("CUPYGPT_TEST_DATA")
    if not folder:
        pytest.skip(f"needs {name}: CUPYGPT_TEST_DATA is not set")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"needs {path}, which is not there")
    return path
