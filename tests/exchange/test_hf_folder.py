"""Hugging Face folders: every tensor in its place, and only plain GPT-2 models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange.exchanged_models import random_weights
from exchange.hugging_face_files import CONFIG, TINY, change_config, write_folder

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.errors import CheckpointError
from cupygpt.exchange.hf_folder import find_model, load_hugging_face, write_weights
from cupygpt.exchange.safetensors_file import read_tensor_table

Tensors = dict[str, np.ndarray]


def test_each_tensor_arrives_in_its_place(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    write_folder(tmp_path, weights)
    model = load_hugging_face(tmp_path)
    assert (model.config, model.precision, model.warnings) == (TINY, "fp32", ())
    assert model.parameters.tobytes() == weights.tobytes()


def test_what_we_write_has_hugging_faces_names_and_shapes(tmp_path: Path) -> None:
    """Against the writer of the tests, which knows nothing of the package's table of names."""
    weights = random_weights(TINY)
    write_folder(tmp_path, weights)
    wanted = read_tensor_table(tmp_path / "model.safetensors")
    write_weights(tmp_path / "ours.safetensors", ModelFile(TINY, "fp32", weights, ()), "fp32")
    found = read_tensor_table(tmp_path / "ours.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, name
        assert found[name].read().tobytes() == tensor.read().tobytes(), name


def test_bfloat16_goes_in_and_out_exactly(tmp_path: Path) -> None:
    weights = from_bfloat16(to_bfloat16(random_weights(TINY)))
    write_folder(tmp_path, weights, dtype="BF16")
    model = load_hugging_face(tmp_path)
    assert model.precision == "bf16"
    assert np.array_equal(model.parameters, weights)
    write_weights(tmp_path / "model.safetensors", model, "bf16")
    again = load_hugging_face(tmp_path)
    assert again.precision == "bf16"
    assert np.array_equal(again.parameters, weights)


def test_float16_becomes_float32_exactly(tmp_path: Path) -> None:
    weights = random_weights(TINY).astype(np.float16).astype(np.float32)
    write_folder(tmp_path, weights, dtype="F16")
    model = load_hugging_face(tmp_path)
    assert model.precision == "fp32"
    assert np.array_equal(model.parameters, weights)


def without_prefix(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)


def with_masks(tensors: Tensors) -> None:
    for layer in range(TINY.L):
        tensors[f"transformer.h.{layer}.attn.bias"] = np.ones((1, 1, 4, 4), np.uint8)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)


def with_the_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]


@pytest.mark.parametrize("change", [without_prefix, with_masks, with_the_head])
def test_other_ways_of_saving_the_same_model_are_read(
    tmp_path: Path, change: Callable[[Tensors], None]
) -> None:
    weights = random_weights(TINY)
    write_folder(tmp_path, weights, change)
    assert load_hugging_face(tmp_path).parameters.tobytes() == weights.tobytes()


@pytest.mark.parametrize("num_files", [1, 2, 5])
def test_shards_are_read(tmp_path: Path, num_files: int) -> None:
    weights = random_weights(TINY)
    write_folder(tmp_path, weights, num_files=num_files, index=True)
    assert len(list(tmp_path.glob("*.safetensors"))) == num_files
    assert load_hugging_face(tmp_path).parameters.tobytes() == weights.tobytes()


# ---- refused --------------------------------------------------------------------------


def untied(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1


def with_lora(tensors: Tensors) -> None:
    tensors["transformer.h.0.attn.c_attn.lora_A"] = np.zeros((4, 4), np.float32)


def renamed(tensors: Tensors) -> None:
    tensors["transformer.ln_g.bias"] = tensors.pop("transformer.ln_f.bias")


def without_a_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".h.1." in name]:
        del tensors[name]


def another_shape(tensors: Tensors) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def integers(tensors: Tensors) -> None:
    tensors["transformer.ln_f.bias"] = np.zeros(TINY.C, np.uint8)


def not_finite(tensors: Tensors) -> None:
    tensors["transformer.ln_f.bias"] = np.full(TINY.C, np.inf, np.float32)


def twice(tensors: Tensors) -> None:
    tensors["ln_f.bias"] = tensors["transformer.ln_f.bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (untied, "lm_head.weight differs from wte.weight"),
        (with_lora, "29 tensors, but a GPT-2 of 2 layers has 28. 'h.0.attn.c_attn.lora_A' is none"),
        (renamed, "the tensor ln_f.bias is missing, and 'ln_g.bias' is none"),
        (without_a_layer, "16 tensors, but a GPT-2 of 2 layers has 28"),
        (another_shape, r"h.0.mlp.c_fc.weight has the shape \(64, 16\), but config.json asks for"),
        (integers, "ln_f.bias is stored as U8"),
        (not_finite, "NaN or infinity"),
        (twice, "'ln_f.bias' is there twice"),
    ],
)
def test_another_model_is_refused(
    tmp_path: Path, change: Callable[[Tensors], None], message: str
) -> None:
    write_folder(tmp_path, random_weights(TINY), change)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "gelu_pytorch_tanh"),
        ("n_inner", 4 * TINY.C),
        ("reorder_and_upcast_attn", True),
        ("attn_pdrop", 0.1),
        ("tie_word_embeddings", False),
        ("eos_token_id", [1, 2]),
    ],
)
def test_settings_that_change_nothing_are_accepted(tmp_path: Path, key: str, value: Any) -> None:
    write_folder(tmp_path, random_weights(TINY), with_the_head)
    change_config(tmp_path, **{key: value})
    assert find_model(tmp_path).config == TINY


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "llama", "a model of type 'llama', but only gpt2"),
        ("activation_function", "gelu", "activation_function is 'gelu', but must be GELU with"),
        ("activation_function", ["gelu_new"], "activation_function is"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06, but must be 1e-05"),
        ("scale_attn_weights", False, "scale_attn_weights"),
        ("scale_attn_weights", 1, "scale_attn_weights"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx"),
        ("add_cross_attention", True, "add_cross_attention"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("auto_map", {"AutoModel": "x.Y"}, "auto_map"),
        ("n_inner", 4 * TINY.C + 1, "n_inner is 65, but must be null or 4 x n_embd = 64"),
        ("n_layer", 10**12, "28 tensors, but a GPT-2 of 1,000,000,000,000 layers has"),
        ("n_layer", True, "n_layer is True"),
        ("n_layer", 2.0, "n_layer is 2.0"),
        ("n_embd", "16", "n_embd is '16'"),
        ("n_head", 3, "16 channels do not divide by 3 heads"),
        ("vocab_size", 10**9, "vocabulary 1000000000 is over 1048576"),
        ("vocab_size", TINY.V + 1, "wte.weight has the shape"),
        ("hidden_size", 32, "n_embd and hidden_size differ"),
        ("tie_word_embeddings", False, "but lm_head.weight is missing"),
        ("tie_word_embeddings", None, "but lm_head.weight is missing"),
    ],
)
def test_settings_of_another_network_are_refused(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    write_folder(tmp_path, random_weights(TINY))
    change_config(tmp_path, **{key: value})
    with pytest.raises(CheckpointError, match=message):
        find_model(tmp_path)


@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size"])
def test_a_missing_size_is_named(tmp_path: Path, key: str) -> None:
    write_folder(tmp_path, random_weights(TINY))
    values = {name: value for name, value in CONFIG.items() if name != key}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        find_model(tmp_path)


def test_the_other_names_of_the_sizes_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, random_weights(TINY))
    names = {
        "n_embd": "hidden_size",
        "n_positions": "max_position_embeddings",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
    }
    values = {names.get(name, name): value for name, value in CONFIG.items()}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert find_model(tmp_path).config == TINY


# ---- files ----------------------------------------------------------------------------


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_folder(tmp_path, random_weights(TINY))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle .* If you trust it.*save_pretrained"):
        find_model(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        find_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"an adapter, not a whole model"):
        find_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(x="model-00001-of-00002.safetensors"), "tensor 'x' is missing"),
        (lambda m: m.pop("transformer.ln_f.bias"), "holds the tensor 'transformer.ln_f.bias'"),
        (lambda m: m.update(x="../other.safetensors"), "only .safetensors files in the same"),
        (lambda m: m.update(x="/etc/passwd"), "only .safetensors files in the same"),
        (lambda m: m.update(x="a.bin"), "only .safetensors files in the same"),
        (lambda m: m.update(x="a\\b.safetensors"), "only .safetensors files in the same"),
        (lambda m: m.update(x="none.safetensors"), "none.safetensors: could not be read"),
        (lambda m: m.update(x=3), "weight_map should give a file"),
        (lambda m: m.update({"transformer.wte.weight": "model-00002-of-00002.safetensors"}),
         "does not place there"),
        (lambda m: m.update({f"t{i}": f"{i}.safetensors" for i in range(1001)}), "1,003 files"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    write_folder(tmp_path, random_weights(TINY), num_files=2, index=True)
    path = tmp_path / "model.safetensors.index.json"
    values = json.loads(path.read_text())
    change(values["weight_map"])
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        find_model(tmp_path)
