"""Losses of whole texts: every token but the first once, from as much as the windows say."""

import math
from pathlib import Path

import numpy as np
import pytest
from evaluation.models import BYTES, oracle_nats, scorer, weights
from hypothesis import given
from hypothesis import strategies as st

from cupygpt.data.token_files import open_shards
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import ByteTokenizer
from cupygpt.data.validation import ValidationBatches, ValidationRows
from cupygpt.device.cpu import CPU
from cupygpt.errors import DataError
from cupygpt.evaluation.text_loss import Loss, merged, text_losses
from cupygpt.evaluation.windows import EncodedText, num_windows, windows_of
from cupygpt.model.memory_plan import RunShape
from cupygpt.training.trainer import OptimizerSettings, Trainer

TOKENIZER = ByteTokenizer()


def text(ids: object, name: str = "a.txt") -> EncodedText:
    return EncodedText(Path(name), np.asarray(ids, np.uint16))


def random_ids(count: int, seed: int = 0, V: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, count).astype(np.uint16)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_the_windows_predict_every_token_once(num_tokens: int, T: int, stride: int) -> None:
    stride = min(stride, T)
    windows = list(windows_of(0, num_tokens, T, stride))
    targets = [w.start + t + 1 for w in windows for t in range(w.first, w.length)]
    assert targets == list(range(1, num_tokens))
    assert all(0 < w.length <= T and w.start + w.length < num_tokens for w in windows)
    assert all(w.length == T for w in windows[:-1])
    assert len(windows) == num_windows([text(np.zeros(num_tokens))], T, stride)


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (64, 64), (7, 1)])
def test_losses_are_those_of_the_network_in_float64(window: int, stride: int) -> None:
    texts = [text(random_ids(count, seed=count)) for count in (50, 17, 2, 1)]
    found = text_losses(scorer(window), texts, TOKENIZER, window=window, stride=stride)
    by_position: list[list[float]] = [[] for _ in range(window)]
    for one, loss in zip(texts, found.texts, strict=True):
        wanted = []
        for w in windows_of(0, one.num_tokens, window, stride):
            nats = oracle_nats(one.tokens[w.start : w.start + w.length + 1])
            for t in range(w.first, w.length):
                wanted.append(nats[t])
                by_position[t].append(nats[t])
        assert loss.tokens == len(wanted) == one.num_tokens - 1
        assert loss.nats == pytest.approx(math.fsum(wanted), abs=1e-3)
        assert loss.num_bytes == one.num_tokens - 1
    for loss, nats in zip(found.by_position, by_position, strict=True):
        assert loss.tokens == len(nats)
        assert loss.nats == pytest.approx(math.fsum(nats), abs=1e-3)
    assert found.total.tokens == 66
    assert found.total.nats == pytest.approx(math.fsum(loss.nats for loss in found.texts))
    assert found.documents is None


def test_a_text_of_whole_rows_has_the_loss_of_a_validation(tmp_path: Path) -> None:
    write_shard(tmp_path / "val.bin", random_ids(8 * 16 + 1))
    shards = open_shards(str(tmp_path / "val.bin"))
    trainer = Trainer(CPU(), RunShape(BYTES, 4, 16), OptimizerSettings())
    trainer.load_parameters(weights())
    rows = ValidationRows(shards, 16, None, evenly=False)
    wanted = trainer.evaluate((x, y) for x, y, _ in ValidationBatches(rows, B=4, V=257))
    found = text_losses(scorer(16), shards, None, window=16, stride=16)
    assert found.total.mean == pytest.approx(wanted, rel=1e-6)
    assert found.total.num_bytes is None


def test_many_short_texts_share_batches_cut_to_the_longest() -> None:
    texts = [text(random_ids(count, seed=count)) for count in range(2, 40)]
    seen: list[tuple[int, int]] = []
    found = text_losses(
        scorer(), texts, None, window=64, stride=64, progress=lambda *n: seen.append(n)
    )
    for one, loss in zip(texts, found.texts, strict=True):
        assert loss.nats == pytest.approx(oracle_nats(one.tokens).sum(), abs=1e-3)
    assert seen == [(38, 38)]


def test_each_document_has_its_loss_with_the_end_of_text_that_ends_it() -> None:
    E = 256
    ids = [65, 66, E, 67, 68, 69, E, E, 70, *random_ids(40).tolist(), E]
    texts = [text(ids), text([E, 1, 2, 3], "b.txt")]
    found = text_losses(scorer(8), texts, TOKENIZER, window=8, stride=3, by_document=True)
    assert found.documents is not None
    nats: dict[tuple[int, int], list[float]] = {}
    for number, one in enumerate(texts):
        starts = [0, *(np.flatnonzero(one.tokens == E) + 1).tolist()]
        for w in windows_of(number, one.num_tokens, 8, 3):
            losses = oracle_nats(one.tokens[w.start : w.start + w.length + 1])
            for t in range(w.first, w.length):
                start = max(start for start in starts if start <= w.start + t + 1)
                nats.setdefault((number, start), []).append(losses[t])
    places = [(one.text, one.start) for one in found.documents]
    assert places == sorted(nats) == [(0, 0), (0, 3), (0, 7), (0, 8), (1, 1)]
    for one in found.documents:
        wanted = nats[one.text, one.start]
        assert one.loss.tokens == len(wanted)
        assert one.loss.nats == pytest.approx(math.fsum(wanted), abs=1e-4)
    assert [one.beginning for one in found.documents][:3] == [(65, 66), (67, 68, 69), ()]
    # End of text has no bytes.
    assert [one.loss.num_bytes for one in found.documents] == [1, 3, 0, 41, 3]
    assert merged([one.loss for one in found.documents]).tokens == found.total.tokens


def test_ids_that_the_model_does_not_have_are_named() -> None:
    ids = random_ids(40)
    ids[21] = 300
    with pytest.raises(DataError, match=r"b\.txt: token 21 is id 300, but the model's vocabulary"):
        text_losses(scorer(16), [text(ids, "b.txt")], None, window=16, stride=16)


def test_figures_of_a_loss() -> None:
    loss = Loss(tokens=4, nats=8.0, num_bytes=16)
    assert loss.mean == 2.0
    assert loss.perplexity == pytest.approx(math.e**2)
    assert loss.bits_per_byte == pytest.approx(0.5 / math.log(2))
    assert Loss(1, 1e6, None).perplexity == math.inf
    assert Loss(1, 1.0, None).bits_per_byte is None
    assert Loss(1, 1.0, 0).bits_per_byte is None
    assert math.isnan(Loss(0, 0.0, 0).mean)
