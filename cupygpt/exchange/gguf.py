"""GGUF files, version 3, which llama.cpp and Ollama load: written, not read.

Bytes: "GGUF" | uint32 3 | uint64 number of tensors | uint64 number of values | values | where each
tensor lies | zeros up to a multiple of 32 | the tensors, each padded to a multiple of 32. Texts
have a uint64 length before them. Little-endian. Source: the specification (docs/gguf.md in
github.com/ggml-org/ggml), and what llama.cpp asks of the architecture gpt2.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.arrays import to_bfloat16
from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.config import GPTConfig
from cupygpt.data.tokenizer_files import GPT2_SPLIT
from cupygpt.data.vocabulary import Vocabulary, in_alphabet
from cupygpt.errors import ConfigError
from cupygpt.exchange.hf_config import LAYER_NORM_EPSILON
from cupygpt.exchange.hf_tokenizer_files import token_texts
from cupygpt.exchange.names import TENSOR_NAMES, layers_of, part_of
from cupygpt.files import write_arrays
from cupygpt.model.tensors import cut_packed, parameter_specs

ALIGNMENT = 32
VERSION = 3

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5
"""Kinds of tokens."""

_LARGEST_FP16 = 65504.0


@dataclass(frozen=True)
class _ElementType:
    """How matrices are stored: the type's number, the number for the whole file, and how."""

    tensor_type: int
    file_type: int
    element_bytes: int
    encode: Callable[[np.ndarray], np.ndarray]


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _to_fp16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)


_TYPES = {
    "fp32": _ElementType(0, 0, 4, _same),
    "fp16": _ElementType(1, 1, 2, _to_fp16),
    "bf16": _ElementType(30, 32, 2, to_bfloat16),
}

GGUF_PRECISIONS = tuple(_TYPES)


def write_gguf(
    path: Path, model: ModelFile, vocabulary: Vocabulary, precision: str, name: str
) -> None:
    """Write weights and vocabulary atomically; `precision` is that of the matrices.

    Vectors and positions stay float32, as llama.cpp wants them. Raises ConfigError for weights that
    float16 cannot hold, RunError if the disk refuses.
    """
    if vocabulary.split != GPT2_SPLIT:
        raise ConfigError(
            "a GGUF file names how text is split, and there is no name for this model's pattern: "
            "only GPT-2's can be written. A Hugging Face folder can hold any."
        )
    largest = max(float(model.parameters.max()), -float(model.parameters.min()))
    if precision == "fp16" and largest > _LARGEST_FP16:
        raise ConfigError(
            f"the largest weight is {largest:.4g}, but float16 ends at {_LARGEST_FP16:.0f}. "
            f"Choose --precision fp32 or bf16."
        )
    values = _values(model.config, vocabulary, precision, name)
    tensors = list(_tensors(model, precision))
    head = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(values)), *values]
    at = 0
    for tensor in tensors:
        head.append(tensor.describe(at))
        at += tensor.num_bytes + -tensor.num_bytes % ALIGNMENT
    write_arrays(path, _in_turn(_padded(b"".join(head)), tensors))


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file; `values` is a view of the parameters, encoded when its turn comes."""

    name: str
    values: np.ndarray
    stored: _ElementType

    @property
    def num_bytes(self) -> int:
        return self.values.size * self.stored.element_bytes

    def describe(self, offset: int) -> bytes:
        """Where it lies. GGUF gives the fastest axis first."""
        shape = self.values.shape[::-1]
        return (
            _text(self.name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", self.stored.tensor_type, offset)
        )


def _tensors(model: ModelFile, precision: str) -> Iterator[_Tensor]:
    params = dict(cut_packed(model.parameters, parameter_specs(model.config)).items())
    for names in TENSOR_NAMES:
        for layer in layers_of(names, model.config):
            values = part_of(params[names.ours], names, layer, model.config)
            is_matrix = values.ndim == 2 and names.ours != "wpe"
            stored = _TYPES[precision if is_matrix else "fp32"]
            yield _Tensor(names.gguf_of(layer), values, stored)


def _in_turn(head: bytes, tensors: Iterable[_Tensor]) -> Iterator[np.ndarray]:
    yield np.frombuffer(head, np.uint8)
    for tensor in tensors:
        yield tensor.stored.encode(tensor.values)
        yield np.zeros(-tensor.num_bytes % ALIGNMENT, np.uint8)


def _values(config: GPTConfig, vocabulary: Vocabulary, precision: str, name: str) -> list[bytes]:
    """What the file says of the model and its tokenizer."""
    kinds = [
        _CONTROL if i == vocabulary.eot else _NORMAL if token else _UNUSED
        for i, token in enumerate(vocabulary.tokens)
    ]
    merges = [f"{in_alphabet(left)} {in_alphabet(right)}" for left, right in vocabulary.merges]
    return [
        _value("general.architecture", _STRING, _text("gpt2")),
        _value("general.name", _STRING, _text(name)),
        _value("general.file_type", _U32, struct.pack("<I", _TYPES[precision].file_type)),
        *(
            _value(f"gpt2.{key}", _U32, struct.pack("<I", number))
            for key, number in (
                ("context_length", config.maxT),
                ("embedding_length", config.C),
                ("block_count", config.L),
                ("feed_forward_length", 4 * config.C),
                ("attention.head_count", config.NH),
            )
        ),
        _value("gpt2.attention.layer_norm_epsilon", _F32, struct.pack("<f", LAYER_NORM_EPSILON)),
        _value("tokenizer.ggml.model", _STRING, _text("gpt2")),
        _value("tokenizer.ggml.pre", _STRING, _text("gpt-2")),
        _array("tokenizer.ggml.tokens", _STRING, [_text(x) for x in _named(vocabulary)]),
        _array("tokenizer.ggml.token_type", _I32, [struct.pack("<i", kind) for kind in kinds]),
        _array("tokenizer.ggml.merges", _STRING, [_text(merge) for merge in merges]),
        *(
            _value(f"tokenizer.ggml.{kind}_token_id", _U32, struct.pack("<I", vocabulary.eot))
            for kind in ("bos", "eos")
        ),
        _value("tokenizer.ggml.add_bos_token", _BOOL, b"\0"),
    ]


def _named(vocabulary: Vocabulary) -> list[str]:
    """The text of each id; an unused one gets a name that no token has."""
    texts = token_texts(vocabulary)
    known = set(texts)
    for i, text in enumerate(texts):
        if not text:
            name = f"[PAD{i}]"
            while name in known:
                name += "]"
            texts[i] = name
    return texts


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, kind: int, raw: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + raw


def _array(key: str, kind: int, elements: Sequence[bytes]) -> bytes:
    return _value(key, _ARRAY, struct.pack("<IQ", kind, len(elements)) + b"".join(elements))


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % ALIGNMENT)
