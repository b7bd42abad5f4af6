"""Tokenizers: exact ids, lossless round trips, damaged files named, errors within seconds."""

import base64
import io
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import use_gpt2_files, write_ranks

from cupygpt.data import gpt2_bpe
from cupygpt.data import tokenizer as tokenizer_module
from cupygpt.data.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    default_tokenizer_spec,
    load_tokenizer,
    split_at_long_blanks,
)
from cupygpt.errors import TokenizerError

MERGES = [b"th", b"the", b" the", b"\n\n", b"er", b"\xc3\xa9"]


def llmc_bytes(tokens: Sequence[bytes], version: int = 2, eot: int = 0) -> bytes:
    header = np.zeros(256, "<i4")
    header[:4] = 20240328, version, len(tokens), eot if version == 2 else 0
    return header.tobytes() + b"".join(bytes([len(token)]) + token for token in tokens)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = write_ranks(tmp_path_factory.mktemp("bpe") / "small.tiktoken", MERGES)
    return load_tokenizer(str(path))


def test_the_byte_tokenizer_has_257_ids() -> None:
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eot) == ("bytes", 257, 256)
    ids = tokenizer.encode("aé")
    assert ids.dtype == np.uint16
    assert ids.tolist() == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 256, 98]) == "a<|endoftext|>b"
    assert tokenizer.decode([0xC3]) == "�"
    assert tokenizer.encode("").shape == (0,)


@pytest.mark.parametrize("token", [-1, 257, 65535])
def test_ids_outside_the_vocabulary_cannot_be_decoded(token: int) -> None:
    with pytest.raises(TokenizerError, match=rf"id {token} is not .* bytes \(257 ids\)"):
        ByteTokenizer().decode([65, token])


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_from_its_ids(bpe: Tokenizer, text: str) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint16
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot not in ids


def test_lone_surrogates_become_the_replacement_character(bpe: Tokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(tokenizer.encode("a\udc80é")) == "a�é"


def test_special_names_are_ordinary_text(bpe: Tokenizer) -> None:
    text = "<|endoftext|>"
    assert bpe.encode(text).tolist() == list(text.encode())


def test_a_rank_file_gives_its_tokens_and_end_of_text(bpe: Tokenizer) -> None:
    assert bpe.vocab_size == 256 + len(MERGES) + 1
    assert bpe.eot == bpe.vocab_size - 1
    assert bpe.encode("the the\n\n").tolist() == [257, 258, 259]
    assert bpe.decode([257, bpe.eot]) == "the<|endoftext|>"


def test_a_rank_file_may_hold_the_name_of_end_of_text(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "named.tiktoken", [b"<|endoftext|>"])
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.vocab_size, tokenizer.eot) == (258, 257)
    assert tokenizer.decode([256, 257]) == 2 * "<|endoftext|>"
    assert tokenizer.encode("<|endoftext|>").tolist() != [257]


def test_unused_ids_decode_to_nothing(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "gap.tiktoken")
    with path.open("ab") as file:
        file.write(b"\n%s 300\n" % base64.b64encode(b"ab"))
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.vocab_size, tokenizer.eot) == (302, 301)
    assert tokenizer.decode([300, 299, 97]) == "aba"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (b"YQ==\n", "line 257 is not a base64 token"),
        (b"?? 7\n", "line 257 is not a base64 token"),
        (b"YWI= x\n", "line 257 is not a base64 token"),
        (b"YWI= -1\n", "line 257 is not a base64 token"),
        (b"<html> <body> </body>\n", "line 257 is not a base64 token"),
        (b"YQ== 300\n", "line 257 repeats the token b'a'"),
        (b"YWI= 97\n", "two tokens have the same rank"),
        (b"YWI= 1048575\n", "1,048,577 ids .* 1,048,576 are"),
    ],
)
def test_a_damaged_rank_file_is_named_with_its_line(
    tmp_path: Path, extra: bytes, message: str
) -> None:
    path = write_ranks(tmp_path / "a.tiktoken")
    path.write_bytes(path.read_bytes() + extra)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(str(path))
    assert str(path) in str(caught.value)


def test_a_rank_file_needs_all_single_bytes(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "a.tiktoken")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:200]))
    with pytest.raises(TokenizerError, match="56 of the 256 single bytes"):
        load_tokenizer(str(path))
    path.write_bytes(b"")
    with pytest.raises(TokenizerError, match="256 of the 256 single bytes"):
        load_tokenizer(str(path))


@pytest.mark.parametrize("name", ["tok.bin", "tok.dat"])
def test_a_tokenizer_of_llmc_decodes_only(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(llmc_bytes([b"a", b"\xc3", b"\xa9", b"<|endoftext|>"], eot=3))
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eot) == (str(path), 4, 3)
    assert tokenizer.decode([0, 1, 2]) == "aé"
    with pytest.raises(TokenizerError, match=r"decode but not encode 'abc'.*--tokenizer gpt2"):
        tokenizer.encode("abc")


def test_a_version_1_tokenizer_of_llmc_has_50257_ids(tmp_path: Path) -> None:
    path = tmp_path / "tok.bin"
    path.write_bytes(llmc_bytes([b"x"] * 50257, version=1))
    assert load_tokenizer(str(path)).eot == 50256
    path.write_bytes(llmc_bytes([b"x"] * 50256, version=1))
    with pytest.raises(TokenizerError, match="50,256 ids in a version 1"):
        load_tokenizer(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, but the header alone has 1,024"),
        (llmc_bytes([b"a"])[:1000], "1000 bytes, but the header alone has 1,024"),
        (np.full(256, 20240326, "<i4").tobytes(), "this is a model, not a tokenizer"),
        (b"\0" * 2000, "magic number 0, expected 20240328"),
        (llmc_bytes([b"a"], version=3), "version 3"),
        (llmc_bytes([], eot=0), "0 ids"),
        (llmc_bytes([b"a", b"b"], eot=2), "end of text 2"),
        (llmc_bytes([b"a", b"b"], eot=-1), "end of text -1"),
        (llmc_bytes([b"a", b"", b"b"]), "token 1 of 3, at byte 1,026, has length 0"),
        (llmc_bytes([b"a", b"bcd"])[:-1], "token 1 of 2, at byte 1,026, is cut short"),
        (llmc_bytes([b"a", b"bcd"])[:-4], "token 1 of 2, at byte 1,026, is cut short"),
        (llmc_bytes([b"a", b"bcd"]) + b"x", "1,031 bytes, but its 2 tokens end at byte 1,030"),
    ],
)
def test_a_damaged_tokenizer_of_llmc_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tok.bin"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(str(path))
    assert str(path) in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_tokenizer_of_llmc_that_is_cut_anywhere_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.binary(min_size=1, max_size=255), min_size=1, max_size=8))
    whole = llmc_bytes(tokens)
    path = tmp_path_factory.getbasetemp() / "cut.bin"
    path.write_bytes(whole)
    assert [load_tokenizer(str(path)).decode_bytes([i]) for i in range(len(tokens))] == tokens
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(TokenizerError):
        load_tokenizer(str(path))


def test_a_vocabulary_that_is_to_be_learnt_is_no_tokenizer_yet() -> None:
    with pytest.raises(TokenizerError, match=r"bpe:512 asks python -m cupygpt\.prepare to learn"):
        load_tokenizer("bpe:512")


def test_a_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    for spec in ("gpt3", str(tmp_path / "no.tiktoken"), str(tmp_path)):
        with pytest.raises(TokenizerError, match=r"could not be read .*gpt2, bytes, or the path"):
            load_tokenizer(spec)


NO_ROUTE = urllib.error.URLError("no route")


@pytest.mark.parametrize("failure", [NO_ROUTE, TimeoutError("no route")])
def test_without_network_gpt2_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(
        TokenizerError, match=r"\(no route\).*TIKTOKEN_CACHE_DIR.*--tokenizer bytes"
    ):
        load_tokenizer("gpt2")


def test_a_damaged_download_of_gpt2_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(name: str) -> None:
        raise ValueError("Hash mismatch")

    monkeypatch.setattr(tiktoken, "get_encoding", damaged)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO())
    with pytest.raises(TokenizerError, match=r"\(Hash mismatch\)"):
        load_tokenizer("gpt2")


def test_gpt2_behind_a_silent_firewall_fails_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    def silent(*args: object, **kwargs: object) -> io.BytesIO:
        released.wait(10)
        return io.BytesIO()

    monkeypatch.setattr(tiktoken, "get_encoding", silent)
    monkeypatch.setattr(urllib.request, "urlopen", silent)
    monkeypatch.setattr(gpt2_bpe, "PATIENCE_S", 0.05)
    with pytest.raises(TokenizerError, match="no answer within"):
        load_tokenizer("gpt2")
    released.set()


def test_a_slow_download_of_gpt2_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = object()

    def slow(name: str) -> object:
        time.sleep(0.3)
        return encoding

    monkeypatch.setattr(tiktoken, "get_encoding", slow)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO())
    monkeypatch.setattr(gpt2_bpe, "PATIENCE_S", 0.05)
    assert gpt2_bpe.load_encoding() is encoding


def test_the_network_is_not_asked_for_files_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: object, **kwargs: object) -> None:
        raise AssertionError(args)

    use_gpt2_files(monkeypatch)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})  # what other tests have loaded
    monkeypatch.setattr(urllib.request, "urlopen", asked)
    assert load_tokenizer("gpt2").vocab_size == 50257


def test_gpt2_has_its_known_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpt2_files(monkeypatch)
    tokenizer = load_tokenizer("gpt2")
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eot) == ("gpt2", 50257, 50256)
    assert tokenizer.encode("Hello world\n\n").tolist() == [15496, 995, 628]
    assert 50256 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([15496, 995, 50256]) == "Hello world<|endoftext|>"


def test_the_vocabulary_suggests_the_tokenizer() -> None:
    assert default_tokenizer_spec(257) == "bytes"
    assert default_tokenizer_spec(50257) == "gpt2"
    assert default_tokenizer_spec(50304) is None


def test_tiktoken_is_imported_only_when_needed() -> None:
    code = (
        "import sys, cupygpt.data.tokenizer as t; t.load_tokenizer('bytes').encode('a'); "
        "sys.exit('tiktoken' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet=" \n\t\u3000\x85\x1c\u200bxé1!'", max_size=30),
    shortest=st.integers(2, 5),
)
def test_cutting_at_long_blanks_changes_no_token(bpe: Tokenizer, text: str, shortest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        pattern = re.compile(f"[{tokenizer_module.BLANKS}]{{{shortest},}}")
        patch.setattr(tokenizer_module, "LONG_BLANKS", pattern)
        parts = list(split_at_long_blanks(text))
        ids = bpe.encode(text).tolist()
    assert "".join(parts) == text
    assert "" not in parts
    original = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ranks = bpe._encoding._mergeable_ranks
    reference = tiktoken.Encoding("x", pat_str=original, mergeable_ranks=ranks, special_tokens={})
    assert ids == reference.encode_ordinary(text)


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000"])
def test_a_million_blanks_are_tokenised(bpe: Tokenizer, blank: str) -> None:
    text = "x" + blank * 1_000_001 + "x"
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    short = bpe.encode("x" + blank * 101 + "x")
    np.testing.assert_array_equal(ids[:50], short[:50])
    np.testing.assert_array_equal(ids[-4:], short[-4:])


def test_a_panic_of_tiktoken_is_one_message(
    bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    class Failing:
        error: BaseException = PanicException("StackOverflow")

        def encode_ordinary(self, text: str) -> list[int]:
            raise self.error

    monkeypatch.setattr(bpe, "_encoding", Failing())
    with pytest.raises(TokenizerError, match=r"failed \(StackOverflow\) .* 3 char.*'abc'"):
        bpe.encode("abc")
    Failing.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bpe.encode("abc")


def test_the_hash_is_that_of_the_vocabulary_in_any_form(bpe: Tokenizer, tmp_path: Path) -> None:
    table = [bpe.decode_bytes([i]) for i in range(bpe.vocab_size)]
    path = tmp_path / "same.bin"
    path.write_bytes(llmc_bytes(table, eot=bpe.eot))
    same = load_tokenizer(str(path))
    assert same.sha256 == bpe.sha256
    assert (same.file, ByteTokenizer().file) == (path, None)
    others = [
        load_tokenizer(str(write_ranks(tmp_path / "other.tiktoken", MERGES[:-1]))),
        load_tokenizer(str(write_ranks(tmp_path / "swapped.tiktoken", MERGES[::-1]))),
        ByteTokenizer(),
    ]
    path.write_bytes(llmc_bytes(table, eot=0))
    others.append(load_tokenizer(str(path)))
    assert len({tokenizer.sha256 for tokenizer in [bpe, *others]}) == 5


def test_the_bytes_of_text_leave_out_end_of_text(bpe: Tokenizer) -> None:
    ids = np.concatenate([[bpe.eot], bpe.encode("the é\n\n"), [bpe.eot]]).astype(np.uint16)
    assert bpe.text_bytes(ids) == len("the é\n\n".encode())
    assert bpe.text_bytes(ids[:0]) == 0
