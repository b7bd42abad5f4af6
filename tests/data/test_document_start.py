from pathlib import Path

import numpy as np
import pytest

from cupygpt.data.document_start import MANY_DOCUMENTS, document_start
from cupygpt.data.token_files import open_shards
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import ByteTokenizer

EOT = 256


def start(folder: Path, tokens: list[int]) -> list[int]:
    write_shard(folder / "train.bin", np.array(tokens, np.uint16))
    return document_start(open_shards(str(folder / "train.bin")), ByteTokenizer())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("First Citizen:\nBefore we proceed", "First Citizen:\n"),
        ("\n \nTitle\nmore", "\n \nTitle\n"),
        ("no line ends here, only words follow words", "no line ends here, only words"),
        ("x" * 50, "x" * 32),
        ("一二三四五六七八九十一二三", "一二三四五六七八九十".encode() + "一".encode()[:2]),
        ("ab", "ab"),
        (" " * 40, " " * 32),
    ],
)
def test_one_document_begins_with_its_first_line(
    tmp_path: Path, text: str, wanted: str | bytes
) -> None:
    ids = start(tmp_path, [EOT, *text.encode()])
    assert bytes(ids) == (wanted if isinstance(wanted, bytes) else wanted.encode())


def test_many_documents_begin_after_end_of_text(tmp_path: Path) -> None:
    assert start(tmp_path, [EOT, 65, 66] * MANY_DOCUMENTS) == [EOT]
    assert start(tmp_path, [EOT, 65, 66] * (MANY_DOCUMENTS - 1)) != [EOT]


def test_there_is_always_a_start(tmp_path: Path) -> None:
    assert start(tmp_path, [EOT, EOT]) == [EOT]
    shards = open_shards(str(tmp_path / "train.bin"))
    assert document_start(shards, None) == [EOT, EOT]
