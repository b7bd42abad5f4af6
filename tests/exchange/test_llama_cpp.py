"""llama.cpp writes the same text from our GGUF files as we do.

Needs xllamacpp and gguf, which only these tests use: pip install xllamacpp gguf.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange.exchanged_models import convert, greedy, mixed_text, trained_run
from support.data_files import use_gpt2_files

from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.data.tokenizer import Tokenizer, load_tokenizer
from cupygpt.run_folder.record import TOKENIZER_COPY

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PROMPT = "Train on your own text. The"


@pytest.fixture(autouse=True)
def _gpt2_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gpt2" in request.node.name:
        use_gpt2_files(monkeypatch)


@pytest.fixture(scope="module", params=["bytes", "gpt2", "bpe:512"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained here."""
    return trained_run(request.param, tmp_path_factory.mktemp(request.param.replace(":", "")))


def answers(gguf: Path, *requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """What llama.cpp answers, in a process of its own."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    (gguf.parent / "requests.json").write_text(json.dumps(requests))
    program = Path(__file__).with_name("llama_cpp.py")
    words = [sys.executable, program, gguf, gguf.parent / "requests.json"]
    result = subprocess.run(words, capture_output=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found: list[Any] = json.loads(result.stdout.decode().splitlines()[-1])
    return found


def tokenizer_of(run: Path) -> Tokenizer:
    name = json.loads((run / "run.json").read_text())["data"]["tokenizer"]
    copy = run / TOKENIZER_COPY
    return load_tokenizer(str(copy) if copy.exists() else name)


def test_llama_cpp_writes_the_same_greedy_text(run: Path) -> None:
    folder, tokenizer = run.parent, tokenizer_of(run)
    convert("run", "model.gguf", "--overwrite", cwd=folder)
    convert("run", "model.bin", "--overwrite", cwd=folder)
    prompt = [int(i) for i in tokenizer.encode(PROMPT)]
    ours = greedy(folder / "model.bin", prompt, 50)
    request = {"prompt": prompt, "n_predict": 50, "temperature": 0, "return_tokens": True}
    [answer] = answers(folder / "model.gguf", ("/completion", request))
    stop = ours.index(tokenizer.eot) if tokenizer.eot in ours else len(ours)
    assert stop >= 20
    assert answer["tokens"][:stop] == ours[:stop]
    assert answer["content"] == tokenizer.decode(ours[:stop])
    assert len(set(ours)) > 3


def test_llama_cpp_splits_text_into_the_same_ids(run: Path) -> None:
    """All text but NUL, at which its server ends a text; end of text is one id if it is asked."""
    folder, tokenizer = run.parent, tokenizer_of(run)
    convert("run", "model.gguf", "--overwrite", cwd=folder)
    text = mixed_text(100_000).replace("\0", "")
    plain, special = answers(
        folder / "model.gguf",
        ("/tokenize", {"content": text, "parse_special": False}),
        ("/tokenize", {"content": "a<|endoftext|>", "parse_special": True}),
    )
    assert plain["tokens"] == tokenizer.encode(text).tolist()
    assert special["tokens"] == [*tokenizer.encode("a").tolist(), tokenizer.eot]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_ggufs_own_reader_finds_the_weights(run: Path, precision: str) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    folder = run.parent
    convert("run", "model.gguf", "--precision", precision, "--overwrite", cwd=folder)
    convert("run", "model.bin", "--overwrite", cwd=folder)
    model = load_model(folder / "model.bin")
    L, C, V = model.config.L, model.config.C, model.config.V
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}
    assert len(tensors) == 12 * L + 4
    wte = tensors["token_embd.weight"]
    assert wte.shape.tolist() == [C, V]
    exact = model.parameters[: V * C].reshape(V, C)
    found = gguf.dequantize(wte.data, wte.tensor_type).reshape(V, C)
    assert np.abs(found - exact).max() <= {"fp32": 0, "fp16": 1e-3, "bf16": 1e-2}[precision]
