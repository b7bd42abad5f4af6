"""Whatever a server does, in any order, over several calls: a right file, or an error and none."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.web_server import (
    Answer,
    Handler,
    Site,
    cut_at,
    other,
    promises,
    redirects,
    send,
    serving,
    status,
    whole,
)

from cupygpt.errors import CupyGPTError
from cupygpt.web.download import Patience, Wanted, download

VERSIONS = [random.Random(i).randbytes(300_000 + i) for i in range(3)]
"""What the server may have under the same address; the ETag says which."""
QUICK = Patience(silence_s=0.5, attempts=3, first_wait_s=0.0)
CALLS = 5


def has(site: Site, version: int) -> None:
    site.etag, site.files["/file"] = f'"{version}"', VERSIONS[version]


def changes_to(version: int, stop: int) -> Answer:
    def answer(request: Handler, _: bytes) -> None:
        has(request.site, version)
        send(request, VERSIONS[version], stop)

    return answer


def any_answer(choose: random.Random) -> Answer:
    stop = choose.randrange(310_000)
    answers: list[Callable[[], Answer]] = [
        lambda: cut_at(stop),
        lambda: whole,
        lambda: status(choose.choice([408, 416, 429, 500, 503])),
        lambda: promises(choose.choice([None, 300_500])),
        lambda: lambda request, content: send(request, content, stop, ETag=None),
        lambda: changes_to(choose.randrange(3), stop),
        lambda: redirects("/file"),
        lambda: other(VERSIONS[2], ETag='"of something else"'),
        lambda: other(b"<html>Log in", Content_Type="text/html"),
    ]
    return choose.choice(answers)()


@pytest.mark.parametrize("seed", range(40))
def test_a_file_is_right_or_absent(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    path = tmp_path / "file"
    with serving({}) as site:
        has(site, 0)
        for _ in range(CALLS):
            site.answers[:] = [any_answer(choose) for _ in range(choose.randrange(5))]
            try:
                download(Wanted(f"{site.url}/file", path), lambda _: None, patience=QUICK)
            except CupyGPTError:
                assert not path.exists()
                continue
            assert path.read_bytes() in VERSIONS
            assert list(tmp_path.iterdir()) == [path]
            return
        site.answers.clear()
        download(Wanted(f"{site.url}/file", path), lambda _: None, patience=QUICK)
        assert path.read_bytes() in VERSIONS
