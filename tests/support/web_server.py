"""A web server on this machine that answers as it should, or in one of many wrong ways."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

ETAG = '"v1"'

Answer: TypeAlias = Callable[["Handler", bytes], None]
"""How a request is answered, given the content of the file that it asks for."""


class Site:
    """`files` by their address. `answers` are used up one after the other; then all is well.

    `asked` holds (address, Range, If-Range) of every request.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.etag = ETAG
        self.url = ""

    def answer_next(self, *answers: Answer) -> None:
        self.answers += answers


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site, headers = self.site, self.headers
        self.close_connection = True
        site.asked.append((self.path, headers["Range"], headers["If-Range"]))
        answer = site.answers.pop(0) if site.answers else well
        content = site.files.get(self.path)
        if content is None:
            self.send_error(404)
        else:
            answer(self, content)

    def begin(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in {"ETag": self.site.etag, **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def asked_from(self) -> int:
        """The byte that is asked for, 0 if the file is another one by now."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        is_same = self.headers["If-Range"] == self.site.etag
        return int(found[1]) if found and is_same else 0

    def log_message(self, format: str, *args: object) -> None:
        pass


def well(request: Handler, content: bytes) -> None:
    send(request, content)


def send(request: Handler, content: bytes, stop: int | None = None, **headers: object) -> None:
    """The right answer, of which only the bytes before `stop` are sent."""
    start = request.asked_from()
    if start >= len(content) > 0:
        request.begin(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
        return
    range_sent = f"bytes {start}-{len(content) - 1}/{len(content)}" if start else None
    headers = {"Content_Length": len(content) - start, "Content_Range": range_sent, **headers}
    request.begin(206 if start else 200, **headers)
    request.wfile.write(content[start : len(content) if stop is None else stop])


def cut_at(stop: int) -> Answer:
    return lambda request, content: send(request, content, stop)


def stalls_at(stop: int, seconds: float) -> Answer:
    def answer(request: Handler, content: bytes) -> None:
        send(request, content, stop)
        request.wfile.flush()
        time.sleep(seconds)

    return answer


def trickles(request: Handler, content: bytes) -> None:
    """A byte now and then: never silent, never done."""
    send(request, content, 0)
    for byte in content[:40]:
        request.wfile.write(bytes([byte]))
        request.wfile.flush()
        time.sleep(0.02)


def status(code: int, **headers: object) -> Answer:
    return lambda request, _: request.begin(code, Content_Length=0, **headers)


def other(content: bytes, **headers: object) -> Answer:
    """Other bytes than those of the file."""
    return lambda request, _: send(request, content, **headers)


def whole(request: Handler, content: bytes) -> None:
    """As of a server that knows no parts."""
    request.begin(200, Content_Length=len(content))
    request.wfile.write(content)


def promises(length: int | None, **headers: object) -> Answer:
    """A server whose length is a lie, or that names none."""
    return lambda request, content: send(request, content, Content_Length=length, **headers)


def redirects(to: str, **headers: object) -> Answer:
    return lambda request, _: request.begin(302, Location=to, Content_Length=0, **headers)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    site = Site(files)
    handler = type("OfSite", (Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
