"""HellaSwag during training: when it is evaluated, what is logged, and that it changes nothing."""

from pathlib import Path

import numpy as np
import pytest
from evaluation.question_files import EXAMPLES, llmc_file
from support.rank_threads import run_ranks
from support.small_runs import main_log, metrics, write_files

from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.config import GPTConfig
from cupygpt.data.tokenizer import ByteTokenizer
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32
from cupygpt.distributed.ranks import ONE_RANK, Ranks
from cupygpt.evaluation.answers import Answers, answer
from cupygpt.evaluation.questions import read_questions
from cupygpt.evaluation.run_questions import RunQuestions
from cupygpt.evaluation.scorer import make_scorer
from cupygpt.flags.llmc import HELLASWAG
from cupygpt.model.init_weights import initial_parameters
from cupygpt.train import main

CONFIG = GPTConfig(maxT=32, V=257, L=2, NH=2, C=16)


def flags(folder: Path) -> list[str]:
    """10 steps on rows of 32 tokens, validated every 4."""
    given = write_files(folder, CONFIG)
    given[given.index("-t") + 1] = "32"
    given[given.index("-v") + 1] = "4"
    return [*given, "-n", "10", "--checkpoint-every", "4", "--keep", "0", "--no-bar"]


def evaluations(run: Path) -> list[str]:
    return [line for line in main_log(run) if " eval:" in line]


def test_h_1_evaluates_where_llmc_has_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After step 0, with each validation, and at the end; the losses stay the same bits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / HELLASWAG).parent.mkdir(parents=True)
    path = llmc_file(tmp_path / HELLASWAG)
    assert main([*flags(tmp_path), "-o", "plain"]) == 0
    assert main([*flags(tmp_path), "-o", "run", "-h", "1"]) == 0
    out = capsys.readouterr().out
    questions = read_questions(path, None, 257)
    wanted = []
    for step in (4, 8, 10):
        weights = load_model(tmp_path / "run" / f"model_{step:08d}.bin")
        scorer = make_scorer(CPU(), CONFIG, weights.parameters, FP32, 32)
        found = answer(scorer, questions, 32)
        wanted.append(f"s:{step} eval:{found.by_token / 20:.4f}")
        assert f"hellaswag_val.bin: {found.by_token}/20 = {found.by_token / 20:.4f} right" in out
    assert evaluations(tmp_path / "run") == wanted
    assert [event["step"] for event in metrics(tmp_path / "run", "eval")] == [4, 8, 10]
    others = [line for line in main_log(tmp_path / "run") if " eval:" not in line]
    assert others == main_log(tmp_path / "plain")
    for name in ("model_00000010.bin", "state_00000010_00000.bin"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_resumed_run_evaluates_as_if_it_had_never_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = llmc_file(tmp_path / "questions.bin")
    more = [*flags(tmp_path), "--hellaswag", str(path)]
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert main([*more, "-o", str(straight)]) == 0
    assert main([*more, "-n", "4", "-o", str(run)]) == 0
    assert main(["--resume", str(run), "-n", "10"]) == 0
    assert evaluations(run) == evaluations(straight)
    assert len(evaluations(run)) == 3
    path.unlink()
    capsys.readouterr()
    assert main(["--resume", str(run), "--extend", "2"]) == 0
    assert "is not there any more: the run goes on without it" in capsys.readouterr().out


def test_questions_need_no_validation_data(tmp_path: Path) -> None:
    path = llmc_file(tmp_path / "questions.bin")
    given = flags(tmp_path)
    place = given.index("-j")
    given = given[:place] + given[place + 2 :]
    assert main([*given, "--hellaswag", str(path), "-o", str(tmp_path / "run")]) == 0
    assert len(evaluations(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("examples", "more", "message"),
    [
        (None, [], "none.bin: could not be read"),
        ([([1], [[2], [300]], 0)], [], "choice 1 of example 0 has token id 300"),
        ([([1], [[2], [3] * 33], 0)], [], "has 33 tokens, but the model reads 32 at a time"),
        (EXAMPLES, ["-v", "0"], "--hellaswag has no effect: -v 0 means"),
    ],
)
def test_questions_that_do_not_fit_are_refused_before_the_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    examples: list[tuple[list[int], list[list[int]], int]] | None,
    more: list[str],
    message: str,
) -> None:
    path = tmp_path / "none.bin"
    if examples is not None:
        llmc_file(path, examples)
    given = [*flags(tmp_path), *more, "--hellaswag", str(path), "-o", str(tmp_path / "run")]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*.bin"))


@pytest.mark.parametrize("world", [3, 8])
def test_ranks_share_the_questions(tmp_path: Path, world: int) -> None:
    """Of 20 questions and 8 ranks, 3 each, the last has none."""
    path = llmc_file(tmp_path / "questions.bin")
    config = GPTConfig(maxT=64, V=257, L=1, NH=1, C=8)
    weights = initial_parameters(config, 42) * np.float32(4)

    def answers_of(ranks: Ranks) -> Answers:
        scorer = make_scorer(CPU(), config, weights, FP32, 64)
        return RunQuestions(path, scorer, 64, ByteTokenizer(), ranks).answers()

    alone = answers_of(ONE_RANK)
    assert alone.questions == 20
    assert run_ranks(world, answers_of) == [alone] * world
