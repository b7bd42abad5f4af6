"""The fast encoder gives tiktoken's tokens for every text."""

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import shakespeare_file, use_gpt2_files, write_ranks

from cupygpt.data.tokenizer import BPETokenizer, load_tokenizer
from cupygpt.texts.writing import piece_encoder
from cupygpt.texts.writing.piece_encoder import PieceEncoder

MERGES = [
    b"\n\n",
    b"\r\n",
    b" a",
    b"ab",
    b"\n a",
    b"  ",
    b"a\n",
    b"\nb",
    b"'s",
    b"'l",
    b"'ll",
    b"12",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    path = tmp_path_factory.mktemp("ranks") / "my.tiktoken"
    write_ranks(path, MERGES)
    loaded = load_tokenizer(str(path))
    assert isinstance(loaded, BPETokenizer)
    return loaded


def assert_same(encoder: PieceEncoder, tokenizer: BPETokenizer, texts: list[str]) -> None:
    ids, ends = encoder.encode(texts)
    for text, got in zip(texts, np.split(ids, ends), strict=False):
        np.testing.assert_array_equal(got, tokenizer.encode(text), err_msg=repr(text[:200]))
    assert ends[-1] == ids.size
    assert ids.dtype == tokenizer.format.dtype


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(
        st.text(
            alphabet="ab'slvermdt .,12\n\r\t\0\x1c\x85\xa0é٣中😀\u2028", min_size=1, max_size=25
        ),
        min_size=1,
        max_size=4,
    )
)
def test_texts_of_all_classes_of_characters(tokenizer: BPETokenizer, texts: list[str]) -> None:
    encoder = PieceEncoder(tokenizer)
    assert_same(encoder, tokenizer, texts)
    encoder._table = piece_encoder._table(encoder._known)
    assert_same(encoder, tokenizer, [*texts, *texts])


def test_every_character_has_the_class_that_tiktoken_gives_it(tokenizer: BPETokenizer) -> None:
    encoder = PieceEncoder(tokenizer)
    characters = [
        chr(code)
        for code in range(piece_encoder.KNOWN_CHARACTERS)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs")
    ]
    assert len(characters) > 70_000
    text = "".join(f"a{one}{one} {one}1{one}\n{one}" for one in characters)
    assert piece_encoder._classes(piece_encoder._codes(text)) is not None
    assert_same(encoder, tokenizer, [text])


@pytest.mark.parametrize(
    "text",
    [
        "x" * 20_000 + " y",
        " " * 30_000 + "x",
        "\n" * 20_000,
        "x\U0003ffff y\u0378 z",  # characters that no version of Unicode has
        "".join(map(chr, range(256))) * 3,
        "<|endoftext|> <|endoftext|>'s",
    ],
)
def test_unusual_texts(tokenizer: BPETokenizer, text: str) -> None:
    encoder = PieceEncoder(tokenizer)
    for _ in range(2):
        assert_same(encoder, tokenizer, [text, "and more"])


def test_pieces_beyond_those_that_are_remembered(
    tokenizer: BPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piece_encoder, "MOST_PIECES", 2000)
    encoder, choose = PieceEncoder(tokenizer), random.Random(1)
    for _ in range(8):
        words = ["".join(choose.choices("abc1é'", k=choose.randint(1, 12))) for _ in range(1000)]
        assert_same(encoder, tokenizer, [" ".join(words), "\n".join(words)])
    assert 2000 <= len(encoder._known) < 6000


def test_gpt2s_tokens_of_shakespeare(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shakespeare_file().read_text()[:300_000]
    use_gpt2_files(monkeypatch)
    gpt2 = load_tokenizer("gpt2")
    assert isinstance(gpt2, BPETokenizer)
    encoder = PieceEncoder(gpt2)
    texts = [text[start : start + 50_000] for start in range(0, len(text), 50_000)]
    for _ in range(2):
        assert_same(encoder, gpt2, texts)
        assert_same(encoder, gpt2, text.split("\n\n")[:500])
