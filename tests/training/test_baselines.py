"""What a loss is compared with: unigram and bigram model, bits per byte, over the same rows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupygpt.data import token_files
from cupygpt.data.token_files import open_shards
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.data.validation import ValidationRows
from cupygpt.errors import DataError
from cupygpt.training import baselines
from cupygpt.training.baselines import bytes_per_token, ngram_baselines, unigram_bigram_nats


def test_baselines_by_hand() -> None:
    """Train 0 1 0 1 0: c(0) = 3, c(1) = 2, V = 3: p = 4/8, 3/8, 1/8."""
    unigram, bigram = unigram_bigram_nats([[0, 1, 0, 1, 0]], [0, 1], [1, 2], 3)
    assert unigram == pytest.approx(-(math.log(3 / 8) + math.log(1 / 8)) / 2)
    first = (2 + 10 * 3 / 8) / (2 + 10)
    second = (0 + 10 * 1 / 8) / (2 + 10)
    assert bigram == pytest.approx(-(math.log(first) + math.log(second)) / 2)


def test_files_are_counted_together_but_not_across_their_border() -> None:
    """Train 0 1 | 0 2: 1 is followed by nothing, although 0 comes next in the second file."""
    unigram, bigram = unigram_bigram_nats([[0, 1], [0, 2]], [1], [0], 3)
    assert unigram == pytest.approx(-math.log(3 / 7))
    assert bigram == pytest.approx(unigram)


def test_baseline_models_are_distributions() -> None:
    train = [np.array([0, 3, 1, 1, 0, 3, 3, 2])]
    for model in (0, 1):
        for context in range(5):
            nats = [unigram_bigram_nats(train, [context], [b], 5)[model] for b in range(5)]
            assert sum(math.exp(-x) for x in nats) == pytest.approx(1)


def test_baselines_of_a_deterministic_text() -> None:
    cycle = np.tile(np.arange(50, dtype=np.uint16), 400)
    unigram, bigram = unigram_bigram_nats([cycle], cycle[:-1], cycle[1:], 50257)
    assert unigram == pytest.approx(math.log((len(cycle) + 50257) / 401), abs=1e-3)
    assert bigram < 0.2


def test_baselines_need_tokens() -> None:
    for train, asked in (([], [2]), ([1], [])):
        with pytest.raises(DataError, match="at least 1 of each"):
            unigram_bigram_nats([train], [1][: len(asked)], asked, 3)


def rows_of(folder: Path, *texts: bytes, T: int, count: int | None = None) -> ValidationRows:
    for i, text in enumerate(texts):
        write_shard(folder / f"v{i}.bin", np.frombuffer(text, np.uint8))
    return ValidationRows(open_shards(str(folder / "v*.bin")), T, count, evenly=False)


def test_baselines_are_those_of_the_validated_rows(tmp_path: Path) -> None:
    """The first row is all a, which training knows; the rest is all z, which it does not."""
    rows = rows_of(tmp_path, b"a" * 9 + b"z" * 400, T=8, count=1)
    write_shard(tmp_path / "t.bin", np.frombuffer(b"a" * 1000, np.uint8))
    found = ngram_baselines(rows, open_shards(str(tmp_path / "t.bin")), 257)
    assert found is not None
    assert found[0] == pytest.approx(-math.log(1001 / 1257))
    assert ngram_baselines(None, [], 257) is None
    assert ngram_baselines(rows, [], 50257) is None


def test_all_training_files_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cap the same share of each file is read, not only the first file."""
    monkeypatch.setattr(baselines, "BASELINE_TOKENS", 500)
    rows = rows_of(tmp_path, b"b" * 9, T=8)
    for i, byte in enumerate(b"ab"):
        write_shard(tmp_path / f"t{i}.bin", np.full(500, byte, np.uint8))
    found = ngram_baselines(rows, open_shards(str(tmp_path / "t?.bin")), 257)
    assert found is not None
    assert found[0] == pytest.approx(-math.log(251 / 757))


def test_bytes_are_those_of_the_validated_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files; the targets of all rows count, and end of text has no bytes."""
    tokenizer = load_tokenizer("bytes")
    write_shard(tmp_path / "v0.bin", [97, 98, 256, 99, 100])
    write_shard(tmp_path / "v1.bin", [97] * 5)
    rows = ValidationRows(open_shards(str(tmp_path / "v?.bin")), 2, None, evenly=False)
    assert rows.num_rows == 4
    assert bytes_per_token(rows, tokenizer, 257) == pytest.approx(7 / 8)
    monkeypatch.setattr(tokenizer, "decode_bytes", lambda ids: b"x" * (3 if ids[0] == 97 else 1))
    assert bytes_per_token(rows, tokenizer, 257) == pytest.approx((1 + 1 + 1 + 4 * 3) / 8)
    assert bytes_per_token(rows, None, 257) is None
    assert bytes_per_token(None, tokenizer, 257) is None


def test_of_very_many_rows_an_even_share_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 rows, of which every fourth is read; a row of b among a shows which."""
    text = b"".join((b"b" if row % 4 == 0 else b"a") * 8 for row in range(40)) + b"b"
    rows = rows_of(tmp_path, text, T=8)
    assert [int(row) for row in rows.share_of(80).rows_at(0, 99)] == list(range(0, 40, 4))
    assert rows.share_of(7).num_rows == 1
    assert rows.share_of(10_000).num_rows == rows.num_rows == 40
    write_shard(tmp_path / "t.bin", np.frombuffer(b"b" * 100, np.uint8))
    train = open_shards(str(tmp_path / "t.bin"))
    tokenizer = load_tokenizer("bytes")
    monkeypatch.setattr(tokenizer, "decode_bytes", lambda ids: b"x" * (ids[0] - 96))
    whole = (ngram_baselines(rows, train, 257), bytes_per_token(rows, tokenizer, 257))
    monkeypatch.setattr(baselines, "ASKED_TOKENS", 80)
    monkeypatch.setattr(baselines, "COUNTED_TOKENS", 80)
    share = (ngram_baselines(rows, train, 257), bytes_per_token(rows, tokenizer, 257))
    assert whole[0] is not None
    assert share[0] is not None
    assert share[0][0] < whole[0][0]  # only one of eight targets is not b there
    assert whole[1] == pytest.approx(1.25)
    assert share[1] == pytest.approx(1 + 7 / 8)


def test_thousands_of_training_files_are_not_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "MAX_MAPPED", 2)
    for i in range(10):
        write_shard(tmp_path / f"t{i}.bin", [i, i])
    rows = rows_of(tmp_path, b"b" * 9, T=8)
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("open files are counted in /proc")
    opened = []
    fit = baselines.unigram_bigram_nats

    def counting(*arguments: Any) -> tuple[float, float]:
        opened.append(sum(path.resolve().parent == tmp_path for path in folder.iterdir()))
        return fit(*arguments)

    monkeypatch.setattr(baselines, "unigram_bigram_nats", counting)
    assert ngram_baselines(rows, open_shards(str(tmp_path / "t*.bin")), 257)
    assert opened[0] <= 3
