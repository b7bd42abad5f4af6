"""The three accuracies, compared with the same network in float64."""

from pathlib import Path

import numpy as np
import pytest
from evaluation.models import BYTES, oracle_nats, scorer, weights
from evaluation.question_files import EXAMPLES, llmc_file, write_jsonl
from support.emulated_gpu import EmulatedGPU
from support.gpu import require_gpu

from cupygpt.data.tokenizer import ByteTokenizer
from cupygpt.device.precision import BF16, FP32
from cupygpt.errors import DataError, RunError
from cupygpt.evaluation import answers
from cupygpt.evaluation.answers import Answers, answer, choice_nats, merged_answers
from cupygpt.evaluation.questions import Question, read_questions
from cupygpt.evaluation.scorer import Scorer, make_scorer
from cupygpt.kernels.load import record_kernels
from cupygpt.model.tensors import cut_packed, parameter_specs

WINNERS_PER_TOKEN = [2, 2, 2, 2, 3, 1, 1, 3, 1, 1, 1, 1, 1, 0, 3, 2, 1, 3, 3, 1]
WINNERS_BY_SUM = [3, 3, 3, 3, 2, 3, 3, 0, 1, 1, 1, 1, 3, 0, 3, 3, 2, 3, 3, 1]
"""By a log-softmax of PyTorch in float64."""


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    return read_questions(llmc_file(tmp_path / "val.bin"), ByteTokenizer(), 257)


def oracle_of(question: Question, window: int = 64) -> np.ndarray:
    """-log p of each choice, in float64."""
    found = []
    for choice in question.choices:
        ids = np.concatenate([question.context, choice])[-(window + 1) :]
        found.append(oracle_nats(ids)[-len(choice) :].sum())
    return np.array(found)


def winners(nats: list[np.ndarray], questions: list[Question], way: str) -> list[int]:
    found = []
    for sums, question in zip(nats, questions, strict=True):
        tokens = np.array([len(choice) for choice in question.choices])
        divisors = {"sum": 1, "token": tokens, "character": np.array(question.characters)}
        found.append(int(np.argmin(sums / divisors[way])))
    return found


def test_every_choice_has_the_likelihood_of_the_network_in_float64(
    questions: list[Question],
) -> None:
    nats = choice_nats(scorer(), questions, 64)
    wanted = [oracle_of(question) for question in questions]
    np.testing.assert_allclose(nats, wanted, atol=5e-5)
    np.testing.assert_allclose(nats[0], [23.56955, 38.43188, 31.75498, 19.94088], atol=5e-5)
    assert winners(nats, questions, "token") == WINNERS_PER_TOKEN
    assert winners(nats, questions, "sum") == WINNERS_BY_SUM


def test_the_accuracies_are_those_of_the_network_in_float64(questions: list[Question]) -> None:
    wanted = [oracle_of(question) for question in questions]
    labels = [question.label for question in questions]
    correct = {
        way: sum(map(int.__eq__, winners(wanted, questions, way), labels))
        for way in ("sum", "token", "character")
    }
    assert (correct["sum"], correct["token"]) == (3, 8)
    found = answer(scorer(), questions, 64)
    assert found == Answers(20, 3, 8, correct["character"], 0.25, 0)
    assert found.share(8) == 0.4
    assert found.standard_error(8) == pytest.approx((0.4 * 0.6 / 19) ** 0.5)


def test_texts_with_different_numbers_of_choices(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "q.jsonl",
        {"ctx": "To be", "endings": [" or not", "é", "x" * 30], "label": 1},
        {"ctx": "a", "endings": ["b", "longer"], "label": 0},
    )
    questions = read_questions(path, ByteTokenizer(), 257)
    nats = choice_nats(scorer(), questions, 64)
    for found, question in zip(nats, questions, strict=True):
        np.testing.assert_allclose(found, oracle_of(question), atol=1e-4)
    wanted = winners([oracle_of(question) for question in questions], questions, "character")
    found = answer(scorer(), questions, 64)
    assert found.by_character == sum(map(int.__eq__, wanted, [1, 0]))
    assert found.chance == pytest.approx((1 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("window", [40, 17, 9])
def test_rows_that_are_too_long_lose_their_beginning(
    questions: list[Question], window: int
) -> None:
    nats = choice_nats(scorer(window), questions, window)
    wanted = [oracle_of(question, window) for question in questions]
    np.testing.assert_allclose(nats, wanted, atol=5e-5)
    longest = [len(c) + max(map(len, choices)) - 1 for c, choices, _ in EXAMPLES]
    assert answer(scorer(window), questions, window).cut == sum(n > window for n in longest)


def test_a_choice_that_is_longer_than_the_window_is_refused(questions: list[Question]) -> None:
    with pytest.raises(DataError, match="has 8 tokens, but the model reads 7 at a time"):
        answer(scorer(7), questions, 7)


def test_batches_are_cut_to_their_longest_row_and_none_is_lost(
    questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one row of the window, shorter rows still share a batch."""
    monkeypatch.setattr("cupygpt.evaluation.scorer.CPU_BATCH_TOKENS", 64)
    monkeypatch.setattr("cupygpt.evaluation.scorer.num_cores", lambda: 1)
    small, shapes = scorer(), []
    queue = small._queue

    def watched(inputs: np.ndarray, targets: np.ndarray) -> object:
        shapes.append(inputs.shape)
        return queue(inputs, targets)

    monkeypatch.setattr(small, "_queue", watched)
    seen: list[tuple[int, int]] = []
    nats = choice_nats(small, questions, 64, lambda *done: seen.append(done))
    np.testing.assert_allclose(nats, [oracle_of(question) for question in questions], atol=5e-5)
    assert {T for _, T in shapes} == {16, 32}
    assert all(B * T <= 64 for B, T in shapes)
    assert sum(B for B, _ in shapes) == 80
    assert seen[-1] == (80, 80)


def test_parts_add_up(questions: list[Question]) -> None:
    model = scorer()
    parts = [answer(model, questions[i : i + 7], 64) for i in (0, 7, 14)]
    assert merged_answers(parts) == answer(model, questions, 64)


def test_the_first_of_equal_choices_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in llm.c. The same text twice may differ in its last bits, so equal sums are made here."""
    monkeypatch.setattr(answers, "choice_nats", lambda *_: [np.array([3.0, 2.0, 2.0])] * 3)
    ids = np.array([1, 2], np.uint16)
    twins = [Question(ids, (ids, ids, ids), label, (1, 1, 1)) for label in (0, 1, 2)]
    assert answer(scorer(), twins, 64) == Answers(3, 1, 1, 1, pytest.approx(1 / 3), 0)
    monkeypatch.setattr(answers, "choice_nats", lambda *_: [np.array([3.0, 2.0, 2.0])])
    assert answer(scorer(), twins[1:2], 64).by_sum == 1
    assert answer(scorer(), twins[2:], 64).by_sum == 0


def test_weights_that_give_no_finite_loss_are_said() -> None:
    broken = weights()
    cut_packed(broken, parameter_specs(BYTES)).lnfb[:] = 1e30
    cut_packed(broken, parameter_specs(BYTES)).wte[:257] = 1e30
    model = make_scorer(scorer().device, BYTES, broken, FP32, 64)
    ids = np.array([1, 2], np.uint16)
    with pytest.raises(RunError, match="the losses are not finite numbers"):
        answer(model, [Question(ids, (ids, ids), 0, None)], 64)


def test_the_kernels_give_the_same_numbers(
    questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the emulator, with batches of several shapes in the same buffers."""
    monkeypatch.setattr("cupygpt.evaluation.scorer.GPU_BATCH_TOKENS", 256)
    few = questions[:3]
    model = make_scorer(EmulatedGPU(), BYTES, weights(), FP32, 64)
    files = {variant.file for variant in record_kernels(lambda: model.dry_run(64))}
    assert {"encoder.cu", "layernorm.cu", "attention/cuda_cores.cu", "classifier.cu"} <= files
    np.testing.assert_allclose(
        choice_nats(model, few, 64), [oracle_of(question) for question in few], atol=1e-4
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "allowed"), [(FP32, 1e-4), (BF16, 0.3)])
def test_a_gpu_gives_the_same_numbers(
    questions: list[Question], precision: object, allowed: float
) -> None:
    device = require_gpu()
    device.activate()
    model = make_scorer(device, BYTES, weights(), precision, 64)  # type: ignore[arg-type]
    assert isinstance(model, Scorer)
    nats = choice_nats(model, questions, 64)
    np.testing.assert_allclose(nats, [oracle_of(question) for question in questions], atol=allowed)
