"""config.json of a Hugging Face GPT-2: is it the network that we compute? And how we write it."""

from pathlib import Path
from typing import Any

from cupygpt.config import GPTConfig
from cupygpt.errors import CheckpointError, ConfigError
from cupygpt.strict_json import is_count, quoted, read_object

CONFIG_FILE = "config.json"
MOST_BYTES = 1 << 18

LAYER_NORM_EPSILON = 1e-5
"""That of all LayerNorms here (cuda/layernorm.cu)."""

_SHAPE_KEYS = {
    "V": ("vocab_size",),
    "maxT": ("n_positions", "max_position_embeddings"),
    "C": ("n_embd", "hidden_size"),
    "L": ("n_layer", "num_hidden_layers"),
    "NH": ("n_head", "num_attention_heads"),
}
"""The fields of GPTConfig by their key, and the other name that transformers reads as well."""

_TANH_GELU = (
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_fast",
    "gelu_python_tanh",
    "gelu_accurate",
)
"""The names of GELU with tanh; they agree within 3e-7."""

_MUST_BE: dict[str, tuple[tuple[Any, ...], str]] = {
    "activation_function": (_TANH_GELU, "GELU with tanh (gelu_new)"),
    "layer_norm_epsilon": ((LAYER_NORM_EPSILON,), f"{LAYER_NORM_EPSILON}"),
    "scale_attn_weights": ((True,), "true"),
    "scale_attn_by_inverse_layer_idx": ((False,), "false"),
    "add_cross_attention": ((False,), "false"),
    "quantization_config": ((None,), "absent: save the model without quantization"),
    "auto_map": ((None,), "absent: code that comes with a model is not run"),
}
"""What a key must be if it is there, and the same in words."""


def read_config(folder: Path) -> tuple[GPTConfig, bool]:
    """The shape that config.json gives, and whether the head is wte itself, not a tensor.

    Raises CheckpointError if the file is damaged, or means another network.
    """
    path = folder / CONFIG_FILE
    values = read_object(path, MOST_BYTES)
    kind = values.get("model_type")
    if kind != "gpt2":
        raise CheckpointError(
            f"{path}: a model of type {quoted(kind)}, but only gpt2 can be read: other networks "
            f"compute something else."
        )
    config = _shape(path, values)
    for key, (allowed, words) in _MUST_BE.items():
        if key in values and not any(_equal(values[key], one) for one in allowed):
            raise CheckpointError(
                f"{path}: {key} is {quoted(values[key])}, but must be {words}: this program "
                f"computes nothing else."
            )
    inner = values.get("n_inner")
    if inner is not None and not _equal(inner, 4 * config.C):
        raise CheckpointError(
            f"{path}: n_inner is {quoted(inner)}, but must be null or 4 x n_embd = {4 * config.C}: "
            f"llm.c's files hold no other width."
        )
    return config, _equal(values.get("tie_word_embeddings", True), wanted=True)


def _shape(path: Path, values: dict[str, Any]) -> GPTConfig:
    shape = {}
    for field, keys in _SHAPE_KEYS.items():
        found = [key for key in keys if key in values]
        if not found:
            raise CheckpointError(f"{path}: {keys[0]} is missing. Copy the file again.")
        value = values[found[0]]
        if not is_count(value):
            raise CheckpointError(f"{path}: {found[0]} is {quoted(value)}, not a number of things.")
        if any(values[key] != value for key in found):
            raise CheckpointError(f"{path}: {' and '.join(found)} differ. Remove one of them.")
        shape[field] = value
    try:
        return GPTConfig(**shape)
    except ConfigError as error:
        raise CheckpointError(f"{path}: this model cannot be computed here: {error}") from error


def _equal(value: object, wanted: object) -> bool:
    """Equal, and both or neither of them true or false: 1 is not true."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def config_values(config: GPTConfig, precision: str, eot: int | None) -> dict[str, Any]:
    """What config.json says of a model; `eot` is the id of end of text, None if there is none."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.V,
        "n_positions": config.maxT,
        "n_ctx": config.maxT,  # transformers reads it no more, llama.cpp's converter does
        "n_embd": config.C,
        "n_layer": config.L,
        "n_head": config.NH,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "torch_dtype": {"fp32": "float32", "bf16": "bfloat16"}[precision],
    }
