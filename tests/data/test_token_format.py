"""Vocabularies above 65,536 ids: token files of 4-byte ids, as llm.c writes them for Llama 3."""

from pathlib import Path

import numpy as np
import pytest

from cupygpt.data.loader import TrainLoader, token_order
from cupygpt.data.token_files import check_ids, largest_id, open_shards, token_blocks
from cupygpt.data.token_format import FOUR_BYTES, TWO_BYTES, format_for
from cupygpt.data.token_writer import headerless_blocks, write_shard
from cupygpt.errors import DataError

V = 128_256
IDS = np.array([128_000, 5, 65_535, 65_536, 128_255, 0, 70_000, 9])


def as_llmc_writes_it(ids: np.ndarray) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = 20240801, 7, len(ids)
    return header.tobytes() + ids.astype("<u4").tobytes()


def test_ids_take_four_bytes_only_where_two_are_too_few() -> None:
    assert [format_for(n) for n in (257, 50_257, 65_536)] == 3 * [TWO_BYTES]
    assert [format_for(n) for n in (65_537, V, 2**20)] == 3 * [FOUR_BYTES]


def test_the_file_is_that_of_llmc_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, IDS, FOUR_BYTES)
    assert path.read_bytes() == as_llmc_writes_it(IDS)
    [shard] = open_shards(str(path))
    assert shard.num_tokens == len(IDS)
    assert shard.tokens.dtype == np.uint32
    assert shard.tokens.tolist() == IDS.tolist()
    assert np.concatenate(list(token_blocks(shard, 5))).tolist() == IDS[:5].tolist()
    assert largest_id([shard]) == 128_255


def test_ids_that_do_not_fit_the_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ids from 5 to 65536; ids of 2 bytes are 0 to 65535"):
        write_shard(tmp_path / "a.bin", [5, 65_536])
    with pytest.raises(DataError, match="ids from 5 to 4294967296; ids of 4 bytes"):
        write_shard(tmp_path / "a.bin", [5, 2**32], FOUR_BYTES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("token", [V, 2**31, 2**32 - 1])
def test_an_id_that_the_model_does_not_have_is_named(tmp_path: Path, token: int) -> None:
    """Also one that would be negative as int32."""
    write_shard(tmp_path / "a.bin", [1, 2, token, 3], FOUR_BYTES)
    shards = open_shards(str(tmp_path / "a.bin"))
    for read in (
        lambda: check_ids(shards, V),
        lambda: TrainLoader(shards, 1, 3, V, seed=0).next_batch(),
    ):
        with pytest.raises(DataError, match=rf"token 2 is id {token}, .* 128,256 ids"):
            read()


def test_both_kinds_can_be_used_together(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(9), TWO_BYTES)
    write_shard(tmp_path / "b.bin", np.arange(100_000, 100_009), FOUR_BYTES)
    loader = TrainLoader(open_shards(str(tmp_path / "*.bin")), 2, 4, V, seed=0, shuffle=False)
    batches = [loader.next_batch().inputs.tolist() for _ in range(2)]
    assert batches == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [list(range(100_000, 100_004)), list(range(100_004, 100_008))],
    ]


@pytest.mark.parametrize("high", [300, 65_536, V])
def test_the_order_of_the_tokens_is_stable(rng: np.random.Generator, high: int) -> None:
    tokens = rng.integers(0, high, (16, 64)).astype(np.int32)
    tokens[3] = tokens[7]
    expected = np.argsort(tokens, axis=None, kind="stable")
    order = token_order(tokens)
    assert order.dtype == np.int32
    assert order.tolist() == expected.tolist()


def test_ids_without_a_header_are_read_as_the_vocabulary_needs_them(tmp_path: Path) -> None:
    IDS.astype("<u4").tofile(tmp_path / "train.bin")
    [block] = headerless_blocks(tmp_path / "train.bin", FOUR_BYTES)
    assert block.tolist() == IDS.tolist()
    (tmp_path / "odd.bin").write_bytes(bytes(33))
    with pytest.raises(DataError, match=r"33 bytes, .* token ids of 4 bytes"):
        list(headerless_blocks(tmp_path / "odd.bin", FOUR_BYTES))
