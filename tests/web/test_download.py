"""A download survives what servers do, or says what is wrong; it never leaves a wrong file."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from support.web_server import (
    Answer,
    Site,
    cut_at,
    other,
    promises,
    redirects,
    send,
    serving,
    stalls_at,
    status,
    trickles,
    whole,
)

from cupygpt.errors import ConfigError, DataError, RunError
from cupygpt.web import download as download_module
from cupygpt.web.download import Patience, Wanted, download
from cupygpt.web.transfer import check_address

CONTENT = bytes(range(256)) * 2000
"""512,000 bytes."""
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(silence_s=0.25, attempts=3, first_wait_s=0.0, longest_wait_s=5.0)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving({"/file": CONTENT}) as site:
        yield site


class Loader:
    """Loads /file of a site into a folder, and keeps the notes."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.path = site, folder / "file"
        self.notes: list[str] = []
        self.shown: list[int] = []

    def load(self, **known: object) -> bytes:
        wanted = Wanted(f"{self.site.url}/file", self.path, **known)
        download(wanted, self.notes.append, self.shown.append, QUICK)
        assert [path.name for path in self.path.parent.iterdir()] == ["file"]
        return self.path.read_bytes()

    def fails(self, error: type[Exception], match: str, left: int, **known: object) -> None:
        """It fails with this error, and leaves so many bytes of a part."""
        with pytest.raises(error, match=match):
            self.load(**known)
        assert not self.path.exists()
        part = self.path.with_name("file.download")
        assert (part.stat().st_size if part.exists() else 0) == left
        assert part.exists() == (left > 0)

    @property
    def starts(self) -> list[int]:
        """From where each request asked for the file."""
        found = [re.findall(r"\d+", asked or "0") for _, asked, _ in self.site.asked]
        return [int(start[0]) for start in found]


@pytest.fixture
def loader(site: Site, tmp_path: Path) -> Loader:
    return Loader(site, tmp_path)


def test_a_file_is_loaded(loader: Loader) -> None:
    assert loader.load() == CONTENT
    assert loader.load(sha256=SHA256) == CONTENT
    assert loader.shown[-1] == len(CONTENT)
    assert loader.notes == []


@pytest.mark.parametrize(
    ("answers", "starts"),
    [
        ([cut_at(200_000)], [0, 200_000]),
        ([cut_at(200_000), cut_at(300_000)], [0, 200_000, 300_000]),
        ([stalls_at(200_000, 0.6)], [0, 200_000]),
        ([cut_at(200_000), status(503), status(500)], [0] + [200_000] * 3),
        ([status(503), status(429, Retry_After="0")], [0] * 3),
        ([cut_at(0), cut_at(0)], [0, 0, 0]),
        ([cut_at(200_000), whole], [0, 200_000]),
        ([cut_at(200_000), promises(None)], [0, 200_000]),
        ([promises(len(CONTENT) + 10)], [0, len(CONTENT), 0]),
        ([cut_at(200_000), promises(10)], [0, 200_000, 200_010]),
    ],
    ids=[
        *("cut", "cut twice", "stalled", "5xx", "busy", "empty", "no parts", "no length"),
        *("promises too much", "a part of a part"),
    ],
)
def test_what_may_pass_is_survived(
    loader: Loader, answers: list[Answer], starts: list[int]
) -> None:
    loader.site.answer_next(*answers)
    assert loader.load(sha256=SHA256) == CONTENT
    assert loader.starts == starts
    assert loader.notes


def test_a_server_that_is_too_slow_is_asked_again(loader: Loader) -> None:
    loader.site.answer_next(trickles)
    assert loader.load() == CONTENT
    assert 1 <= loader.starts[1] < 40
    assert re.search(r"only \d+ bytes came in 0 s", loader.notes[0])


def test_another_call_goes_on_where_the_first_one_stopped(loader: Loader) -> None:
    loader.site.answer_next(cut_at(200_000), *[cut_at(200_100)] * 3)
    loader.fails(RunError, "too early; that was attempt 3 .* the same command goes on", 200_100)
    before = len(loader.site.asked)
    assert loader.load() == CONTENT
    assert loader.site.asked[before:] == [("/file", "bytes=200100-", '"v1"')]
    assert "file: going on after 195 KiB" in loader.notes


def test_a_whole_part_is_not_loaded_again(loader: Loader) -> None:
    loader.site.answer_next(cut_at(200_000))
    loader.load()
    loader.path.rename(loader.path.with_name("file.download"))
    memo = {"url": f"{loader.site.url}/file", "size": len(CONTENT), "validator": '"v1"'}
    memo_path = loader.path.with_name("file.download.json")
    memo_path.write_text(json.dumps({**memo, "sha256": None}))
    before = len(loader.site.asked)
    assert loader.load() == CONTENT
    assert len(loader.site.asked) == before


@pytest.mark.parametrize("memo", ["", "[]", "{}", '{"url": 1}', None, '{"url": "http://a/b"}'])
def test_a_part_of_which_nothing_is_known_is_not_used(loader: Loader, memo: str | None) -> None:
    loader.path.with_name("file.download").write_bytes(b"of another file")
    if memo is not None:
        loader.path.with_name("file.download.json").write_text(memo)
    assert loader.load() == CONTENT
    assert loader.starts == [0]


def changes(content: bytes) -> Answer:
    """The server has another file from now on, and then cuts."""

    def answer(request: object, _: bytes) -> None:
        request.site.etag, request.site.files["/file"] = '"v2"', content
        send(request, content)

    return answer


def test_a_file_that_changes_between_two_parts_is_loaded_anew(loader: Loader) -> None:
    new = CONTENT[::-1]
    loader.site.answer_next(cut_at(200_000), changes(new))
    assert loader.load() == new
    assert any("the whole file again: it has changed" in note for note in loader.notes)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"v2"'},
        {"Content_Range": "bytes 100-511999/512000"},
        {"Content_Range": f"bytes 200000-{len(CONTENT)}/{len(CONTENT) + 1}"},
        {"Content_Range": "bytes"},
        {"Content_Range": None},
    ],
)
def test_a_wrong_part_is_never_joined(loader: Loader, headers: dict[str, object]) -> None:
    """A server that sends a part of another file, or another part."""
    loader.site.answer_next(cut_at(200_000), other(CONTENT[::-1], **headers))
    assert loader.load() == CONTENT
    assert loader.starts == [0, 200_000, 0]


def test_without_an_etag_or_a_date_no_part_is_used(loader: Loader) -> None:
    loader.site.answer_next(lambda r, c: send(r, c, 200_000, ETag=None))
    assert loader.load() == CONTENT
    assert loader.starts == [0, 0]


@pytest.mark.parametrize("tag", ['W/"v1"', None])
def test_a_weak_etag_does_not_identify_bytes_but_a_date_does(
    loader: Loader, tag: str | None
) -> None:
    date = formatdate(1e9, usegmt=True)
    loader.site.answer_next(lambda r, c: send(r, c, 200_000, ETag=tag, Last_Modified=date))
    assert loader.load() == CONTENT
    assert loader.site.asked[1] == ("/file", "bytes=200000-", date)


def test_wrong_bytes_are_removed(loader: Loader) -> None:
    loader.site.answer_next(other(CONTENT[:-1] + b"x"))
    loader.fails(DataError, "SHA-256 is not the expected one", 0, sha256=SHA256)
    # A server that says the hash itself, as Hugging Face does before it sends one on.
    address = f"{loader.site.url}/elsewhere"
    loader.site.files["/elsewhere"] = CONTENT[:-1] + b"x"
    said = {"X_Linked_Size": len(CONTENT), "X_Linked_Etag": f'"{SHA256}"'}
    loader.site.answer_next(redirects(address, **said))
    loader.fails(DataError, "SHA-256 is not the expected one", 0)
    loader.site.files["/elsewhere"] = CONTENT
    loader.site.answer_next(redirects(address, **said), cut_at(200_000), redirects(address, **said))
    assert loader.load() == CONTENT
    assert loader.site.asked[-1] == ("/elsewhere", "bytes=200000-", '"v1"')


def test_a_promise_that_is_too_short_is_noticed(loader: Loader) -> None:
    loader.site.answer_next(promises(100_000))
    loader.fails(DataError, "SHA-256", 0, sha256=SHA256)
    address = f"{loader.site.url}/file"
    said = {"X_Linked_Size": len(CONTENT)}
    loader.site.answer_next(redirects(address, **said), promises(100_000))
    loader.fails(RunError, "the server names two sizes, 512,000 and 100,000 bytes", 0)
    loader.site.answer_next(redirects(address, X_Linked_Size=100_000), promises(None))
    loader.fails(DataError, "more came than the 100,000 bytes", 0)


def test_a_file_of_unknown_length_is_doubted(loader: Loader) -> None:
    loader.site.answer_next(promises(None))
    assert loader.load() == CONTENT
    assert "did not say how long it is" in loader.notes[0]


def test_a_web_page_is_not_the_file(loader: Loader) -> None:
    page = b"\n<!DOCTYPE html><title>Log in</title>" + b" " * 5000
    for content in (page, page[:40]):
        loader.site.answer_next(other(content, Content_Type="text/html"))
        loader.fails(DataError, r"sent a web page \(text/html\) instead of the file", 0)


def test_the_beginning_is_checked_before_the_rest_is_loaded(loader: Loader) -> None:
    def check(beginning: bytes) -> None:
        assert beginning == CONTENT[:1024]
        raise DataError("no good beginning.")

    loader.fails(DataError, "no good beginning", 0, check_beginning=check)
    assert loader.shown == []

    def check_all(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise DataError("no good file.")

    loader.fails(DataError, "/file cannot be used and is removed: no good file", 0, check=check_all)


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ([status(404)], DataError, "404 Not Found: the server has no such file.*--mirror"),
        ([status(403)], DataError, "403 Forbidden: the server does not let you have it"),
        ([status(204)], DataError, "answered 204 No Content, not the file"),
        ([status(503)] * 3, RunError, "503 Service Unavailable; that was attempt 3"),
        ([status(429, Retry_After="86400")], RunError, "asks to wait 86,400 s"),
        ([promises(None, Content_Encoding="gzip")], DataError, r"packs the file \(gzip\)"),
        ([redirects("/file")] * 20, DataError, "302"),
        ([redirects("ftp://127.0.0.1/file")], DataError, "unknown url type: ftp"),
        ([redirects("file:///etc/passwd")], DataError, "302"),
    ],
    ids=[
        *("404", "403", "204", "503", "busy for a day", "gzip", "redirects for ever"),
        *("to ftp", "to a file"),
    ],
)
def test_what_does_not_pass_is_said(
    loader: Loader, answers: list[Answer], error: type[Exception], message: str
) -> None:
    loader.site.answer_next(*answers)
    loader.fails(error, message, 0)


def test_a_server_that_asks_to_wait_is_waited_for(loader: Loader) -> None:
    date = formatdate(time.time() + 2.5, usegmt=True)
    for asked in ("1", date):
        loader.site.answer_next(status(429, Retry_After=asked))
        began = time.monotonic()
        loader.load()
        assert 0.4 < time.monotonic() - began < 5
    assert "429 Too Many Requests; trying again in 1 s" in loader.notes[0]


def test_no_server_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for host in (f"127.0.0.1:{port}", "nowhere.invalid"):
        with pytest.raises(RunError, match=r"no server can be reached .*--source"):
            download(Wanted(f"http://{host}/file", tmp_path / "f"), print, patience=QUICK)
    assert not [*tmp_path.iterdir()]


def test_what_is_no_web_server_is_said(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        notes: list[str] = []
        address = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        with pytest.raises(RunError, match=r"nothing came for 0\.25 s; that was attempt 3"):
            download(Wanted(address, tmp_path / "f"), notes.append, patience=QUICK)
    assert not [*tmp_path.iterdir()]


def test_a_proxy_in_the_environment_is_used(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", loader.site.url)
    loader.site.files["http://example.invalid/file"] = CONTENT
    download(Wanted("http://example.invalid/file", loader.path), loader.notes.append)
    assert loader.path.read_bytes() == CONTENT


def test_a_disk_that_is_too_small_is_said_before_the_download(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 400_000})
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: usage)
    loader.fails(RunError, "500 KiB are still to come, but the disk has only 391 KiB free", 0)
    assert loader.shown == []


def test_one_process_at_a_time_loads_a_file(loader: Loader) -> None:
    fcntl = pytest.importorskip("fcntl")
    with loader.path.with_name("file.download").open("wb") as part:
        part.write(b"kept")
        part.flush()
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is loading this file"):
            loader.load()
        assert loader.path.with_name("file.download").read_bytes() == b"kept"


def test_a_link_is_not_followed(loader: Loader, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    loader.path.with_name("file.download").symlink_to(target)
    with pytest.raises(ConfigError, match="no plain file under this name"):
        loader.load()
    assert target.read_text() == "precious"


def test_a_killed_download_goes_on(loader: Loader) -> None:
    """kill -9 at any moment: here while the server is silent."""
    loader.site.answer_next(stalls_at(200_000, 10))
    program = (
        "import sys; from pathlib import Path; from cupygpt.web.download import *;"
        "download(Wanted(sys.argv[1], Path(sys.argv[2])), print, lambda n: print(n, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, f"{loader.site.url}/file", str(loader.path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 200_000:
            pass
        process.kill()
    there = loader.path.with_name("file.download").stat().st_size
    assert loader.load() == CONTENT
    assert loader.starts == [0, there]


@pytest.mark.parametrize(
    "address", ["huggingface.co", "ftp://a/b", "https://", "http://a b", "file:///x", "http://a?b"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a server"):
        check_address(address, "--mirror")
    check_address("http://127.0.0.1:80/some/folder", "--mirror")
