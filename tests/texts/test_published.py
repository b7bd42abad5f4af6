"""Published data sets in one command: from a server with all its faults, or from a folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.data_files import use_gpt2_files
from support.web_server import Site, cut_at, other, promises, serving, stalls_at, status, whole

from cupygpt import prepare
from cupygpt.data.token_files import open_shards
from cupygpt.data.token_record import read_token_record
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import ByteTokenizer, load_tokenizer
from cupygpt.errors import TokenizerError
from cupygpt.texts.published import files, shards
from cupygpt.texts.published.sets import PUBLISHED
from cupygpt.web import download as download_module
from cupygpt.web.download import Patience

FINEWEB = "/datasets/kjj0/fineweb10B-gpt2/resolve/main"
STORIES = "/datasets/roneneldan/TinyStories/resolve/main"
PAGES = "/datasets/Skylion007/openwebtext/resolve/main"
VAL, FIRST, SECOND = (
    "fineweb_val_000000.bin",
    "fineweb_train_000001.bin",
    "fineweb_train_000002.bin",
)
BYTES = ["--tokenizer", "bytes"]
LOGIN = b"<!DOCTYPE html><title>Log in</title>" + b" " * 5000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no waiting, no vocabulary from the network, and a working folder."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(files.HOST_VARIABLE, raising=False)
    patience = Patience(silence_s=0.25, attempts=6, first_wait_s=0.0)
    monkeypatch.setattr(download_module, "PATIENCE", patience)

    def missing(_: str) -> None:
        raise TokenizerError("GPT-2's vocabulary is not here.")

    monkeypatch.setattr(shards, "load_tokenizer", missing)
    monkeypatch.chdir(tmp_path)


def shard(seed: int, num_tokens: int = 5000, **changes: int) -> bytes:
    """A token file of random ids; `changes` are of its header, by the names of its words."""
    tokens = np.random.RandomState(seed).randint(0, 50257, num_tokens).astype("<u2")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, changes.get("version", 1), changes.get("count", num_tokens)
    return header.tobytes() + tokens.tobytes()


@pytest.fixture
def site() -> Iterator[Site]:
    found = {f"{FINEWEB}/{name}": shard(i) for i, name in enumerate((VAL, FIRST, SECOND))}
    stories = "\n<|endoftext|>\n".join(f"Story {i}. The end." for i in range(300)) + "\n"
    found[f"{STORIES}/TinyStoriesV2-GPT4-train.txt"] = stories.encode()
    found[f"{STORIES}/TinyStoriesV2-GPT4-valid.txt"] = b"One.\n<|endoftext|>\nTwo.\n"
    with serving(found) as site:
        yield site


def run(*flags: str) -> int:
    return prepare.main([*flags])


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    assert run(*flags) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    return err


def test_fineweb_comes_through_cuts_and_silence(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.answer_next(cut_at(2000), status(503), stalls_at(7000, 0.6), whole, cut_at(500))
    assert run("fineweb", "-n", "2", "--mirror", site.url, "-o", "d") == 0
    out = capsys.readouterr().out
    assert "note: fineweb: 3 files of kjj0/fineweb10B-gpt2, about 572 MiB; the disk has" in out
    assert "fineweb_val_000000.bin: the connection ended 9,024 bytes too early" in out
    assert "10,000 training and 5,000 validation tokens, tokenizer gpt2 (50,257 ids)" in out
    assert out.endswith(
        "  python -m cupygpt.train -i 'd/fineweb_train_*.bin' -j d/fineweb_val_000000.bin\n"
    )
    assert sorted(path.name for path in Path("d").iterdir()) == [FIRST, SECOND, VAL]
    for name in (VAL, FIRST, SECOND):
        assert Path("d", name).read_bytes() == site.files[f"{FINEWEB}/{name}"]


def test_what_is_here_is_not_loaded_again(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.HOST_VARIABLE, f"{site.url}/")
    assert run("fineweb", "-n", "1") == 0
    assert [address for address, *_ in site.asked] == [f"{FINEWEB}/{name}" for name in (VAL, FIRST)]
    assert run("fineweb", "-n", "2") == 0
    assert [address for address, *_ in site.asked[2:]] == [f"{FINEWEB}/{SECOND}"]
    assert run("fineweb", "-n", "2") == 0
    assert len(site.asked) == 3
    capsys.readouterr()
    assert run("fineweb", "-n", "1") == 0
    assert "1 more training file of fineweb is in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (other(LOGIN, Content_Type="text/html"), "sent a web page (text/html) instead of the file"),
        (other(b"version https://git-lfs.github.com/spec/v1\n" * 40), "a pointer of Git LFS"),
        (other(b"\0" * 9000), "not a GPT-2 token file (magic number 0, expected 20240520)"),
        (other(shard(1, count=6000)), "11,024 bytes, but its header counts 6,000 tokens"),
        (promises(10_000), "10,000 bytes, but its header counts 5,000 tokens"),
        (other(shard(1)[:-2] + b"\xff\xff"), "token 4,999 is id 65535"),
        (other(shard(1, version=2)), "version 2"),
        (status(404), "404 Not Found: the server has no such file"),
    ],
    ids=["page", "pointer", "zeros", "cut file", "short", "ids", "version", "404"],
)
def test_what_is_no_shard_is_named_and_removed(
    site: Site, capsys: pytest.CaptureFixture[str], answer: object, message: str
) -> None:
    site.answer_next(answer)
    err = refused(capsys, "fineweb", "-n", "1", "--mirror", site.url)
    assert message in err
    assert "fineweb_val_000000.bin" in err
    assert not list(Path().iterdir())
    assert run("fineweb", "-n", "1", "--mirror", site.url) == 0


def test_a_damaged_file_that_is_here_is_named(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(FIRST).write_bytes(shard(1)[:-2])
    err = refused(capsys, "fineweb", "-n", "1", "--mirror", site.url)
    assert "fineweb_train_000001.bin: 11,022 bytes, but its header counts" in err
    assert "Remove this file to get it again" in err


def test_the_records_are_those_of_gpt2(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    use_gpt2_files(monkeypatch)
    monkeypatch.setattr(shards, "load_tokenizer", load_tokenizer)
    assert run("fineweb", "-n", "1", "--mirror", site.url) == 0
    record = read_token_record(open_shards("fineweb_*.bin"))
    assert record is not None
    assert record.tokenizer.name == "gpt2"
    assert [file.origin.sources for file in record.files] == [["kjj0/fineweb10B-gpt2"]] * 2
    assert [file.part for file in record.files] == ["train", "val"]


def write_source(site: Site, folder: Path, prefix: str = FINEWEB) -> None:
    for address, content in site.files.items():
        if address.startswith(prefix):
            path = folder / address.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def test_everything_works_from_a_folder(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(site, Path("here"))
    assert run("fineweb", "--source", "here", "-o", "there") == 0
    assert sorted(path.name for path in Path("there").iterdir()) == [FIRST, SECOND, VAL]
    assert Path("there", VAL).samefile(Path("here", VAL))  # linked: it takes no room
    assert run("fineweb", "--source", "here", "-o", "here") == 0
    assert run("fineweb", "--source", "here", "-o", "there", "-n", "1") == 0
    assert site.asked == []
    err = refused(capsys, "fineweb", "--source", "here", "-n", "4")
    assert "fineweb_train_000003.bin and 1 more of fineweb" in err
    Path("there", FIRST).unlink()
    Path("there", FIRST).write_bytes(shard(9))
    err = refused(capsys, "fineweb", "--source", "here", "-o", "there")
    assert "there is another file of this name" in err
    assert "not a folder" in refused(capsys, "fineweb", "--source", "nowhere")
    Path("here", FIRST).write_bytes(LOGIN)
    err = refused(capsys, "fineweb", "--source", "here", "-o", "new")
    assert "here/fineweb_train_000001.bin: this is not a GPT-2 token file" in err


def test_a_copy_where_files_cannot_be_linked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(site, Path("here"))

    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(shards.os, "link", refuse)
    assert run("fineweb", "--source", "here", "-o", "there") == 0
    assert Path("there", VAL).read_bytes() == site.files[f"{FINEWEB}/{VAL}"]
    assert not Path("there", VAL).samefile(Path("here", VAL))


def text_of(path: str) -> str:
    tokens = np.concatenate([one.tokens for one in open_shards(path)])
    return ByteTokenizer().decode(tokens).replace("<|endoftext|>", "#")


@pytest.mark.parametrize("from_folder", [False, True])
def test_tinystories_keeps_its_published_split(
    site: Site, capsys: pytest.CaptureFixture[str], *, from_folder: bool
) -> None:
    write_source(site, Path("here"), STORIES)
    place = ["--source", "here"] if from_folder else ["--mirror", site.url]
    if not from_folder:
        site.answer_next(cut_at(10), cut_at(15))
    assert run("tinystories", *BYTES, "-o", "d", *place) == 0
    out = capsys.readouterr().out
    assert "302 documents in 2 files" in out
    assert "held out for validation: the file TinyStoriesV2-GPT4-valid.txt" in out
    assert text_of("d/tinystories_val.bin") == "#One.\n#Two.\n"
    train = text_of("d/tinystories_train.bin")
    assert train.startswith("#Story 0. The end.\n#Story 1. The end.\n#")
    assert train.count("#") == 300
    assert "the texts stay in d/downloads" in out or from_folder
    assert re.search(r"GPT4-train\.txt has \d+ KiB, but about 2\.08 GiB were published", out)
    record = json.loads(Path("d/tinystories_val.bin.json").read_text())
    assert record["origin"]["split"] == "the file TinyStoriesV2-GPT4-valid.txt"
    requests = len(site.asked)
    assert run("tinystories", *BYTES, "-o", "d", "--name", "n", *place) == 0
    assert len(site.asked) == requests
    assert Path("d/n_train.bin").read_bytes() == Path("d/tinystories_train.bin").read_bytes()


@pytest.mark.parametrize("from_folder", [False, True])
def test_openwebtext_is_read_from_parquet(
    site: Site, capsys: pytest.CaptureFixture[str], *, from_folder: bool
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    for i in range(2):
        texts = [f"Page {j} of file {i}." for j in range(200)]
        parquet.write_table(arrow.table({"text": texts}), "one.parquet")
        name = PUBLISHED["openwebtext"].train.format(i)
        site.files[f"{PAGES}/{name}"] = Path("one.parquet").read_bytes()
    write_source(site, Path("here"), PAGES)
    place = ["--source", "here"] if from_folder else ["--mirror", site.url]
    assert run("openwebtext", "-n", "2", *BYTES, "-o", "d", *place) == 0
    out = capsys.readouterr().out
    assert "400 documents in 2 files" in out
    both = text_of("d/openwebtext_train.bin") + text_of("d/openwebtext_val.bin")
    assert sorted(both.split("#")[1:]) == sorted(
        f"Page {j} of file {i}." for i in range(2) for j in range(200)
    )
    if not from_folder:
        shutil.rmtree("d/downloads")
        content = site.files[f"{PAGES}/{PUBLISHED['openwebtext'].train.format(0)}"]
        site.answer_next(other(content[:-2]), other(LOGIN))
        flags = ["openwebtext", "-n", "1", *BYTES, "-o", "d", *place]
        assert "this parquet file is cut short" in refused(capsys, *flags)
        assert "a web page" in refused(capsys, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["fineweb", "-n", "104"], "-n 104: fineweb has 103 training files"),
        (["fineweb", "-n", "0"], "-n 0: fineweb has 103 training files"),
        (["fineweb", "--tokenizer", "bytes"], "--tokenizer: fineweb is taken as it was published"),
        (["fineweb", "--name", "x"], "--name: fineweb is taken"),
        (["fineweb", "--shard-tokens", "5"], "--shard-tokens: fineweb is taken"),
        (["fineweb-edu", "--val-fraction", "0.1"], "--val-fraction: fineweb-edu is taken"),
        (["tinystories", "--val-fraction", "0.1"], "--val-fraction: tinystories is taken"),
        (["tinystories", "-n", "1"], "-n counts the training files of fineweb, fineweb-edu, openw"),
        (["tinystories", "--field", "x"], "--field: tinystories"),
        (["openwebtext", "--headerless"], "--headerless: openwebtext"),
        (["fineweb", "tinystories"], "fineweb is a data set and must be the only one"),
        (["python-docs", "--mirror", "http://a"], "--mirror says where"),
        (["a.txt", "--source", "b"], "--source says where"),
        (["a.txt", "-n", "3"], "-n counts"),
        (["fineweb", "--mirror", "a.org"], "--mirror 'a.org': not the address of a server"),
        (["fineweb", "--mirror", "http://a", "--source", "b"], "pass one of them"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in refused(capsys, *flags)
    assert not list(Path().iterdir())


def test_a_disk_that_is_too_small_is_said_first(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 2**30})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    err = refused(capsys, "fineweb", "--mirror", site.url, "-o", "d")
    assert "about 2.05 GiB are needed, but only 1.00 GiB are free" in err
    flags = [*BYTES, "--mirror", site.url, "-o", "d"]
    err = refused(capsys, "tinystories", *flags)
    assert "about 3.12 GiB are needed with the tokens that are made of it" in err
    assert site.asked == []


def test_no_network_is_a_failed_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    for flags in (["tinyshakespeare", *BYTES], ["fineweb"], ["tinystories", *BYTES]):
        assert run(*flags) == 1
        assert "error: https://" in (err := capsys.readouterr().err)
        assert "no server can be reached" in err
    assert not list(Path().iterdir())


def test_ctrl_c_and_again_goes_on(site: Site) -> None:
    site.answer_next(stalls_at(6000, 20))
    command = [sys.executable, "-m", "cupygpt.prepare", "fineweb", "-n", "1", "--mirror", site.url]
    environment = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[1])}
    part = Path(f"{VAL}.download")
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not (part.exists() and Path(f"{VAL}.download.json").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.communicate(timeout=20)[1]
        assert process.returncode == 130
    there = part.stat().st_size
    assert 0 < there <= 6000
    before = len(site.asked)
    assert run("fineweb", "-n", "1", "--mirror", site.url) == 0
    assert site.asked[before] == (f"{FINEWEB}/{VAL}", f"bytes={there}-", '"v1"')
    assert Path(VAL).read_bytes() == site.files[f"{FINEWEB}/{VAL}"]


def test_own_files_can_be_for_validation(capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        Path(f"{name}.txt").write_text(name * 10)
    flags = [*BYTES, "--name", "n"]
    assert run("*.txt", "--val", "b.txt", *flags) == 0
    assert "held out for validation: the file b.txt (--val)" in capsys.readouterr().out
    assert (text_of("n_train.bin"), text_of("n_val.bin")) == (
        "#" + "a" * 10 + "#" + "c" * 10,
        "#" + "b" * 10,
    )
    assert run("a.txt", "--val", "./b.txt", "--val", "c.txt", *flags) == 0
    assert text_of("n_val.bin") == "#" + "b" * 10 + "#" + "c" * 10
    assert "nothing is left to train on" in refused(capsys, "a.txt", "--val", "*.txt", *flags)
    assert "--val names all" in refused(capsys, "a.txt", "--val", "b.txt", "--hold-out", "ends")
    assert "Check the path of --val" in refused(capsys, "a.txt", "--val", "no.txt", *flags)
    write_shard(Path("t.bin"), [1, 2])
    assert "--val is for text" in refused(capsys, "t.bin", "--headerless", "--val", "a.txt")
