"""One HTTP request for a file, from some byte on: what the server says of it, and its bytes."""

import email.utils
import http
import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import IO

import cupygpt
from cupygpt.errors import ConfigError, DataError, RunError

BLOCK_BYTES = 2**18
SLOWEST_BYTES_PER_S = 1024
"""A server that sends less than this for the whole patience has stalled."""

_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
_MEANINGS = {
    401: "the server wants a login for it",
    403: "the server does not let you have it",
    404: "the server has no such file",
    407: "the proxy wants a login",
    410: "the server has it no more",
}


@dataclass(frozen=True)
class Remote:
    """What a server says of a file.

    `size` in bytes. `validator` changes when the file changes: a strong ETag or a date. `sha256` is
    that of the content, in hexadecimal. None: the server does not say.
    """

    size: int | None
    validator: str | None
    sha256: str | None
    media_type: str


class Interrupted(Exception):
    """The transfer broke off for a reason that may pass.

    `wait_s` is how long the server asks to wait. `is_unreachable`: no server answered.
    """

    def __init__(
        self, reason: str, wait_s: float | None = None, *, is_unreachable: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait_s, self.is_unreachable = wait_s, is_unreachable


class WrongPart(Exception):
    """The server does not have, or did not send, the part that was asked for."""


class Reply:
    """The file that comes, from byte `start` on. A context manager."""

    def __init__(
        self, response: http.client.HTTPResponse, remote: Remote, start: int, patience_s: float
    ) -> None:
        self.remote, self.start = remote, start
        self._response, self._patience_s = response, patience_s

    def __enter__(self) -> "Reply":
        return self

    def __exit__(self, *error: object) -> None:
        self._response.close()

    def blocks(self) -> Iterator[bytes]:
        """The bytes, as they arrive. Raises Interrupted if they stop before the end."""
        since, arrived, left = time.monotonic(), 0, self._response.length
        while True:
            try:
                block = self._response.read1(BLOCK_BYTES)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Interrupted(_words(error, self._patience_s)) from error
            if not block:
                break
            yield block
            left = None if left is None else left - len(block)
            arrived += len(block)
            seconds = time.monotonic() - since
            if seconds >= self._patience_s:
                if arrived < SLOWEST_BYTES_PER_S * seconds:
                    raise Interrupted(f"only {arrived:,} bytes came in {seconds:.0f} s")
                since, arrived = time.monotonic(), 0
        if left:
            raise Interrupted(f"the connection ended {left:,} bytes too early")


def request_file(url: str, start: int, validator: str | None, patience_s: float) -> Reply:
    """Ask for the file at `url`, from byte `start` on if it still has this `validator`.

    The reply begins at `start`, or at 0 if the file has changed or the server sends no parts. A
    proxy in the environment is used. Raises Interrupted for what may pass, WrongPart, and DataError
    or RunError for what the server refuses and for answers that cannot be right.
    """
    headers = {"User-Agent": f"cupygpt/{cupygpt.__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        headers["If-Range"] = validator or ""
    redirects = _Redirects()
    try:
        request = urllib.request.Request(url, headers=headers)
        response = _opener(redirects).open(request, timeout=patience_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(url, error, start) from error
    except urllib.error.URLError as error:
        raise _unanswered(url, error.reason, patience_s) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unanswered(url, error, patience_s) from error
    try:
        remote, begins = _read_headers(url, response, redirects.said, start)
    except BaseException:
        response.close()
        raise
    return Reply(response, remote, begins, patience_s)


def check_address(url: str, flag: str) -> None:
    """Raise ConfigError unless `url`, given by `flag`, is an address of the web."""
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise ConfigError(
            f"{flag} {url!r}: not the address of a server. It begins with https:// or http://, for "
            f"example https://huggingface.co"
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps what Hugging Face says of a file before it sends one on."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        for name in ("X-Linked-Size", "X-Linked-Etag"):
            if name in headers:
                self.said[name] = str(headers[name])
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise RunError(
                f"{req.full_url}: the server sends one on to an address without encryption "
                f"({newurl}). That is not followed."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener(redirects: _Redirects) -> urllib.request.OpenerDirector:
    """What opens addresses of the web, and no others."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        redirects,
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _read_headers(
    url: str, response: http.client.HTTPResponse, said: dict[str, str], start: int
) -> tuple[Remote, int]:
    """What the answer says of the file, and the byte that it begins with."""
    headers, status = response.headers, response.status
    packing = headers.get("Content-Encoding", "identity").lower()
    if packing != "identity":
        raise DataError(
            f"{url}: the server packs the file ({packing}), although it was asked not to. Use "
            f"another mirror."
        )
    begins, size = 0, response.length
    if status == http.HTTPStatus.PARTIAL_CONTENT:
        begins, size = start, _whole_size(headers.get("Content-Range", ""), start)
    elif status != http.HTTPStatus.OK:
        raise DataError(f"{url}: the server answered {status} {response.reason}, not the file.")
    linked = said.get("X-Linked-Size", headers.get("X-Linked-Size", ""))
    if linked.isdecimal():
        if size is not None and size != int(linked):
            raise RunError(
                f"{url}: the server names two sizes, {int(linked):,} and {size:,} bytes. Try again "
                f"later, or use another mirror."
            )
        size = int(linked)
    tag = said.get("X-Linked-Etag", headers.get("X-Linked-Etag", "")).strip('"').lower()
    strong = headers.get("ETag", "")
    validator = strong if re.fullmatch(r'"[^"]*"', strong) else headers.get("Last-Modified")
    sha256 = tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None
    return Remote(size, validator, sha256, headers.get_content_type()), begins


def _whole_size(content_range: str, start: int) -> int | None:
    """The size of the file, of which a part from `start` on comes; raises WrongPart for another."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range.strip())
    if not found or int(found[1]) != start or not start:
        raise WrongPart(f"it was asked for bytes from {start:,} on, and sent {content_range!r}")
    return None if found[3] == "*" else int(found[3])


def _refused(url: str, error: urllib.error.HTTPError, start: int) -> Exception:
    answer = f"the server answered {error.code} {error.reason}"
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        return WrongPart(f"it has no bytes from {start:,} on")
    if error.code in _MAY_PASS:
        return Interrupted(answer, _seconds(error.headers.get("Retry-After", "")))
    meaning = _MEANINGS.get(error.code)
    return DataError(
        f"{url}: {answer}{f': {meaning}' if meaning else ''}. Look at this address in a browser; "
        f"use another mirror (--mirror URL); or get the file in another way and pass --source."
    )


def _seconds(retry_after: str) -> float | None:
    """What `Retry-After` says: seconds, or a date."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except (TypeError, ValueError, IndexError):
        return None
    return max(0.0, date.timestamp() - time.time())


def _unanswered(url: str, reason: object, patience_s: float) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return RunError(
            f"{url}: the certificate of the server is not trusted ({reason.verify_message}). Is "
            f"the clock of this machine right, or does a proxy stand between? Python looks for "
            f"certificates where SSL_CERT_FILE says."
        )
    if isinstance(reason, str):  # not from the network: an address that nothing here opens
        return DataError(f"{url}: cannot be loaded ({reason}).")
    is_unreachable = isinstance(reason, socket.gaierror | ConnectionRefusedError) or (
        isinstance(reason, OSError) and not isinstance(reason, TimeoutError | ConnectionError)
    )
    return Interrupted(_words(reason, patience_s), is_unreachable=is_unreachable)


def _words(reason: object, patience_s: float) -> str:
    if isinstance(reason, TimeoutError):
        return f"nothing came for {patience_s:g} s"
    if isinstance(reason, http.client.IncompleteRead):
        return "the connection ended too early"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__
