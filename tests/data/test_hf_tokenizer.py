"""Tokenizer files of Hugging Face: GPT-2's BPE and nothing else, with the same ids as tiktoken."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.data_files import use_gpt2_files, write_ranks

from cupygpt.data import hf_tokenizer
from cupygpt.data.gpt2_bpe import DOWNLOAD_URL
from cupygpt.data.tokenizer import Tokenizer, load_tokenizer
from cupygpt.data.vocabulary import byte_alphabet, from_alphabet, in_alphabet
from cupygpt.errors import TokenizerError
from cupygpt.exchange.hf_tokenizer_files import tokenizer_files

MERGES = [b"th", b"the", b" t", b" the", b"\n\n", b"er", b"\xc3\xa9"]
TEXT = "the other  théâtre\n\n\nther é 🇫🇷\0 they'll"


@pytest.fixture
def bpe(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(str(write_ranks(tmp_path / "small.tiktoken", MERGES)))


def write_files(folder: Path, tokenizer: Tokenizer, *names: str) -> None:
    for name, text in tokenizer_files(tokenizer.vocabulary(), 64).items():
        if name in names:
            (folder / name).write_text(text, encoding="utf-8", newline="")


def test_the_alphabet_is_gpt2s() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert [alphabet[byte] for byte in b"A~\xa1\xff \n\0\xad"] == [*"A~¡ÿĠĊĀ", "\u0143"]
    assert in_alphabet(" é\n".encode()) == "ĠÃ©Ċ"
    assert from_alphabet("ĠÃ©Ċ") == " é\n".encode()


def test_merges_follow_from_ranks(bpe: Tokenizer) -> None:
    assert bpe.vocabulary().merges == [
        (b"t", b"h"), (b"th", b"e"), (b" ", b"t"), (b" ", b"the"),
        (b"\n", b"\n"), (b"e", b"r"), (b"\xc3", b"\xa9"),
    ]  # fmt: skip


def test_gpt2s_merges_are_those_of_openais_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line; the vocabulary is the one that needs no file."""
    use_gpt2_files(monkeypatch)
    cached = hashlib.sha1(DOWNLOAD_URL.encode(), usedforsecurity=False).hexdigest()
    lines = (Path(os.environ["TIKTOKEN_CACHE_DIR"]) / cached).read_text(encoding="utf-8")
    vocabulary = load_tokenizer("gpt2").vocabulary()
    found = [f"{in_alphabet(left)} {in_alphabet(right)}" for left, right in vocabulary.merges]
    assert found == lines.split("\n")[1:-1]
    assert vocabulary.builtin_name == "gpt2"


def test_bytes_are_known_by_their_content() -> None:
    vocabulary = load_tokenizer("bytes").vocabulary()
    assert vocabulary.builtin_name == "bytes"
    assert vocabulary.merges == []


@pytest.mark.parametrize("names", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_a_vocabulary_comes_back_from_each_form(
    bpe: Tokenizer, tmp_path: Path, names: list[str]
) -> None:
    write_files(tmp_path, bpe, *names)
    found = hf_tokenizer.read_folder(tmp_path)
    assert found is not None
    assert found == bpe.vocabulary()
    assert found.builtin_name is None


def test_a_folder_without_tokenizer_files_has_none(tmp_path: Path) -> None:
    assert hf_tokenizer.read_folder(tmp_path) is None


def test_a_tokenizer_json_is_a_tokenizer(bpe: Tokenizer, tmp_path: Path) -> None:
    write_files(tmp_path, bpe, "tokenizer.json")
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert loaded.sha256 == bpe.sha256
    assert loaded.encode(TEXT).tolist() == bpe.encode(TEXT).tolist()
    assert loaded.decode(loaded.encode(TEXT)) == TEXT


def test_end_of_text_may_be_the_first_id(tmp_path: Path) -> None:
    """Trainers that are told of it put it there; then the ids are still ranks."""
    table = {"<|endoftext|>": 0} | {c: i for i, c in enumerate(byte_alphabet(), start=1)}
    values = {
        "model": {"type": "BPE", "vocab": table | {"th": 257}, "merges": ["t h"]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "added_tokens": [{"id": 0, "content": "<|endoftext|>"}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert (tokenizer.eot, tokenizer.vocab_size) == (0, 258)
    assert tokenizer.encode("tha").tolist() == [257, 98]


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update({key: value})


def put_in_model(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["model"].update({key: value})


def swap_two_ids(values: dict[str, Any]) -> None:
    vocab = values["model"]["vocab"]
    vocab["th"], vocab["the"] = vocab["the"], vocab["th"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("model", None), "holds no vocabulary"),
        (put_in_model("type", "Unigram"), "its type is 'Unigram'"),
        (put_in_model("ignore_merges", 1), "its ignore_merges is 1"),
        (put("normalizer", {"type": "NFC"}), "changes the text before it is split"),
        (put("pre_tokenizer", {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}+|(?s:.)"}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}),
         "its split pattern in another way"),
        (put("pre_tokenizer", {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(?s:.)"}, "behavior": "Removed"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}),
         "does not keep the pieces"),
        (put("pre_tokenizer", {"type": "Metaspace"}), "in another way than by one pattern"),
        (put("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}),
         "by no pattern, or by two"),
        (put("pre_tokenizer", {"type": "ByteLevel"}), "puts a blank before each text"),
        (put_in_model("merges", "t h"), "no list of merges"),
        (put_in_model("merges", ["t"]), "'t' is no merge"),
        (put_in_model("merges", [3]), "3 is no merge"),
        (put_in_model("merges", ["t h", "th e"]), "no merge makes the token"),
        (put_in_model("merges", ["q q"]), "a part or a result that is not in the vocabulary"),
        (put("added_tokens", 3), "no list of objects"),
        (put("added_tokens", [{"id": 0, "content": "th"}]), "the added token 'th' has two ids"),
        (put("added_tokens", [{"id": 999, "content": "<pad>"}]), "the special token '<pad>'"),
        (lambda v: v["model"]["vocab"].update(x=2**40), "the added token|two tokens|2\\^40|ids"),
        (lambda v: v["model"]["vocab"].update(zz=-1), "two tokens have the same id, or an id"),
        (lambda v: v["model"]["vocab"].update(zz=5), "two tokens have the same id"),
        (lambda v: v["model"]["vocab"].update({"日": 300}), "is not made of bytes"),
        (lambda v: v["model"]["vocab"].pop("q"), "1 of the 256 single bytes are missing"),
        (swap_two_ids, "the ids of its merges do not rise"),
    ],
)  # fmt: skip
def test_another_tokenizer_is_refused(
    bpe: Tokenizer, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    write_files(tmp_path, bpe, "tokenizer.json")
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values))
    for read in (lambda: hf_tokenizer.read_folder(tmp_path), lambda: load_tokenizer(str(path))):
        with pytest.raises(TokenizerError, match=message) as caught:
            read()
        assert str(path) in str(caught.value)


def test_a_vocabulary_without_end_of_text_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    write_files(tmp_path, bpe, "vocab.json", "merges.txt")
    path = tmp_path / "vocab.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    del table["<|endoftext|>"]
    path.write_text(json.dumps(table))
    with pytest.raises(TokenizerError, match="has no end of text"):
        hf_tokenizer.read_folder(tmp_path)
    path.write_text("[]")
    with pytest.raises(TokenizerError, match="should be an object"):
        hf_tokenizer.read_folder(tmp_path)


def test_a_file_that_no_training_made_has_no_merges(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "words.tiktoken", [b"hello"])
    with pytest.raises(TokenizerError, match=r"b'hello' \(id 256\) is no join of two tokens"):
        load_tokenizer(str(path)).vocabulary()


def test_a_token_that_looks_like_end_of_text_is_refused(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "named.tiktoken", [b"<|endoftext|>"])
    with pytest.raises(TokenizerError, match="could not tell the two apart"):
        load_tokenizer(str(path)).vocabulary()


def test_llmcs_tokenizer_has_merges_only_if_it_is_gpt2s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpt2_files(monkeypatch)
    gpt2 = load_tokenizer("gpt2")
    tokens = [gpt2.decode_bytes([i]) for i in range(gpt2.vocab_size)]
    path = tmp_path / "tokenizer.bin"

    def write(eot: int) -> None:
        head = b"".join(n.to_bytes(4, "little") for n in (20240328, 2, len(tokens), eot))
        body = b"".join(bytes([len(token)]) + token for token in tokens)
        path.write_bytes(head.ljust(1024, b"\0") + body)

    write(gpt2.vocab_size - 1)
    assert load_tokenizer(str(path)).vocabulary().merges == gpt2.vocabulary().merges
    write(7)
    with pytest.raises(TokenizerError, match="holds no merges, which other programs need"):
        load_tokenizer(str(path)).vocabulary()
