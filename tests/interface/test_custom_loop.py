"""Trainer and Loader: the same steps as those of a run, and what they refuse."""

import os
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interface.loaded import NAMES, device_named, tiny_file
from support.small_runs import TINY, write_files

import cupygpt
from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.model.gpt import GPT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_trainer(**options: Any) -> cupygpt.Trainer:
    return cupygpt.Trainer("tiny.bin", 4, 8, **{"device": "cpu", **options})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loop_with_a_constant_rate_is_a_run(folder: Path, accumulation: int, name: str) -> None:
    device = device_named(name)
    run = cupygpt.train_model(
        model="tiny.bin", train_data="train.bin", val_data="val.bin", device=device, batch_size=4,
        seq_len=8, learning_rate=1e-2, schedule="constant", steps=20, sample_every=0,
        weight_decay=0.1, dropout=0.1, total_batch=32 * accumulation, quiet=True,
    )  # fmt: skip
    trainer = make_trainer(weight_decay=0.1, dropout=0.1, accumulation=accumulation, device=device)
    loader = cupygpt.Loader("train.bin", 4, 8)
    batches = (batch for _ in range(100) for batch in loader)
    losses = []
    for _ in range(20):
        few = list(islice(batches, accumulation))
        losses.append(trainer.step(few if accumulation > 1 else few[0], 1e-2).loss)
    assert losses == run.losses.tolist()
    assert trainer.evaluate("val.bin") == run.validation_losses[-1]
    assert trainer.steps == 20
    trainer.save("saved.bin")
    saved, newest = load_model(folder / "saved.bin"), run.load("newest", device)
    assert saved.parameters.tobytes() == newest.weights.read().parameters.tobytes()


def test_an_epoch_is_one_iteration(folder: Path) -> None:
    loader = cupygpt.Loader(["train.bin"], 4, 8)
    expected = len(loader)
    first = [batch.inputs.copy() for batch in loader]
    assert len(first) == expected
    assert loader.position.epoch == 1
    second = [batch.inputs.copy() for batch in loader]
    assert not np.array_equal(first[0], second[0])
    again = cupygpt.Loader("train.bin", 4, 8)
    left = list(islice(again, 3))  # a loop that is left early goes on where it was
    assert [batch.inputs.tolist() for batch in left] == [rows.tolist() for rows in first[:3]]
    assert next(iter(again)).inputs.tolist() == first[3].tolist()
    there = cupygpt.Loader("train.bin", 4, 8, position=again.position)
    assert next(iter(there)).inputs.tolist() == first[4].tolist()


def test_the_model_of_a_trainer_has_the_weights_of_the_last_step(folder: Path) -> None:
    trainer, rows = make_trainer(), np.arange(36).reshape(4, 9)
    before = trainer.model.logits([1, 2])
    result = trainer.step(rows, 1e-2)
    assert "loss" in repr(result)
    assert result.grad_norm > 0
    assert (trainer.model.logits([1, 2]) != before).any()
    assert trainer.evaluate([rows]) == pytest.approx(trainer.model.loss(rows).mean(), rel=1e-6)


def test_a_trainer_copies_the_weights_of_a_model(tmp_path: Path) -> None:
    model = cupygpt.load(tiny_file(tmp_path), device="cpu")
    before = model.logits([1, 2])
    trainer = cupygpt.Trainer(model, 2, device="cpu")
    assert (trainer.model.logits([1, 2]) == before).all()
    trainer.step((np.ones((2, 16), int), np.full((2, 16), -1)), 1e-2)
    trainer.step([np.ones((2, 16), int), np.zeros((2, 16), int)], 1e-2)
    assert (trainer.model.logits([1, 2]) != before).any()
    assert (model.logits([1, 2]) == before).all()
    assert len(trainer.model.generate("ab", tokens=5)) >= 2
    assert trainer.model.window == 16


def test_a_shape_takes_vocabulary_and_positions_from_the_arguments() -> None:
    trainer = cupygpt.Trainer("L1:H1:C16", 2, 12, tokenizer="bytes", device="cpu")
    assert (trainer.model.config.V, trainer.model.config.maxT) == (257, 12)
    named = cupygpt.Trainer("L1:H1:C16:T32:V65", 2, device="cpu")
    assert (named.model.config.V, named.model.config.maxT) == (TINY.V, 32)
    with pytest.raises(cupygpt.TokenizerError, match=r"no tokenizer .* pass tokenizer=FILE"):
        named.model.generate("It was")


def test_targets_that_do_not_count_change_nothing(folder: Path) -> None:
    trainer = make_trainer()
    result = trainer.step((np.ones((4, 8), int), np.full((4, 8), -1)), 1e-2)
    assert (result.loss, result.grad_norm) == (0.0, 0.0)
    with pytest.raises(cupygpt.ConfigError, match="no batch holds a target"):
        trainer.evaluate([(np.ones((4, 8), int), np.full((4, 8), -1))])


def test_ctrl_c_leaves_no_step_half_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, stopped = make_trainer(), make_trainer()
    rows = np.arange(36).reshape(4, 9)
    backward = GPT.backward

    def interrupted(self: GPT, *arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        backward(self, *arguments, **options)

    plain.step(rows, 1e-2)
    with monkeypatch.context() as patch:
        patch.setattr(GPT, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stopped.step(rows, 1e-2)
    assert stopped.steps == 1
    assert stopped.step(rows, 1e-2).loss == plain.step(rows, 1e-2).loss


def test_ctrl_c_ends_what_takes_long_after_its_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed in many batches does not keep the program until the last of them."""
    monkeypatch.setattr("cupygpt.evaluation.scorer.CPU_BATCH_TOKENS", 1)
    monkeypatch.setattr("cupygpt.evaluation.scorer.num_cores", lambda: 1)
    trainer, rows = make_trainer(), np.arange(36).reshape(4, 9)
    model, batches = cupygpt.load("tiny.bin", device="cpu"), 0
    forward = GPT.forward

    def interrupted(self: GPT, *arguments: Any, **options: Any) -> None:
        nonlocal batches
        batches += 1
        if batches == 1:
            os.kill(os.getpid(), signal.SIGINT)
        forward(self, *arguments, **options)

    calls: list[Callable[[], Any]] = [
        lambda: trainer.evaluate("val.bin"),
        lambda: model.loss([3] * 16 * 20),
        lambda: model.logits([[3] * 16] * 20),
    ]
    expected = trainer.evaluate([rows]), model.loss(rows).tolist(), model.logits(rows).tolist()
    with monkeypatch.context() as patch:
        patch.setattr(GPT, "forward", interrupted)
        for call in calls:
            batches = 0
            with pytest.raises(KeyboardInterrupt):
                call()
            assert batches <= 3  # as many are queued before the first is read
    after = trainer.evaluate([rows]), model.loss(rows).tolist(), model.logits(rows).tolist()
    assert after == expected


ROWS = np.ones((4, 9), int)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.step(ROWS[:2], 1), "ConfigError", r"shape \(2, 8\), but .* takes \(4, 8\)"),
        (lambda t: t.step("x", 1), "ConfigError", "array of rows of 9 ids, not str"),
        (lambda t: t.step(ROWS * 65, 1), "ConfigError", "id 65 at"),
        (lambda t: t.step((ROWS[:, 1:], ROWS[:, 1:] * 65), 1), "ConfigError", "id 65 at"),
        (lambda t: t.step(ROWS * 1.5, 1), "ConfigError", "whole numbers, not float64"),
        (lambda t: t.step((ROWS[:, 1:], [[1], [2, 3]]), 1), "ConfigError", "rows of equal length"),
        (lambda t: t.step((ROWS[:, 1:], "abc"), 1), "ConfigError", "whole numbers, not str"),
        (lambda t: t.step((ROWS[:, 1:], ROWS[:, 1:] * -1.0), 1), "ConfigError", "not float64"),
        (lambda t: t.step(ROWS, -1), "ConfigError", "lr is -1, but must be 0 or more"),
        (lambda t: t.step(ROWS, "1"), "ConfigError", "lr must be a number, not str"),
        (lambda t: t.evaluate("no.bin"), "DataError", "no.bin: no such file"),
        (lambda t: t.evaluate(None), "ConfigError", "or a list of batches, not NoneType"),
        (lambda t: t.evaluate(ROWS), "ConfigError", "or a list of batches, not ndarray"),
        (lambda t: t.evaluate([ROWS], 3), "ConfigError", "batches has no effect"),
        (lambda t: t.evaluate("val.bin", 0), "ConfigError", "batches must be a whole number"),
        (lambda _: make_trainer(accumulation=2).step(ROWS, 1), "ConfigError", "a list of 2"),
        (lambda _: make_trainer(beta1=2), "ConfigError", r"beta1 is 2.0, but must be in \[0, 1\)"),
        (lambda _: make_trainer(device="gpu"), "DeviceError", "device gpu: not a device"),
        (lambda _: cupygpt.Trainer("tiny.bin", 4, 17), "ConfigError", "model has 16 positions"),
        (lambda _: cupygpt.Trainer("d13", 4), "ConfigError", "'d13' is no known size"),
        (lambda _: cupygpt.Trainer(5, 4), "ConfigError", "model must be a path, not int"),
        (lambda _: cupygpt.Loader("no.bin", 4, 8), "DataError", "no such file"),
        (lambda _: cupygpt.Loader([], 4, 8), "ConfigError", "or a list of them"),
        (lambda _: cupygpt.Loader("val.bin", 4, 8, position=3), "ConfigError", "not int"),  # type: ignore[arg-type]
        (lambda _: cupygpt.Loader("val.bin", 0, 8), "ConfigError", "batch_size must be"),
        (lambda _: cupygpt.Loader("val.bin", 4, 999), "DataError", "Use seq_len 199 or less"),
    ],
)
def test_what_a_loop_refuses(folder: Path, call: Any, error: str, message: str) -> None:
    with pytest.raises(getattr(cupygpt, error), match=message):
        call(make_trainer())


def test_memory_is_checked_before_it_is_taken(folder: Path) -> None:
    with pytest.raises(cupygpt.DeviceError, match="The largest batch that fits is batch_size"):
        cupygpt.Trainer("tiny.bin", 10**8, 8, device="cpu")
