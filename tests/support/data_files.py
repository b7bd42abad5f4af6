"""Files for tests: small ones made here, large ones where $CUPYGPT_TEST_DATA names their folder.

That folder holds `tinyshakespeare.txt`, and GPT-2's BPE files in `tiktoken-cache/`, as tiktoken
caches them.
"""

import base64
import os
from collections.abc import Sequence
from pathlib import Path

import pytest


def shakespeare_file() -> Path:
    """The TinyShakespeare text; skips the test without it."""
    return _existing("tinyshakespeare.txt")


def use_gpt2_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point tiktoken to GPT-2's files; skips the test without them."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(_existing("tiktoken-cache")))


def write_ranks(path: Path, tokens: Sequence[bytes] = ()) -> Path:
    """A tiktoken rank file: the 256 single bytes, then `tokens`, in this order."""
    table = [*(bytes([i]) for i in range(256)), *tokens]
    lines = [b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(table)]
    path.write_bytes(b"".join(lines))
    return path


def _existing(name: str) -> Path:
    folder = os.environ.get("CUPYGPT_TEST_DATA")
    if not folder:
        pytest.skip(f"needs {name}: CUPYGPT_TEST_DATA is not set")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"needs {path}, which is not there")
    return path
