"""The trainer of byte-pair encoding, against the rule itself and against the package tokenizers."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupygpt.data import bpe_trainer
from cupygpt.data.bpe_trainer import learn_tokens
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.data.tokenizer_files import GPT2_SPLIT, rank_lines
from cupygpt.data.vocabulary import from_alphabet

ROOT = Path(__file__).parents[2]
BYTES = learn_tokens({}, 0)


def replaced(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The word with each place of the pair joined, from left to right."""
    result: list[int] = []
    at = 0
    while at < len(word):
        if tuple(word[at : at + 2]) == pair:
            result.append(new)
            at += 2
        else:
            result.append(word[at])
            at += 1
    return result


def learnt_slowly(counts: dict[str, int], num_merges: int) -> list[bytes]:
    """All pairs counted anew before each merge."""
    tokens = list(BYTES)
    ids = {token: number for number, token in enumerate(tokens)}
    words = [([ids[bytes([b])] for b in piece.encode()], n) for piece, n in counts.items()]
    for _ in range(num_merges):
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        words = [(replaced(word, best, len(tokens)), count) for word, count in words]
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens


def test_single_bytes_have_the_ids_of_gpt2() -> None:
    assert [token[0] for token in BYTES] == [
        *range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173,
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text("abcé ", min_size=1, max_size=14), st.integers(1, 6), max_size=12),
    st.integers(0, 60),
)
def test_every_merge_joins_the_most_frequent_pair(counts: dict[str, int], merges: int) -> None:
    """Ties, pairs that overlap themselves (aaa), texts that run out of pairs."""
    assert learn_tokens(counts, merges) == learnt_slowly(counts, merges)


def test_no_token_comes_twice() -> None:
    rng = np.random.default_rng(3)
    words = ("".join(rng.choice(list("abab "), 12)) for _ in range(400))
    tokens = learn_tokens(Counter(words), 300)
    assert len(tokens) == len(set(tokens)) > 400


def test_equally_frequent_pairs_go_by_their_ids() -> None:
    assert learn_tokens({"yz": 3, "ab": 3, "az": 3}, 3)[256:] == [b"ab", b"az", b"yz"]


def test_a_pair_that_occurs_once_is_not_joined() -> None:
    assert learn_tokens({"abc": 1, "xy": 2}, 10)[256:] == [b"xy"]
    assert learn_tokens({}, 10) == BYTES


def test_a_token_has_a_longest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is passed over; other pairs go on."""
    monkeypatch.setattr(bpe_trainer, "LONGEST_TOKEN", 4)
    tokens = learn_tokens({"a" * 64: 2, "xyz": 2}, 10)[256:]
    assert tokens == [b"aa", b"aaaa", b"xy", b"xyz"]


def test_merges_are_reported() -> None:
    done: list[int] = []
    learn_tokens({"abcd": 2}, 10, done.append)
    assert done == [1, 2, 3]


# ---- the package tokenizers ----------------------------------------------------------------------


def mixed_text() -> str:
    """A megabyte of English and code, Chinese, emoji, and blanks of all kinds."""
    rng = np.random.default_rng(7)
    english = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "cupygpt").rglob("*.py")))
    common = rng.integers(0x4E00, 0x5200, 300)  # some characters occur much more often than others
    chinese = "".join(chr(common[int(i)]) for i in rng.geometric(0.02, 60_000) % 300)
    faces = [
        "😀",
        "👩\u200d👩\u200d👧",
        "🇫🇷",
        "❤\ufe0f",
        "👍🏽",
        "e\u0301",
        "\0",
        "\t\t",
        "\r\n",
        "\u3000",
        " ",
    ]
    emoji = "".join(faces[int(i)] for i in rng.integers(0, len(faces), 8_000))
    parts = [english, code[: 700_000 - len(english)], chinese, emoji]
    cut = [part[start : start + 500] for part in parts for start in range(0, len(part), 500)]
    rng.shuffle(cut)
    return "".join(cut)


def trained_by_tokenizers(text: str, V: int) -> list[bytes]:
    """The tokens in the order of their ids, by the package tokenizers."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    byte_level: Any = tokenizers.pre_tokenizers.ByteLevel
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=V - 1,
        min_frequency=2,
        special_tokens=[],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([text], trainer)
    return [from_alphabet(trained.id_to_token(i)) for i in range(trained.get_vocab_size())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_merges_and_ids_equal_those_of_tokenizers(tmp_path: Path) -> None:
    import regex

    text, V = mixed_text(), 4096
    assert 900_000 < len(text.encode()) < 1_300_000
    tokens = learn_tokens(Counter(regex.findall(GPT2_SPLIT, text)), V - 257)
    assert len(tokens) == V - 1
    assert tokens == trained_by_tokenizers(text, V)

    path = tmp_path / "own.tiktoken"
    path.write_bytes(rank_lines({token: rank for rank, token in enumerate(tokens)}))
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.vocab_size == V
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert ids.tolist() == encoded_by_merges(regex.findall(GPT2_SPLIT, text), tokens)


def encoded_by_merges(pieces: list[str], tokens: list[bytes]) -> list[int]:
    """The trainer's own ids: its merges, applied in their order to each piece."""
    ids = {token: number for number, token in enumerate(tokens)}
    known: dict[str, list[int]] = {}
    for piece in set(pieces):
        word = [piece.encode()[i : i + 1] for i in range(len(piece.encode()))]
        while len(word) > 1:
            joined = [ids.get(left + right, len(ids)) for left, right in pairwise(word)]
            if min(joined) == len(ids):
                break
            at = joined.index(min(joined))
            word[at : at + 2] = [word[at] + word[at + 1]]
        known[piece] = [ids[part] for part in word]
    return [token for piece in pieces for token in known[piece]]
