"""GGUF files byte by byte, by a reader that is written from the specification."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange.exchanged_models import random_weights
from exchange.hugging_face_files import TINY, tensors_of
from support.data_files import write_ranks

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.config import GPTConfig
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.errors import ConfigError
from cupygpt.exchange.gguf import write_gguf
from cupygpt.model.init_weights import initial_parameters

NUMBERS = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}
HUGGING_FACE = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
    "token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f",
}  # fmt: skip


class Reader:
    """What a GGUF file holds: `values` by key, and `tensors` as (type, array in NumPy's order)."""

    def __init__(self, path: Path) -> None:
        self.raw, self.at = path.read_bytes(), 0
        assert self.take(4) == b"GGUF"
        version, num_tensors, num_values = self.number("<I"), self.number("<Q"), self.number("<Q")
        assert version == 3
        self.values = {self.text(): self.value(self.number("<I")) for _ in range(num_values)}
        infos = [self.info() for _ in range(num_tensors)]
        body = -(-self.at // 32) * 32
        self.tensors, end = {}, 0
        for name, shape, kind, offset in infos:
            assert offset == end, name
            assert len(name) <= 63
            dtype = np.dtype({0: "<f4", 1: "<f2", 30: "<u2"}[kind])
            count = int(np.prod(shape))
            values = np.frombuffer(self.raw, dtype, count, body + offset).reshape(shape)
            self.tensors[name] = (kind, from_bfloat16(values) if kind == 30 else values)
            end = -(-(offset + values.nbytes) // 32) * 32
        assert len(self.raw) == body + end

    def take(self, count: int) -> bytes:
        self.at += count
        return self.raw[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.text()
        if kind == 9:
            element, count = self.number("<I"), self.number("<Q")
            return [self.value(element) for _ in range(count)]
        return self.number(NUMBERS[kind])

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text()
        shape = [self.number("<Q") for _ in range(self.number("<I"))]
        return name, tuple(shape[::-1]), self.number("<I"), self.number("<Q")


def written(path: Path, precision: str = "fp32") -> Reader:
    model = ModelFile(TINY, "fp32", random_weights(TINY), ())
    write_gguf(path, model, load_tokenizer("bytes").vocabulary(), precision, "tiny")
    return Reader(path)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_tensor_is_there_under_its_name(tmp_path: Path, precision: str) -> None:
    """Against the tensors under Hugging Face's names, whose matrices are transposed."""
    tensors = dict(written(tmp_path / "a.gguf", precision).tensors)
    for full, values in tensors_of(random_weights(TINY)).items():
        ours = next(
            key for key in tensors if hugging_face_name(key) == full.removeprefix("transformer.")
        )
        stored, found = tensors.pop(ours)
        is_matrix = values.ndim == 2 and "wpe" not in full
        wanted = values.T if is_matrix and "wte" not in full else values
        assert stored == ({"fp32": 0, "fp16": 1, "bf16": 30}[precision] if is_matrix else 0)
        if stored == 1:
            wanted = wanted.astype(np.float16)
        if stored == 30:
            wanted = from_bfloat16(to_bfloat16(np.ascontiguousarray(wanted)))
        assert np.array_equal(found, wanted), full
    assert not tensors


def hugging_face_name(name: str) -> str:
    *layer, base, kind = name.split(".")
    return ".".join([*(["h", layer[1]] if layer else []), HUGGING_FACE[base], kind])


def test_the_values_say_what_llama_cpp_asks(tmp_path: Path) -> None:
    values = written(tmp_path / "a.gguf").values
    tokens = values.pop("tokenizer.ggml.tokens")
    kinds = values.pop("tokenizer.ggml.token_type")
    assert values.pop("gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-5)
    assert values == {
        "general.architecture": "gpt2",
        "general.name": "tiny",
        "general.file_type": 0,
        "gpt2.context_length": 8,
        "gpt2.embedding_length": 16,
        "gpt2.block_count": 2,
        "gpt2.feed_forward_length": 64,
        "gpt2.attention.head_count": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert (len(tokens), tokens[65], tokens[32], tokens[256]) == (257, "A", "Ġ", "<|endoftext|>")
    assert kinds == 256 * [1] + [3]


def test_merges_and_unused_ids_are_written(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "gap.tiktoken", [b"th", b" th", b"[P"])
    with path.open("ab") as file:
        file.write(b"dGhl 262\n")  # "the"; 259 to 261 are unused
    vocabulary = load_tokenizer(str(path)).vocabulary()
    config = GPTConfig(maxT=8, V=264, L=1, NH=2, C=16)
    model = ModelFile(config, "fp32", initial_parameters(config, 1), ())
    write_gguf(tmp_path / "a.gguf", model, vocabulary, "fp32", "gap")
    values = Reader(tmp_path / "a.gguf").values
    assert values["tokenizer.ggml.merges"] == ["t h", "Ġ th", "[ P", "th e"]
    assert values["tokenizer.ggml.tokens"][258:] == [
        *("[P", "[PAD259]", "[PAD260]", "[PAD261]", "the", "<|endoftext|>"),
    ]
    assert values["tokenizer.ggml.token_type"][258:] == [1, 5, 5, 5, 1, 3]
    assert values["tokenizer.ggml.eos_token_id"] == 263


def test_weights_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    weights[3] = -70000.0
    model = ModelFile(TINY, "fp32", weights, ())
    vocabulary = load_tokenizer("bytes").vocabulary()
    with pytest.raises(ConfigError, match=r"largest weight is 7e\+04, but float16 ends at 65504"):
        write_gguf(tmp_path / "a.gguf", model, vocabulary, "fp16", "big")
    assert not list(tmp_path.iterdir())
    write_gguf(tmp_path / "a.gguf", model, vocabulary, "bf16", "big")
