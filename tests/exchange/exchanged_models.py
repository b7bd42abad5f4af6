"""Models for the tests of exchange: trained here in seconds, or random where size matters."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.data_files import use_gpt2_files
from support.small_runs import command

from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.checkpoint.model_file import ModelFile, save_model
from cupygpt.config import GPT2_VOCAB, GPTConfig
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32
from cupygpt.model.generate import Generator, Sampling
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.tensors import cut_packed, parameter_specs

ROOT = Path(__file__).parents[2]


def random_weights(config: GPTConfig, seed: int = 1, scale: float = 4.0) -> np.ndarray:
    """Weights no two of which are alike, biases and LayerNorms too; padding rows are zero."""
    rng = np.random.default_rng(seed)
    weights = initial_parameters(config, 42) * np.float32(scale)
    weights += 0.05 * rng.standard_normal(weights.size, np.float32)
    weights[config.V * config.C : config.Vp * config.C] = 0
    return weights


def english_text() -> str:
    """20 kB, which small models learn in seconds."""
    return (ROOT / "README.md").read_text(encoding="utf-8")[:20_000]


ODD_PIECES = [
    *("don't", "we'LL", "'s", "naïve", "ß", "Ǆ", "3.14159", "1234567", "½", "١٢٣", "...!?"),
    *(
        "__init__",
        "𝔘",
        "日本語",
        "한국어",
        "العربية",
        "हिन्दी",
        "ไทย",
        "e\u0301",
        "\u200d",
        "\ufeff",
    ),
    *("👩\u200d👩\u200d👧", "🇫🇷", "  ", "\n\n\n", "\t\t", "\r\n", "\u00a0", "\u3000", "\u2028"),
    *("\0", "\x1b[0m", "<|endoftext|>"),
]


def mixed_text(num_bytes: int) -> str:
    """Text of every kind: code, blanks of all sorts, control characters, many scripts, emoji."""
    rng = np.random.default_rng(5)
    pieces = [*re.findall(r"\S+\s*", english_text()), *(50 * ODD_PIECES)]
    text, size = [], 0
    while size < num_bytes:
        piece = (
            pieces[int(rng.integers(len(pieces)))]
            if rng.random() < 0.7
            else chr(int(rng.choice([rng.integers(32, 0x500), rng.integers(0x4E00, 0x9FFF)])))
        )
        text.append(piece)
        size += len(piece.encode())
    return "".join(text)


SMALL = ["-e", "L2:H2:C64:T128", "-n", "400", "-b", "16", "-t", "32", "-l", "3e-3"]
FLAGS = {
    "bytes": [*SMALL, "--dropout", "0"],
    "bpe:512": [*SMALL, "--dropout", "0"],
    "gpt2": ["-e", "start.bin", "-n", "40", "-b", "2", "-t", "64", "-l", "1e-4"],
}
"""Small models by tokenizer, whose greedy text is more than one word: two are trained until they
know the text, the other begins with large random weights."""
START = GPTConfig(maxT=128, V=GPT2_VOCAB, L=2, NH=2, C=64)


def trained_run(tokenizer: str, folder: Path) -> Path:
    """Train a small model on English text with the tokenizer; returns the run folder."""
    (folder / "text.txt").write_text(english_text())
    if tokenizer == "gpt2":
        with pytest.MonkeyPatch.context() as patch:
            use_gpt2_files(patch)
            return _train(folder, tokenizer)
    return _train(folder, tokenizer)


def _train(folder: Path, tokenizer: str) -> Path:
    save_model(folder / "start.bin", START, random_weights(START), "fp32")
    files = ["-i", "text_train.bin", "-j", "text_val.bin", "-o", "run"]
    for words in (
        ["cupygpt.prepare", "text.txt", "--tokenizer", tokenizer],
        ["cupygpt.train", *files, *FLAGS[tokenizer], "-v", "100", "-s", "0", "--device", "cpu"],
    ):
        result = command(words[0], *words[1:], cwd=folder, timeout=600)
        assert result.returncode == 0, result.stderr
    return folder / "run"


def convert(*words: object, cwd: Path) -> str:
    """Run the command, which must succeed; returns what it printed."""
    result = command("cupygpt.convert", *map(str, words), cwd=cwd, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def generator_of(model: ModelFile) -> Generator:
    """Our decoder of a model, in float32 on the CPU."""
    params = cut_packed(model.parameters, parameter_specs(model.config))
    return Generator(CPU(), model.config, params, FP32)


def greedy(path: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest continuation by our own decoder."""
    return list(generator_of(load_model(path)).generate(prompt, count, Sampling(0.0), (1,)))


def save_random(path: Path, config: GPTConfig, precision: str = "fp32") -> ModelFile:
    """A model file of random weights, as it is read back."""
    save_model(path, config, random_weights(config), precision)
    return load_model(path)
