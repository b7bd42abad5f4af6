"""Built-in texts: TinyShakespeare as llm.c tokenises it, and Python's own documentation."""

import functools
import hashlib
import platform
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cupygpt.console.stream import say
from cupygpt.data.token_files import Tokens
from cupygpt.data.token_record import Origin
from cupygpt.data.tokenizer import ByteTokenizer, Tokenizer
from cupygpt.errors import DataError
from cupygpt.files import check_can_end
from cupygpt.texts.python_docs import PythonDocs, python_docs_text
from cupygpt.web.download import Wanted, download
from cupygpt.web.transfer import check_address

SHAKESPEARE_HOST = "https://raw.githubusercontent.com"
SHAKESPEARE_PATH = "karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_VAL_TOKENS = 32_768

HELD_OUT_EVERY = 20


def tinyshakespeare_text(source: Path | None = None, mirror: str | None = None) -> str:
    """The TinyShakespeare text (1.1 MB), from the file `source`, else from the network.

    A folder `source` holds it as `input.txt`. `mirror` is another server with the same paths.
    Raises DataError if the file cannot be read or is not UTF-8, or if what comes has not the known
    SHA-256 (a login page, for example), and RunError if nothing comes.
    """
    if source is not None:
        source = source / Path(SHAKESPEARE_PATH).name if source.is_dir() else source
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
    host = SHAKESPEARE_HOST if mirror is None else mirror
    check_address(host, "--mirror")
    return _downloaded(f"{host.rstrip('/')}/{SHAKESPEARE_PATH}").decode()


@functools.cache
def _downloaded(url: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tinyshakespeare"
        download(Wanted(url, path, SHAKESPEARE_SHA256), lambda text: say(f"note: {text}"))
        return path.read_bytes()


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
