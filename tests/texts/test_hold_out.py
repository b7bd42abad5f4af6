"""Which documents there are, and which part of them is for validation."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupygpt import prepare
from cupygpt.data.token_files import open_shards
from cupygpt.data.tokenizer import ByteTokenizer
from cupygpt.texts.hold_out import Sizes, choose_hold_out, is_held_out
from cupygpt.texts.look import look_at
from cupygpt.texts.reading.documents import Documents
from cupygpt.texts.reading.reading import Reading

BYTES = ["--tokenizer", "bytes"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_documents(folder: str, count: int, *, first: int = 0) -> None:
    Path(folder).mkdir(exist_ok=True)
    for i in range(first, first + count):
        Path(folder, f"{i}.txt").write_text(f"Document {i} says {i * i}.\n")


def documents(path: str) -> list[str]:
    [shard] = open_shards(path)
    return ByteTokenizer().decode(shard.tokens).split("<|endoftext|>")[1:]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_of_many_documents_whole_ones_are_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    write_documents("d", 400)
    assert prepare.main(["d/*.txt", "--name", "x", *BYTES]) == 0
    assert (
        "held out for validation: about 10 % of the documents, chosen by a hash of their content "
        "(400 documents)" in said(capsys)
    )
    train, val = documents("x_train.bin"), documents("x_val.bin")
    texts = [path.read_text() for path in Path("d").iterdir()]
    assert sorted(train + val) == sorted(texts)
    assert 22 <= len(val) <= 58  # 40 expected, standard deviation 6


def test_a_larger_corpus_keeps_the_split() -> None:
    write_documents("d", 250)
    assert prepare.main(["d/*.txt", "--name", "x", *BYTES]) == 0
    train, val = documents("x_train.bin"), documents("x_val.bin")
    write_documents("d", 250, first=1000)
    assert prepare.main(["d/*.txt", "--name", "x", *BYTES]) == 0
    assert set(documents("x_train.bin")) > set(train)
    assert set(documents("x_val.bin")) > set(val)


def test_the_split_does_not_depend_on_the_tokenizer_or_the_order() -> None:
    assert is_held_out(bytes([12, *[0] * 31]), 0.05)
    assert not is_held_out(bytes([13, *[0] * 31]), 0.05)  # 13 / 256 = 0.0508
    assert not is_held_out(bytes(32), 0.0)
    assert is_held_out(bytes([255] * 32), 1.0)


def sizes(*lengths: int) -> Sizes:
    return Sizes(len(lengths), sum(lengths), max(lengths))


@pytest.mark.parametrize(
    ("lengths", "fraction", "method", "whole", "reason"),
    [
        ([100] * 199, 0.05, "auto", False, "199 documents; whole ones from 200 on"),
        ([100] * 200, 0.05, "auto", True, "200 documents"),
        ([100] * 200, 0.01, "auto", False, "200 documents; whole ones from 1,000 on"),
        ([100] * 20, 0.5, "auto", True, "20 documents"),
        # 60 of 300 bytes are for validation; a document of 1 % of that would be fine.
        ([1] * 270 + [30], 0.2, "auto", True, "271 documents"),
        (
            [1] * 269 + [31],
            0.2,
            "auto",
            False,
            "270 documents; whole ones if none were longer than 30",
        ),
        ([100] * 3, 0.05, "documents", True, "3 documents, --hold-out documents"),
        ([100] * 900, 0.05, "ends", False, "900 documents, --hold-out ends"),
        ([100] * 900, 0.0, "auto", False, "--val-fraction 0"),
        ([100], 0.05, "auto", False, "1 document; whole ones from 200 on"),
    ],
)
def test_many_documents_are_those_of_which_ten_make_the_validation_part(
    lengths: list[int], fraction: float, method: str, *, whole: bool, reason: str
) -> None:
    hold_out = choose_hold_out(sizes(*lengths), fraction, method)
    assert hold_out.whole == whole
    assert hold_out.reason.startswith(reason)


def test_the_end_of_each_of_many_documents_can_be_asked_for() -> None:
    write_documents("d", 400)
    assert prepare.main(["d/*.txt", "--name", "x", "--hold-out", "ends", *BYTES]) == 0
    assert len(documents("x_val.bin")) == 400


def test_endoftext_in_the_text_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_text("One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n")
    assert prepare.main(["a.txt", "--val-fraction", "0", *BYTES]) == 0
    assert "<|endoftext|> occurs 2 times, and is learnt like any other text" in said(capsys)
    [shard] = open_shards("a_train.bin")
    assert np.count_nonzero(shard.tokens == 256) == 1
    assert prepare.main(["a.txt", "--val-fraction", "0", "--split-at-endoftext", *BYTES]) == 0
    assert "<|endoftext|> occurs 2 times, and separates documents" in said(capsys)
    Path("b.txt").write_text("One.<|endoftext|>")
    assert prepare.main(["b.txt", "--val-fraction", "0", *BYTES]) == 0
    assert "<|endoftext|> occurs 1 time, and is" in said(capsys)
    assert documents("a_train.bin") == ["One.\n", "Two.\n"]


def test_many_documents_in_one_file_are_held_out_whole() -> None:
    stories = [f"Story {i}.\nThe end of it.\n" for i in range(300)]
    Path("a.txt").write_text("<|endoftext|>\n".join(stories))
    assert prepare.main(["a.txt", "--split-at-endoftext", *BYTES]) == 0
    assert set(documents("a_val.bin")) < set(stories)
    assert sorted(documents("a_train.bin") + documents("a_val.bin")) == sorted(stories)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_documents_are_what_stands_between_the_separators(data: st.DataObject) -> None:
    """However the file is cut into blocks; a line end after a separator belongs to it."""
    part = st.text(alphabet="ab \n\r\té", max_size=12)
    parts = data.draw(st.lists(part, min_size=1, max_size=5))
    path = Path("d.txt")
    path.write_bytes("<|endoftext|>".join(parts).encode())
    parts = "<|endoftext|>".join(parts).replace("\r\n", "\n").split("<|endoftext|>")
    bare = [text.removeprefix("\n") if i else text for i, text in enumerate(parts)]
    want = [text for text in bare if text.strip()]
    how = Reading(split=True)
    documents = Documents(["d.txt"], how, block_bytes=data.draw(st.integers(3, 40)))
    got = "\0".join("\1" if piece is None else piece for piece in documents.pieces())
    assert [text for text in got.replace("\0", "").split("\1") if text] == want
    look = look_at(documents, 0.0)
    assert look.sizes.documents == len(want)
    assert look.sizes.longest_document == max([len(text.encode()) for text in want], default=0)
    assert documents.tally.endoftexts == len(parts) - 1
    assert documents.tally.empty == sum(not text.strip() for text in parts[1:-1])


def test_empty_files_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("a", "text " * 50), ("b", ""), ("c", "\ufeff"), ("d", "more " * 50)):
        Path(f"{name}.txt").write_text(text, encoding="utf-8")
    assert prepare.main(["*.txt", "--name", "x", "--val-fraction", "0", *BYTES]) == 0
    assert "note: 2 files without text, and left out: b.txt, c.txt" in said(capsys)
    assert documents("x_train.bin") == ["text " * 50, "more " * 50]


def test_the_same_text_twice_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abcdef":
        Path(f"{name}.txt").write_text("text " * 50)
    Path("link.txt").symlink_to("a.txt")
    assert prepare.main(["a.txt", "*.txt", "--name", "x", "--val-fraction", "0", *BYTES]) == 0
    output = said(capsys)
    assert "note: 2 files named twice, and taken once: a.txt, link.txt" in output
    assert (
        "note: 5 files with the content of another file, which so counts twice: b.txt, c.txt, "
        "d.txt and 2 more" in output
    )
    assert documents("x_train.bin") == ["text " * 50] * 6


def test_nanogpts_files_get_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    train, val = np.arange(3000) % 257, np.arange(100)
    train.astype("<u2").tofile("train.bin")
    val.astype("<u2").tofile("val.bin")
    arguments = ["train.bin", "val.bin", "--headerless", "--name", "owt", *BYTES]
    assert prepare.main([*arguments, "--shard-tokens", "2000"]) == 0
    shards = open_shards("owt_train_*.bin")
    assert [shard.num_tokens for shard in shards] == [2000, 1000]
    np.testing.assert_array_equal(np.concatenate([shard.tokens for shard in shards]), train)
    np.testing.assert_array_equal(open_shards("owt_val.bin")[0].tokens, val)
    assert prepare.main(["train.bin", "--headerless", "--name", "one", *BYTES]) == 0
    np.testing.assert_array_equal(open_shards("one_train.bin")[0].tokens, train[:2700])
    np.testing.assert_array_equal(open_shards("one_val.bin")[0].tokens, train[2700:])
    assert "characters" not in said(capsys)
    (train % 65).astype("<u2").tofile("train.bin")
    assert prepare.main(["train.bin", "--headerless", *BYTES]) == 0
    assert "no token id is above 64, but tokenizer bytes has 257 ids" in said(capsys)
