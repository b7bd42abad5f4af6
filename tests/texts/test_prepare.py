"""python -m cupygpt.prepare: files as promised, every error one message and an exit code."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import shakespeare_file, write_ranks

from cupygpt import prepare
from cupygpt.cli import run_cli
from cupygpt.data.token_files import open_shards
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import ByteTokenizer, load_tokenizer
from cupygpt.errors import ConfigError, DataError, RunError
from cupygpt.texts import prepare_files, python_docs
from cupygpt.texts.reading.documents import Documents

BYTES = ["--tokenizer", "bytes"]
Result = subprocess.CompletedProcess


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., "Result[str]"]:
    def run(*args: str, **environment: str) -> "Result[str]":
        return subprocess.run(
            [sys.executable, "-m", "cupygpt.prepare", *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[1]), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def text_of(pattern: Path) -> str:
    tokens = np.concatenate([shard.tokens for shard in open_shards(str(pattern))])
    return ByteTokenizer().decode(tokens).replace("<|endoftext|>", "#")


def test_the_end_of_each_text_file_is_for_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + b"b" * 20 + b"\r\n" * 10)
    (tmp_path / "a.txt").write_text("a" * 20 + "éé", encoding="utf-8")
    assert prepare.main(["*.txt", *BYTES, "--val-fraction", "0.25", "-o", "out/deep"]) == 0
    assert (
        text_of(tmp_path / "out/deep/text_train.bin") == "#" + "a" * 18 + "#" + "b" * 20 + "\n" * 3
    )
    assert text_of(tmp_path / "out/deep/text_val.bin") == "#aaéé#" + "\n" * 7
    folder = Path("out/deep")
    assert capsys.readouterr().out.splitlines() == [
        "note: 2 documents in 2 files, 54 bytes of text",
        "note: 10 Windows line ends became line feeds; byte order marks were left out (UTF-8 of 1)",
        "note: held out for validation: the last 25 % of each document (2 documents; whole ones "
        "from 40 on)",
        f"wrote {folder / 'text_train.bin'}",
        f"wrote {folder / 'text_val.bin'}",
        "43 training and 15 validation tokens, tokenizer bytes (257 ids)",
        "next:",
        f"  python -m cupygpt.train -i {folder / 'text_train.bin'} -j {folder / 'text_val.bin'}",
    ]


def test_shards_of_an_earlier_run_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("0123456789" * 10)
    Path("book_train.bin.txt").write_text("kept")
    Path("book_train_000009.bin").write_text("not a token file, so kept")
    flags = [*BYTES, "--shard-tokens", "40"]
    assert prepare.main(["book.txt", *flags]) == 0
    sizes = [shard.num_tokens for shard in open_shards("book_train_00000[1-8].bin")]
    assert sizes == [40, 40, 11]
    assert text_of(Path("book_train_00000[1-8].bin")) == "#" + ("0123456789" * 10)[:90]
    assert "-i 'book_train_*.bin' -j book_val.bin" in capsys.readouterr().out
    assert prepare.main(["book.txt", *BYTES, "--val-fraction", "0"]) == 0
    assert text_of(Path("book_train.bin")) == "#" + "0123456789" * 10
    output = capsys.readouterr().out
    for gone in ("book_train_000002.bin", "book_train_000003.bin", "book_val.bin"):
        assert f"removed {gone} (of an earlier run)" in output
    assert "-j" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "book.txt",
        "book_train.bin",
        "book_train.bin.json",
        "book_train.bin.txt",
        "book_train_000009.bin",
    ]


def test_the_next_command_finds_the_files_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("0123456789" * 10)
    arguments = ["book.txt", "-o", "my [data]", "--name", "x[1]"]
    assert prepare.main([*arguments, "--shard-tokens", "40", *BYTES]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert len(open_shards(words[words.index("-i") + 1])) == 3
    assert len(open_shards(words[words.index("-j") + 1])) == 1


def test_prepare_expands_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(elsewhere)
    (home / "book.txt").write_text("0123456789" * 5000)
    write_ranks(home / "my.tiktoken", [b"01", b"23"])
    paths = ["--output=~/out", "--tokenizer=~/my.tiktoken"]
    assert prepare.main(["~/book.txt", *paths]) == 0
    assert prepare.main(["tinyshakespeare", "--source=~/book.txt", *paths]) == 0
    assert not list(elsewhere.iterdir())
    names = {path.name for path in (home / "out").iterdir()}
    assert {"book_train.bin", "book_val.bin", "book_tokenizer.tiktoken"} < names
    assert "tiny_shakespeare_train.bin" in names


def test_a_failed_run_leaves_the_earlier_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text " * 100)
    assert prepare.main(["a.txt", *BYTES]) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"abc\xff")
    assert prepare.main(["a.txt", "bad.txt", *BYTES, "--name", "a"]) == 2
    bad.unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_gpt2_is_the_default_for_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        prepare_files, "load_tokenizer", lambda spec: asked.append(spec) or ByteTokenizer()
    )
    (tmp_path / "my book.txt").write_text("text " * 100)
    assert prepare.main([str(tmp_path / "my book.txt"), "-o", str(tmp_path)]) == 0
    assert (tmp_path / "text_train.bin").exists()
    assert asked == ["gpt2"]


def test_python_docs_are_split_by_documents_and_notes_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = python_docs.PythonDocs(tuple(f"document {i}\n" for i in range(40)), ("sources missing",))
    monkeypatch.setattr(prepare_files, "python_docs_text", lambda: docs)
    assert prepare.main(["python-docs", "-o", str(tmp_path)]) == 0
    assert text_of(tmp_path / "python_docs_val.bin") == "#document 9\n#document 29\n"
    assert text_of(tmp_path / "python_docs_train.bin").startswith("#document 0\n#document 1\n")
    assert "note: sources missing\n" in capsys.readouterr().out


def test_tinyshakespeare_can_be_prepared_as_bytes(tmp_path: Path) -> None:
    text = "".join(f"Line {i}:\nwords\n\n" for i in range(3000))
    (tmp_path / "play.txt").write_text(text)
    args = ["tinyshakespeare", "--source", str(tmp_path / "play.txt"), "-o", str(tmp_path), *BYTES]
    assert prepare.main(args) == 0
    [val] = open_shards(str(tmp_path / "tiny_shakespeare_val.bin"))
    assert val.num_tokens == 32768
    whole = text_of(val.path) + text_of(tmp_path / "tiny_shakespeare_train.bin")
    assert whole.replace("#", "") == text
    assert whole.count("#") == 3001


def test_the_files_of_the_experiment_are_those_of_llmc(
    command: Callable[..., "Result[str]"], tmp_path: Path
) -> None:
    source = shakespeare_file()
    cache = str(source.parent / "tiktoken-cache")
    result = command("tinyshakespeare", "--source", str(source), TIKTOKEN_CACHE_DIR=cache)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(
        "python -m cupygpt.train -i tiny_shakespeare_train.bin -j tiny_shakespeare_val.bin\n"
    )
    digest = hashlib.sha256((tmp_path / "tiny_shakespeare_train.bin").read_bytes()).hexdigest()
    assert digest == "8a70606be574040c26d225694f5f9759973b419852d22f7fe5c118e1b359dcc8"


OFFLINE = {"https_proxy": "http://127.0.0.1:9", "TIKTOKEN_CACHE_DIR": "none"}
ERRORS = [
    (["no.txt"], r"no\.txt: no such file, .*Known data sets: tinyshakespeare"),
    (["*.none"], r"no file matches"),
    (["a[1]*.txt"], r"no file matches .* write \[\[\] for the character \["),
    (["folder"], r"is a folder without \.txt, .*\. Name the text files in it, for example"),
    (["latin.txt"], r"latin\.txt: not UTF-8 text: byte 0xe9 at offset 3"),
    (["empty.txt"], r"empty\.txt: the file is empty"),
    (["short.txt"], r"3 training and 0 validation tokens; .*--val-fraction"),
    (["empty.txt", "empty.txt"], r"empty\.txt: the file is empty"),
    (["ok.txt", "--val-fraction", "1"], r"must be at least 0 and below 1"),
    (["ok.txt", "--val-fraction", "nan"], r"must be at least 0 and below 1"),
    (["ok.txt", "--shard-tokens", "1"], r"from 2 to"),
    (["ok.txt", "--name", "a/b"], r"Use -o for folders"),
    (["ok.txt", "--name", "a\nb"], r"part of a file name"),
    (["ok.txt", "--name=-b"], r"not begin with a dash"),
    (["ok.txt", "-o", "ok.txt"], r"ok\.txt: cannot hold the output"),
    (
        ["ok.txt", "--source", "ok.txt"],
        r"--source says where tinyshakespeare or a published data set comes from",
    ),
    (["ok.txt", "--tokenizer", "gpt9"], r"tokenizer gpt9: could not be read"),
    (["ok.txt", "--tokenizer", "ok.txt"], r"line 1 is not a base64 token"),
    (["ok.txt", "--tokenizer", "gpt2"], r"could not be downloaded .*--tokenizer bytes"),
    (["tinyshakespeare", "ok.txt"], r"must be the only one"),
    (["ok.txt", "python-docs"], r"must be the only one.*\./python-docs"),
    (["python-docs", "--val-fraction", "0.1"], r"fixed split"),
    (["python-docs", "--hold-out", "ends"], r"--hold-out is for text files"),
    (["tinyshakespeare", "--split-at-endoftext"], r"--split-at-endoftext is for text files"),
    (["tinyshakespeare", "--headerless"], r"--headerless is for text files"),
    (["ids.bin", "--headerless", "--hold-out", "ends"], r"--hold-out is for text; --headerless"),
    (["ids.bin"], r"ids\.bin: not UTF-8 text.*add --headerless"),
    (["odd.bin", "--headerless"], r"odd\.bin: 3 bytes, which is no number of token ids"),
    (["ids.bin", "--headerless"], r"hold token id 65,535, but tokenizer bytes has 257 ids"),
    (["x_val.bin", "--headerless"], r"a GPT-2 token file, with a header.*cupygpt\.train"),
    (["x_val.bin", "--headerless", "--name", "x"], r"x_val\.bin would be overwritten"),
    (["fifo.txt"], r"fifo\.txt: this is a FIFO .*PROGRAM \| python -m cupygpt\.prepare -"),
    (["ok.txt", "--tokenizer", "fifo.txt"], r"fifo\.txt: this is a FIFO"),
    (["tinyshakespeare", "--source", "fifo.txt"], r"fifo\.txt: this is a FIFO"),
    (["tinyshakespeare", "--source", "no.txt"], r"no\.txt: could not be read"),
    (["tinyshakespeare", "--source", "ok.txt"], r"ok\.txt: 501 tokens, .*first 32,768"),
    ([], r"the following arguments are required: WHAT"),
    (["ok.txt", "--shard-tokens", "many"], r"invalid int value"),
]


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "short.txt").write_text("ab")
    (tmp_path / "ok.txt").write_text("text " * 100)
    (tmp_path / "ids.bin").write_bytes(b"\xff" * 200)
    (tmp_path / "odd.bin").write_bytes(b"\xff" * 3)
    write_shard(tmp_path / "x_val.bin", [1, 2])
    os.mkfifo(tmp_path / "fifo.txt")
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})  # what other tests have loaded
    return tmp_path


@pytest.mark.parametrize(("args", "message"), ERRORS)
def test_each_error_is_one_message_and_changes_no_file(
    inputs: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    before = sorted(inputs.rglob("*"))
    try:
        code = prepare.main([*BYTES, *args])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert all(line.startswith("note: ") for line in captured.out.splitlines())
    assert re.search("error: .*" + message, captured.err), captured.err
    assert sorted(inputs.rglob("*")) == before


@pytest.mark.parametrize(("args", "message"), ERRORS[::8])
def test_the_real_command_reports_errors_without_traceback(
    inputs: Path, command: Callable[..., "Result[str]"], args: list[str], message: str
) -> None:
    result = command(*BYTES, *args)
    assert result.returncode == 2
    assert all(line.startswith("note: ") for line in result.stdout.splitlines())
    assert re.search("error: .*" + message, result.stderr)
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(command: Callable[..., "Result[str]"]) -> None:
    result = command("no.txt", "--debug", *BYTES)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "cupygpt.errors.DataError: no.txt: no such file" in result.stderr


def test_help_names_the_built_in_texts(command: Callable[..., "Result[str]"]) -> None:
    result = command("--help")
    assert result.returncode == 0
    assert "tinyshakespeare" in result.stdout


def test_each_kind_of_error_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(error: BaseException) -> Callable[[], None]:
        def main() -> None:
            raise error

        return main

    cases = [
        (ConfigError("a flag."), 2, "error: a flag.\n"),
        (RunError("a run."), 1, "error: a run.\n"),
        (KeyboardInterrupt(), 130, "interrupted.\n"),
        (
            MemoryError("9 TiB"),
            1,
            "error: out of memory (9 TiB). Use smaller sizes, or close other programs.\n",
        ),
        (
            OSError(5, "I/O error", "x"),
            1,
            "error: [Errno 5] I/O error: 'x'. Run again with --debug to see where this happened.\n",
        ),
    ]
    for error, code, message in cases:
        assert run_cli(failing(error)) == code
        assert capsys.readouterr().err == message
    assert run_cli(lambda: None) == 0
    with pytest.raises(ConfigError):
        run_cli(failing(ConfigError("a flag.")), debug=True)
    with pytest.raises(ZeroDivisionError):
        run_cli(failing(ZeroDivisionError()))


def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "import sys; from cupygpt.cli import run_cli\n"
        "sys.exit(run_cli(lambda: sys.stdout.write('x' * 10**6)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[1])},
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(10) == 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_tokenise_like_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = data.draw(st.text(alphabet="ab é\n\r\t'1.\x1c\x85 ", min_size=1, max_size=60))
    path, ranks = folder / "pieces.txt", folder / "pieces.tiktoken"
    path.write_bytes(text.encode())
    if not ranks.exists():
        merges = [b"\n\n", b"\r\n", b" a", b"ab", b"\n a", b"\r\n\r\n", b"  ", b"a\n", b"\nb"]
        write_ranks(ranks, merges)
    tokenizer = load_tokenizer(str(ranks))
    documents = Documents([str(path)], block_bytes=data.draw(st.integers(3, 12)))
    pieces = [piece for piece in documents.pieces() if piece is not None]
    text = "" if text.isspace() else text.replace("\r\n", "\n")
    assert "".join(pieces) == text
    ids = [int(token) for piece in pieces for token in tokenizer.encode(piece)]
    assert ids == tokenizer.encode(text).tolist()


def test_large_files_come_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some words\n" * 1000)
    *pieces, end = Documents([str(path)], block_bytes=100).pieces()
    assert end is None
    assert len(pieces) > 50
    assert max(len(piece or "") for piece in pieces) < 220


@settings(max_examples=60, deadline=None)
@given(content=st.binary(min_size=1, max_size=30), block_bytes=st.integers(3, 9))
def test_bad_utf8_is_named_by_its_offset(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "utf8.txt"
    path.write_bytes(content)
    try:
        want = content.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        offset = error.start
        with pytest.raises(DataError, match=rf"{content[offset]:#04x} at offset {offset}\."):
            list(Documents([str(path)], block_bytes=block_bytes).pieces())
        return
    pieces = Documents([str(path)], block_bytes=block_bytes).pieces()
    want = "" if want.isspace() else want
    assert "".join(piece for piece in pieces if piece is not None) == want
