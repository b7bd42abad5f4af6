"""Logits, losses and attention of the interface against the float64 oracle, on all devices."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.models import oracle_model
from interface.loaded import DEVICES, TINY, model_on, tiny_file, tiny_weights
from support.gpu import require_cupy

import cupygpt
from cupygpt.data.token_writer import write_shard
from cupygpt.evaluate import main as evaluate
from cupygpt.interface.model import Model
from cupygpt.lab import oracle

TOLERANCE = {"fp32": 1e-4, "bf16": 0.5}
"""Of logits, of which the largest are near 4."""


def random_ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, TINY.V, shape)


def oracle_logits(ids: np.ndarray) -> np.ndarray:
    return oracle_model(ids, TINY, tiny_weights())[0][:, : TINY.V]


def oracle_losses(ids: np.ndarray) -> np.ndarray:
    logits = oracle_model(ids[:-1], TINY, tiny_weights())[0]
    return oracle.classifier(logits, ids[1:], TINY.V, 1.0)[0]


@pytest.mark.parametrize("where", DEVICES)
def test_logits_losses_and_attention_are_those_of_the_oracle(where: tuple[str, str]) -> None:
    model, tolerance = model_on(*where), TOLERANCE[where[1]]
    rows = random_ids(2, 9)
    found = model.logits(rows)
    assert found.shape == (2, 9, TINY.V)
    assert found.dtype == np.float32
    for row, of_row in zip(rows, found, strict=True):
        np.testing.assert_allclose(of_row, oracle_logits(row), atol=tolerance)
    np.testing.assert_allclose(model.logits(rows[0]), found[0], atol=tolerance)
    losses = model.loss(rows[0])
    assert losses.shape == (8,)
    np.testing.assert_allclose(losses, oracle_losses(rows[0]), atol=tolerance)
    for layer, head in ((0, 1), (1, 0)):
        weights = model.attention(rows[0], layer, head)
        wanted = oracle_attention(rows[0], layer, head)
        np.testing.assert_allclose(weights, wanted, atol=tolerance / 10)
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
        assert not np.triu(weights, 1).any()


def oracle_attention(ids: np.ndarray, layer: int, head: int) -> np.ndarray:
    qkv = oracle_model(ids, TINY, tiny_weights())[1][layer]
    queries, keys, _ = oracle.split_heads(qkv, TINY.NH)
    scores = oracle.causal_scores(queries, keys)[0, head]
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def test_attention_weights_differ_between_positions() -> None:
    """A test of weights that are all alike would see no mistake."""
    weights = model_on("cpu", "fp32").attention(random_ids(13), 1, 1)
    assert weights[-1].std() > 0.01


def test_more_rows_than_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupygpt.evaluation.scorer.CPU_BATCH_TOKENS", 1)
    monkeypatch.setattr("cupygpt.evaluation.scorer.num_cores", lambda: 1)
    model, rows = model_on("cpu", "fp32"), random_ids(5, 7)
    found, losses = model.logits(rows), model.loss(rows)
    for row, logits, of_row in zip(rows, found, losses, strict=True):
        np.testing.assert_allclose(logits, oracle_logits(row), atol=1e-4)
        np.testing.assert_allclose(of_row, oracle_losses(row), atol=1e-4)


def test_losses_are_those_of_training(tmp_path: Path) -> None:
    model = cupygpt.load(tiny_file(tmp_path), device="cpu")
    trainer = cupygpt.Trainer(model, 2, 12, device="cpu")
    rows = random_ids(2, 13)
    assert trainer.evaluate([rows]) == pytest.approx(model.loss(rows).mean(), rel=1e-6)


def test_losses_are_those_of_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text of several windows, as text and as token file."""
    path, text = tiny_file(tmp_path), "Größe and so on. " * 9
    (tmp_path / "text.txt").write_text(text)
    model = cupygpt.load(path, device="cpu")
    ids = model.tokenizer.encode(text)
    write_shard(tmp_path / "text.bin", ids)
    for file, losses in (("text.txt", model.loss(text)), ("text.bin", model.loss(ids))):
        assert evaluate([str(path), str(tmp_path / file), "--device", "cpu", "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)["texts"][0]
        assert figures["tokens"] == len(losses)
        assert figures["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_logits_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupygpt.interface.reading.available_memory_bytes", lambda: 10_000)
    model = model_on("cpu", "fp32")
    assert model.logits([1]).shape == (1, TINY.V)
    with pytest.raises(cupygpt.DeviceError, match="Ask for fewer rows at once"):
        model.logits([1] * 16)


@pytest.mark.gpu
def test_cupy_arrays_give_cupy_arrays() -> None:
    cupy = require_cupy()
    model, ids = model_on("cuda", "fp32"), random_ids(2, 9)
    stream = cupy.cuda.get_current_stream()
    found: Any
    for call in (model.logits, model.loss, lambda rows: model.attention(rows[0], 1, 0)):
        found = call(cupy.asarray(ids))
        assert isinstance(found, cupy.ndarray)
        np.testing.assert_array_equal(found.get(), call(ids))
    assert cupy.cuda.get_current_stream() is stream


@pytest.fixture
def model() -> Model:
    return model_on("cpu", "fp32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.logits([1, 257]), r"id 257 at \[1\] is not in the vocabulary"),
        (lambda m: m.logits([[1], [-1]]), r"id -1 at \[1, 0\]"),
        (lambda m: m.logits([]), "there are no ids"),
        (lambda m: m.logits([0.5]), "whole numbers, not float64"),
        (lambda m: m.logits([True]), "whole numbers, not bool"),
        (lambda m: m.logits("text"), r"whole numbers, not str: model\.tokenizer\.encode"),
        (lambda m: m.logits([[1, 2], [3]]), "rows of equal length"),
        (lambda m: m.logits(5), r"the shape \(\), but must have \(T,\) or \(B, T\)"),
        (lambda m: m.logits(np.zeros(17, int)), "17 ids cannot be computed: the model has 16"),
        (lambda m: m.loss([3]), "two ids at least"),
        (lambda m: m.loss(b"text"), "not bytes: decode it"),
        (lambda m: m.loss(""), "the text is empty"),
        (lambda m: m.attention([1], 2, 0), r"layer is 2, but the model has 2 \(0 to 1\)"),
        (lambda m: m.attention([1], 0, -1), "head must be a whole number of at least 0"),
        (lambda m: m.attention([1], 0.5, 0), "layer must be a whole number"),
        (lambda m: m.attention([[1, 2]], 0, 0), r"but must have \(T,\)"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(model: Model, call: Any, message: str) -> None:
    with pytest.raises(cupygpt.ConfigError, match=message):
        call(model)


def test_a_closed_model_says_so(model: Model) -> None:
    with model:
        model.logits([1])
    for call in (
        lambda: model.logits([1]),
        lambda: model.generate("a"),
        lambda: model.save("x.bin"),
        lambda: model.tokenizer,
    ):
        with pytest.raises(cupygpt.RunError, match="this model is closed"):
            call()
    assert "closed" in repr(model)
    model.close()
