"""GPT-2's BPE through tiktoken, which downloads two files once.

Without the files and the network, an error comes within seconds. But tiktoken's download has no
time limit: if the server answers and then sends nothing, the program waits until it is stopped.
"""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

from cupygpt.errors import TokenizerError

if TYPE_CHECKING:
    import tiktoken

DOWNLOAD_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
"""One of the two files; only asked whether it can be reached."""
PATIENCE_S = 8.0

Result = TypeVar("Result")


def load_encoding() -> "tiktoken.Encoding":
    """GPT-2's encoding, from tiktoken's cache or the network.

    Raises TokenizerError, within seconds, if it is not cached and the server does not answer. If
    the server answers, the download may take any time.
    """
    import tiktoken

    loading = _in_background(lambda: tiktoken.get_encoding("gpt2"))
    if not wait([loading], PATIENCE_S).done and (reason := _why_unreachable()):
        raise _unavailable(reason)
    try:
        return loading.result()
    # requests' errors are OSErrors; a file that fails its checksum is a ValueError.
    except (OSError, ValueError) as error:
        raise _unavailable(_why_unreachable() or str(error)) from error


def _why_unreachable() -> str | None:
    """Why the server with GPT-2's files does not answer; None if it does."""

    def ask() -> None:
        request = urllib.request.Request(DOWNLOAD_URL, method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE_S).close()

    # In the background, because the look-up of a host name has no time limit.
    answer = _in_background(ask)
    if not wait([answer], PATIENCE_S).done:
        return f"no answer within {PATIENCE_S:.0f} s"
    error = answer.exception()
    return None if error is None else str(getattr(error, "reason", error))


def _in_background(function: Callable[[], Result]) -> Future[Result]:
    """Call `function` on a daemon thread, which never keeps the program from ending."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 (whoever reads the result gets it)
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _unavailable(reason: str) -> TokenizerError:
    return TokenizerError(
        f"the GPT-2 tokenizer's files are not on this machine and could not be downloaded "
        f"({reason}). Connect once to the internet; or, on a machine that is connected, set "
        f'TIKTOKEN_CACHE_DIR to a new folder, run python -c "import tiktoken; '
        f"tiktoken.get_encoding('gpt2')\", copy the folder here and set TIKTOKEN_CACHE_DIR to "
        f"it; or use --tokenizer bytes, which needs no files."
    )
