"""The pattern beside a .tiktoken file: used, copied with it, and never trusted."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.data_files import write_ranks

from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.config import GPTConfig
from cupygpt.data import tokenizer_files
from cupygpt.data.hf_tokenizer import TOKENIZER_JSON
from cupygpt.data.token_files import open_shards
from cupygpt.data.token_record import load_recorded_tokenizer, read_token_record
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.data.tokenizer_files import (
    GPT2_SPLIT,
    copy_tokenizer,
    pattern_file,
    pattern_path,
    rank_lines,
)
from cupygpt.errors import ConfigError, TokenizerError
from cupygpt.exchange.gguf import write_gguf
from cupygpt.exchange.hf_tokenizer_files import tokenizer_files as tokenizer_files_of
from cupygpt.prepare import main

DIGITS_IN_THREES = r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    return write_ranks(tmp_path / "own.tiktoken", [b"12", b"34", b"1234", b"th", b"the"])


def test_without_a_pattern_gpt2s_is_used_and_said(ranks: Path) -> None:
    tokenizer = load_tokenizer(str(ranks))
    assert tokenizer.split == GPT2_SPLIT
    assert tokenizer.note == (
        f"{ranks} says nothing of how text is split before it is encoded, and there is no "
        f"own.tiktoken.json beside it: GPT-2's pattern is used"
    )


def test_the_pattern_beside_the_file_splits_text(ranks: Path) -> None:
    assert load_tokenizer(str(ranks)).encode("1234").tolist() == [258]
    pattern_path(ranks).write_bytes(pattern_file(DIGITS_IN_THREES))
    tokenizer = load_tokenizer(str(ranks))
    assert (tokenizer.split, tokenizer.note) == (DIGITS_IN_THREES, None)
    assert tokenizer.encode("1234").tolist() == [256, *b"34"]  # 123 and 4
    assert tokenizer.decode(tokenizer.encode("1234 the é\n")) == "1234 the é\n"


def test_another_pattern_is_another_tokenizer(ranks: Path) -> None:
    plain = load_tokenizer(str(ranks)).sha256
    pattern_path(ranks).write_bytes(pattern_file(GPT2_SPLIT))
    assert load_tokenizer(str(ranks)).sha256 == plain
    assert (
        "'s|'t|'re|'ve|'m|'ll|'d| ?"
        in json.loads(pattern_path(ranks).read_bytes())["split_pattern"]
    )
    pattern_path(ranks).write_bytes(pattern_file(DIGITS_IN_THREES))
    tokenizer = load_tokenizer(str(ranks))
    assert tokenizer.sha256 != plain
    assert tokenizer.vocabulary().sha256 == tokenizer.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is no JSON"),
        (b"[1]", "should be an object"),
        (b"{}", "expected one text, split_pattern, .* found nothing"),
        (b'{"pattern": "a"}', "expected one text, split_pattern, .* found 'pattern'"),
        (b'{"split_pattern": 3}', "expected one text"),
        (b'{"split_pattern": "a", "more": 1}', "found 'split_pattern', 'more'"),
        (b'{"split_pattern": "(a"}', r"own.tiktoken.json: the split pattern .* does not compile"),
        (b'{"split_pattern": "[a"}', "does not compile"),
        (b'{"split_pattern": ""}', "does not match all of a text"),
        (b'{"split_pattern": "a*"}', "does not match all of a text"),
        (b'{"split_pattern": "(?=a)|."}', "does not match all of a text"),
        (b'{"split_pattern": "\\\\p{L}+|\\\\p{N}+"}', "does not match all of a text: .* left out"),
        (json.dumps({"split_pattern": "a" * 5000}).encode(), "its 5,000 characters are over"),
        (b" " * 70_000, "70,000 bytes, but this file has at most 65,536"),
    ],
)  # fmt: skip
def test_a_pattern_that_cannot_be_used_is_named(ranks: Path, content: bytes, message: str) -> None:
    pattern_path(ranks).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(str(ranks))
    assert str(pattern_path(ranks)) in str(caught.value)


def test_a_pattern_that_steps_back_without_end_is_named(
    ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_files, "PROBE_S", 0.3)
    pattern_path(ranks).write_bytes(b'{"split_pattern": "(?:a|aa|b)+c|(?s:.)"}')
    with pytest.raises(TokenizerError, match=r"needs over 0\.3 s for a short text"):
        load_tokenizer(str(ranks))


def test_a_pattern_that_other_programs_read_in_another_way_is_not_handed_on(ranks: Path) -> None:
    """At the end of an alternative the + of {1,3}+ changes nothing, and is left out."""
    pattern_path(ranks).write_bytes(pattern_file(r"\p{N}{1,3}+|(?s:.){1,2}+"))
    tokenizer = load_tokenizer(str(ranks))
    assert tokenizer.split == r"\p{N}{1,3}|(?s:.){1,2}"
    assert TOKENIZER_JSON in tokenizer_files_of(tokenizer.vocabulary(), 8)
    pattern_path(ranks).write_bytes(pattern_file(r"\p{N}{1,3}+x?|(?s:.)"))
    with pytest.raises(TokenizerError, match=r"in another way: .* atomic group"):
        tokenizer_files_of(load_tokenizer(str(ranks)).vocabulary(), 8)


def test_a_pattern_that_leaves_out_text_is_found_when_it_does(ranks: Path) -> None:
    """Nothing of a text is lost silently: here a character that no text of ours holds."""
    pattern_path(ranks).write_bytes(pattern_file(r"[^ꙮ]"))
    tokenizer = load_tokenizer(str(ranks))
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"
    with pytest.raises(TokenizerError, match="leaves out 3 bytes of a text that begins with 'aꙮ'"):
        tokenizer.encode("aꙮ")


def test_copies_take_the_pattern_with_them(
    ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern_path(ranks).write_bytes(pattern_file(DIGITS_IN_THREES))
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("the 1234 " * 50)
    assert main(["a.txt", "--tokenizer", "own.tiktoken"]) == 0
    assert Path("a_tokenizer.tiktoken.json").exists()
    record = read_token_record(open_shards("a_train.bin"))
    assert record is not None
    assert load_recorded_tokenizer(record.tokenizer).split == DIGITS_IN_THREES
    copies = copy_tokenizer(ranks, tmp_path / "copy")
    assert copies == [tmp_path / "copy", tmp_path / "copy.json"]
    pattern_path(ranks).unlink()
    assert copy_tokenizer(ranks, tmp_path / "copy") == [tmp_path / "copy"]
    assert not (tmp_path / "copy.json").exists()


def test_gguf_has_no_name_for_another_pattern(ranks: Path, tmp_path: Path) -> None:
    pattern_path(ranks).write_bytes(pattern_file(DIGITS_IN_THREES))
    config = GPTConfig(maxT=8, V=262, L=1, NH=2, C=16)
    model = ModelFile(config, "fp32", np.zeros(config.num_parameters, np.float32), ())
    vocabulary = load_tokenizer(str(ranks)).vocabulary()
    with pytest.raises(ConfigError, match=r"no name for this model's pattern"):
        write_gguf(tmp_path / "a.gguf", model, vocabulary, "fp32", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"YWI= 1" + b"0" * 5000, "line 257 is not a base64 token"),
        (rank_lines({b"a" * 1025: 256}), "line 257 holds a token of 1,025 bytes; 1,024 are"),
        (b"YWI= 100000\n", "257 tokens with ranks up to 100,000: most ranks .* are missing"),
        (b"YWI= 97\nYWM= 97\n", "the same rank 97: b'a', b'ab'"),
    ],
)
def test_a_hostile_rank_file_is_named(ranks: Path, content: bytes, message: str) -> None:
    write_ranks(ranks)
    ranks.write_bytes(ranks.read_bytes() + content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(str(ranks))


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.tiktoken").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        TokenizerError, match="1,099,511,627,776 bytes, but a tokenizer has at most"
    ):
        load_tokenizer(str(tmp_path / "huge.tiktoken"))
