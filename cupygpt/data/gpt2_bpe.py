"""GPT-2's BPE through tiktoken, which downloads two files once: found, or an error in seconds."""

import hashlib
import os
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from cupygpt.errors import TokenizerError

if TYPE_CHECKING:
    import tiktoken

URLS = (
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
)
PATIENCE_S = 8.0


def load_encoding() -> "tiktoken.Encoding":
    """GPT-2's encoding from tiktoken. Raises TokenizerError, within seconds, if it cannot be had."""
    if not all(path.is_file() for path in cached_paths()):
        _check_reachable()
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    # requests' errors are OSErrors; a file that fails its checksum is a ValueError.
    except (OSError, ValueError) as error:
        raise _unavailable(str(error)) from error


def cached_paths() -> list[Path]:
    """Where tiktoken keeps its copies of the two files (as tiktoken/load.py names them)."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    base = Path(tempfile.gettempdir()) / "data-gym-cache" if folder is None else Path(folder)
    return [base / hashlib.sha1(url.encode()).hexdigest() for url in URLS]


def _check_reachable() -> None:
    """Ask for the first file's headers; tiktoken itself would wait without limit."""
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(URLS[0], method="HEAD")
            urllib.request.urlopen(request, timeout=PATIENCE_S).close()
            outcome.append(None)
        except (OSError, ValueError) as error:
            outcome.append(str(error.reason if isinstance(error, urllib.error.URLError) else error))

    # On a thread, because the look-up of a host name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    failure = outcome[0] if outcome else f"no answer within {PATIENCE_S:.0f} s"
    if failure is not None:
        raise _unavailable(failure)


def _unavailable(reason: str) -> TokenizerError:
    names = " and ".join(path.name for path in cached_paths())
    return TokenizerError(
        f"the GPT-2 tokenizer's files are not on this machine and could not be downloaded "
        f'({reason}). Connect once to the internet; or run python -c "import tiktoken; '
        f"tiktoken.get_encoding('gpt2')\" on a machine that is connected, with "
        f"TIKTOKEN_CACHE_DIR=FOLDER, copy the two files it leaves there ({names}) and set "
        f"TIKTOKEN_CACHE_DIR to them here; or use --tokenizer bytes, which needs no files."
    )
