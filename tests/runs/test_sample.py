"""Generated text: equal to a whole forward pass, repeatable, and the command that prints it."""

from pathlib import Path

import numpy as np
import pytest
from support.small_runs import command

from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32
from cupygpt.model.generate import Generator, Sampling
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import RunShape
from cupygpt.model.tensors import PREFILL_ROWS, cut_packed, parameter_specs
from cupygpt.sample import main
from cupygpt.training.trainer import OptimizerSettings, Trainer

BYTES = GPTConfig(maxT=100, V=257, L=2, NH=2, C=16)


def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "bytes.bin"
    save_model(path, BYTES, initial_parameters(BYTES, 42) * np.float32(5), "fp32")
    return path


def make_generator() -> tuple[Generator, np.ndarray]:
    parameters = initial_parameters(BYTES, 42) * np.float32(5)
    params = cut_packed(parameters, parameter_specs(BYTES))
    return Generator(CPU(), BYTES, params, FP32), parameters


@pytest.mark.parametrize("length", [1, 5, PREFILL_ROWS, PREFILL_ROWS + 3, 100])
def test_decoding_with_the_cache_equals_a_whole_forward(length: int) -> None:
    generator, parameters = make_generator()
    tokens = np.random.default_rng(length).integers(0, 257, length).tolist()
    (drawn,) = generator.generate(tokens, 1, Sampling(temperature=0.0), (0,))
    trainer = Trainer(CPU(), RunShape(BYTES, 1, length), OptimizerSettings())
    trainer.params.flat[:] = parameters
    trainer.model.forward(np.array([tokens], np.int32))
    logits = trainer.model.acts.lnf[0, -1] @ trainer.params.wte[:257].T
    assert drawn == logits.argmax()


def test_a_prompt_in_pieces_gives_the_same_text() -> None:
    generator, _ = make_generator()
    text = list(generator.generate([3], 40, Sampling(temperature=0.0), (0,)))
    for cut in (1, 7, 30):
        rest = list(generator.generate([3, *text[:cut]], 40 - cut, Sampling(temperature=0.0), (0,)))
        assert rest == text[cut:]


def test_text_continues_beyond_the_context() -> None:
    generator, _ = make_generator()
    tokens = list(generator.generate([256], 3 * BYTES.maxT, Sampling(), (1,)))
    assert len(tokens) == 300
    assert all(0 <= token < 257 for token in tokens)


def test_a_seed_repeats_a_text() -> None:
    generator, _ = make_generator()
    texts = [tuple(generator.generate([256], 30, Sampling(), seed)) for seed in ((1,), (1,), (2,))]
    assert texts[0] == texts[1] != texts[2]


def test_the_command_prints_the_prompt_and_its_continuation(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    flags = [str(path), "--prompt", "def f(", "--tokens", "20", "--num", "2", "--device", "cpu"]
    first = command("cupygpt.sample", *flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("def f(") == 2
    assert "--- 1 of 2" in first.stdout
    assert "tok/s" in first.stderr
    assert command("cupygpt.sample", *flags, cwd=tmp_path).stdout == first.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["absent"], "no such run folder or model file"),
        (["{folder}"], "no complete checkpoint"),
        (["{model}", "--tokens", "0"], "--tokens is 0"),
        (["{model}", "--top-p", "0"], "--top-p is 0"),
        (["{model}", "--temperature", "-1"], "--temperature is -1"),
        (["{model}", "--tokenizer", "{model}"], "magic"),
        (["{odd}"], "no tokenizer is known for a vocabulary of 65"),
        (["{odd}", "--tokenizer", "bytes"], "tokenizer bytes has 257 ids, the model 65"),
    ],
)
def test_bad_input_gets_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    odd = GPTConfig(maxT=8, V=65, L=1, NH=1, C=8)
    save_model(tmp_path / "odd.bin", odd, initial_parameters(odd, 1), "fp32")
    names = {"folder": tmp_path, "model": model_file(tmp_path), "odd": tmp_path / "odd.bin"}
    arguments = [flag.format(**names) for flag in flags]
    assert main([*arguments, "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
