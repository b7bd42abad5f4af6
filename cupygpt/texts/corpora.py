"""Built-in texts: TinyShakespeare as llm.c tokenises it, and Python's own documentation."""

import hashlib
import platform
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cupygpt.data.token_files import Tokens
from cupygpt.data.token_record import Origin
from cupygpt.data.tokenizer import ByteTokenizer, Tokenizer
from cupygpt.errors import DataError
from cupygpt.files import check_can_end
from cupygpt.texts.python_docs import PythonDocs, python_docs_text

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_VAL_TOKENS = 32_768
DOWNLOAD_TIMEOUT_S = 20.0

HELD_OUT_EVERY = 20


def tinyshakespeare_text(source: Path | None = None) -> str:
    """The TinyShakespeare text (1.1 MB), from the file `source`, else downloaded.

    Raises DataError if the file cannot be read or is not UTF-8, if there is no network, or if the
    download is not the text of the known SHA-256 (a login page, for example).
    """
    if source is not None:
        check_can_end(source, DataError)
        try:
            return source.read_bytes().decode()
        except OSError as error:
            raise DataError(
                f"{source}: could not be read ({error.strerror or error}). Check --source."
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source}: not UTF-8 text (byte {error.object[error.start]:#04x} at offset "
                f"{error.start:,}). Save it as UTF-8."
            ) from error
    content = _download(SHAKESPEARE_URL)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHAKESPEARE_SHA256:
        raise DataError(
            f"{SHAKESPEARE_URL}: {len(content):,} bytes that are not the TinyShakespeare text "
            f"(SHA-256 {digest[:16]}..., expected {SHAKESPEARE_SHA256[:16]}...). Is a login page "
            f"in the way? Get the file in another way and pass --source FILE."
        )
    return content.decode()


def tinyshakespeare_tokens(text: str, tokenizer: Tokenizer) -> Tokens:
    """(n,): each passage preceded by end of text, as llm.c's dev/data/tinyshakespeare.py.

    A passage ends at a blank line; the two line feeds belong to it. Each passage is encoded
    separately.
    """
    passages = [passage + "\n\n" for passage in text.split("\n\n")]
    passages[-1] = passages[-1].removesuffix("\n\n")
    return encode_documents(passages, tokenizer)


def encode_documents(documents: Sequence[str], tokenizer: Tokenizer) -> Tokens:
    """(n,): the ids of all documents, each preceded by end of text if there is one."""
    separator = np.array([tokenizer.eot], tokenizer.format.dtype)
    pieces = [piece for text in documents for piece in (separator, tokenizer.encode(text))]
    return np.concatenate(pieces) if pieces else separator[:0]


def python_docs_tokens(
    docs: PythonDocs | None = None, tokenizer: Tokenizer | None = None
) -> tuple[Tokens, Tokens]:
    """Train and validation tokens (n,) of the built-in corpus, in bytes by default.

    Every 20th document is held out for validation, about 5 % of the tokens. Each document is
    preceded by end of text (256 for bytes). The tokens depend only on the Python installation.
    """
    train, val = hold_out((docs or python_docs_text()).documents)
    tokenizer = tokenizer or ByteTokenizer()
    return encode_documents(train, tokenizer), encode_documents(val, tokenizer)


def python_docs_origin(docs: PythonDocs) -> Origin:
    """Where the tokens of the built-in corpus come from."""
    return Origin(
        [f"documentation in Python {platform.python_version()}"],
        1,
        text_sha256(docs.documents),
        f"every {HELD_OUT_EVERY}th document",
    )


def hold_out(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and validation documents: the 10th, 30th, 50th, ... are held out."""
    held_out = range(HELD_OUT_EVERY // 2 - 1, len(documents), HELD_OUT_EVERY)
    train = [text for i, text in enumerate(documents) if i not in held_out]
    return train, [documents[i] for i in held_out]


def text_sha256(texts: Iterable[str]) -> str:
    """The SHA-256 of texts, each in UTF-8 and followed by a zero byte."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
            content: bytes = response.read()
            return content
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(
            f"{url}: could not be downloaded ({reason}). Check the network, or get the file in "
            f"another way and pass --source FILE."
        ) from error
