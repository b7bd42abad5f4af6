"""prepare --tokenizer bpe:N: a vocabulary learnt from the text for training, saved and used."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.data_files import shakespeare_file, write_ranks
from support.small_runs import command

from cupygpt.data.token_files import open_shards
from cupygpt.data.token_record import load_recorded_tokenizer, read_token_record
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.errors import ConfigError
from cupygpt.prepare import main
from cupygpt.texts import own_vocabulary
from cupygpt.texts.own_vocabulary import TrainingText, check_own, proposed_size, train_tokenizer
from cupygpt.texts.reading.documents import Piece
from cupygpt.texts.writing.write_tokens import Split


def taken(pieces: Sequence[Piece], held_out: float = 0.0) -> str:
    size = sum(len(piece.encode()) for piece in pieces if piece)
    return "|".join(TrainingText(pieces, size, held_out).blocks())


def test_all_is_learnt_from_if_nothing_is_held_out() -> None:
    assert taken(["ab", "cd", None, "é", None]) == "ab|cd|é"


def test_the_end_of_each_document_is_not_learnt_from() -> None:
    """However it is cut into pieces; bytes count, and a character is never cut."""
    assert taken(["abcd" * 4, None, "xy", "zw", "uv", "ts", None], 0.25) == "abcd" * 3 + "|xy|zw|uv"
    assert taken(["ab", "cdef", "gh", None], 0.25) == "ab|cdef"
    assert taken(["a" * 6, "b" * 6, None], 0.25) == "aaaaaa|bbb"
    assert taken(["éééé", None], 0.25) == "ééé"


def test_of_a_large_text_an_even_share_is_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_vocabulary, "MOST_TEXT_BYTES", 1000)
    pieces = [f"{i:010}" for i in range(1000)]
    text = TrainingText([*pieces, None], 10_000)
    blocks = list(text.blocks())
    assert [int(block) for block in blocks[:4]] == [0, 10, 20, 30]
    assert 980 <= text.taken <= 1000


def test_a_text_whose_size_is_not_known_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a packed file says less than the text that is in it."""
    monkeypatch.setattr(own_vocabulary, "MOST_TEXT_BYTES", 1000)
    text = TrainingText([*(["a" * 10] * 1000), None], 500)
    assert sum(map(len, text.blocks())) == text.taken == 1000


@pytest.mark.parametrize(
    ("size", "proposed"),
    [(0, 512), (10, 512), (10**5, 1024), (10**6, 4096), (10**7, 16_384), (10**9, 32_768)],
)
def test_larger_texts_get_larger_vocabularies(size: int, proposed: int) -> None:
    assert proposed_size(size) == proposed


@pytest.mark.parametrize("spec", ["bpe:", "bpe:x", "bpe:257", "bpe:1048577", "bpe:4_096", "bpe:-1"])
def test_an_impossible_size_is_refused(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"write bpe:4096 .*\(258 to 1,048,576\), or bpe:auto"):
        check_own(spec, has_text=True)
    assert main(["nothing.txt", "--tokenizer", spec]) == 2
    assert "bpe:auto" in capsys.readouterr().err


def test_token_ids_are_no_text_to_learn_from() -> None:
    with pytest.raises(ConfigError, match="--headerless files hold token ids"):
        check_own("bpe:512", has_text=False)


def test_the_rarest_pieces_are_left_out_where_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_vocabulary, "MOST_PIECES", 20)
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(200)]
    text = " ".join([*words, *(["often", "again"] * 50)])
    said: list[str] = []
    tokenizer = train_tokenizer(
        "bpe:270", TrainingText([text, None], len(text)), tmp_path / "a.tiktoken", said.append
    )
    assert tokenizer.encode(" often again").size < 12
    assert any("so many different words that the rarest were left out: 20" in line for line in said)


def test_prepare_learns_saves_and_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "".join(f"the cat number {i} sat on the mat\n" for i in range(300))
    Path("a.txt").write_text(text)
    assert main(["a.txt", "--tokenizer", "bpe:300"]) == 0
    out = capsys.readouterr().out
    assert "a.tiktoken: 300 ids (256 bytes, 43 merges, end of text), learnt from" in out
    assert "tokenizer a.tiktoken (300 ids)" in out
    tokenizer = load_tokenizer("a.tiktoken")
    assert (tokenizer.vocab_size, tokenizer.eot, tokenizer.note) == (300, 299, None)
    parts = [open_shards(f"a_{part}.bin")[0].tokens for part in ("train", "val")]
    assert [int(tokens[0]) for tokens in parts] == [299, 299]
    assert tokenizer.decode(np.concatenate([tokens[1:] for tokens in parts])) == text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.tiktoken", "a.tiktoken.json", "a.txt"),
        *("a_train.bin", "a_train.bin.json", "a_val.bin", "a_val.bin.json"),
    ]
    record = read_token_record(open_shards("a_*.bin"))
    assert record is not None
    assert record.tokenizer.file == Path("a.tiktoken")

    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["a.txt", "--tokenizer", "bpe:300"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert main(["a.txt", "--tokenizer", "a.tiktoken", "--name", "b"]) == 0
    assert Path("b_train.bin").read_bytes() == first[tmp_path / "a_train.bin"]


def test_a_stopped_run_leaves_the_vocabulary_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its token files need it."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("".join(f"the cat number {i} sat on the mat\n" for i in range(300)))
    assert main(["a.txt", "--tokenizer", "bpe:258"]) == 0
    assert "258 ids (256 bytes, 1 merge, end of text)" in capsys.readouterr().out
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(split: Split, block: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Split, "add", stop)
        assert main(["a.txt", "--tokenizer", "bpe:300"]) == 130
    assert "a.tiktoken: 300 ids" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert main(["a.txt", "--tokenizer", "bpe:300"]) == 0
    record = read_token_record(open_shards("a_*.bin"))
    assert record is not None
    assert load_recorded_tokenizer(record.tokenizer).vocab_size == 300


def test_what_is_for_validation_is_not_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each document has a word of its own, which becomes a token if it is learnt from."""
    monkeypatch.chdir(tmp_path)
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}{i:03}" for i in range(200)]
    Path("a.jsonl").write_text("".join(f'{{"text": "{word} {word} {word}"}}\n' for word in words))
    assert main(["a.jsonl", "--tokenizer", "bpe:4096", "--hold-out", "documents"]) == 0
    tokenizer = load_tokenizer("a.tiktoken")
    for part, is_learnt in (("train", True), ("val", False)):
        text = tokenizer.decode(open_shards(f"a_{part}.bin")[0].tokens)
        found = [word for word in words if word in text]
        assert len(found) > 5
        assert {len(tokenizer.encode(word[2:])) == 1 for word in found} == {is_learnt}


def test_the_real_size_is_said_where_the_text_runs_out_of_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("abcabcabc\n" * 10)
    assert main(["a.txt", "--tokenizer", "bpe:auto"]) == 0
    out = capsys.readouterr().out
    assert "bpe:auto: 512 ids for 90 bytes of text for training: about 4 times the root" in out
    size = load_tokenizer("a.tiktoken").vocab_size
    assert f"any more: {size} ids instead of 512" in out
    assert 260 < size < 270


@pytest.mark.parametrize("what", ["python-docs", "tinyshakespeare"])
def test_the_built_in_texts_have_their_own_vocabularies(tmp_path: Path, what: str) -> None:
    source = ["--source", str(shakespeare_file())] if what == "tinyshakespeare" else []
    made = command("cupygpt.prepare", what, *source, "--tokenizer", "bpe:384", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    [ranks] = tmp_path.glob("*.tiktoken")
    assert load_tokenizer(str(ranks)).vocab_size == 384


@pytest.mark.parametrize(
    "further",
    [
        ["cupygpt.sample", "run", "--tokens", "5", "--ignore-eot"],
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (
                ["cupygpt.train", "--resume", "run", "--extend", "1"],
                ["cupygpt.evaluate", "run", "a_val.bin", "a.txt"],
                ["cupygpt.convert", "run", "m.bin"],
            )
        ),
    ],
)
def test_a_vocabulary_above_65536_goes_the_whole_way(tmp_path: Path, further: list[str]) -> None:
    """The token files hold ids of 4 bytes."""
    write_ranks(tmp_path / "big.tiktoken", [b" %05d" % i for i in range(70_000)])
    (tmp_path / "a.txt").write_text("".join(f" {i:05}" for i in range(69_000, 70_000)) * 3)
    files = ["-i", "a_train.bin", "-j", "a_val.bin", "-o", "run"]
    for module, *words in (
        ["cupygpt.prepare", "a.txt", "--tokenizer", "big.tiktoken"],
        ["cupygpt.train", *files, "-e", "L1:H1:C8", "-b", "2", "-t", "16", "-n", "2", "-s", "0"],
        further,
    ):
        result = command(module, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    [shard] = open_shards(str(tmp_path / "a_train.bin"))
    assert shard.tokens.dtype == np.uint32
    assert int(shard.tokens.max()) == 70_256
