"""The weights of a Hugging Face folder: config.json with safetensors, one file or shards."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.arrays import to_bfloat16
from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.config import GPTConfig
from cupygpt.errors import CheckpointError
from cupygpt.exchange.hf_config import CONFIG_FILE, read_config
from cupygpt.exchange.names import TENSOR_NAMES, TensorNames, layers_of, num_tensors, part_of
from cupygpt.exchange.safetensors_file import (
    StoredTensor,
    TensorToWrite,
    read_tensor_table,
    write_safetensors,
)
from cupygpt.model.tensors import cut_packed, parameter_specs
from cupygpt.strict_json import quoted, read_object

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

PREFIX = "transformer."
_HEAD = "lm_head.weight"
_MASKS = (".attn.bias", ".attn.masked_bias")
"""Older files hold the causal mask of each layer as a tensor."""

_MOST_INDEX_BYTES = 1 << 22
_MOST_FILES = 1000
_BLOCK = 1 << 20
"""So many elements are compared at a time."""


@dataclass(frozen=True)
class HuggingFaceModel:
    """A folder that was checked, but whose weights were not read yet.

    `tensors` are known by Hugging Face's names without prefix, and have the shapes of `config`.
    """

    folder: Path
    config: GPTConfig
    tensors: Mapping[str, StoredTensor]


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder looks like a saved model: it holds a config.json."""
    return (folder / CONFIG_FILE).is_file()


def find_model(folder: Path) -> HuggingFaceModel:
    """Check config.json and the header of every file; nothing of the weights is read.

    Raises CheckpointError for what is damaged, missing, or not the GPT-2 that we compute.
    """
    config, is_tied = read_config(folder)
    tensors = _without_extras(folder, _read_tables(folder), is_tied=is_tied)
    if len(tensors) != num_tensors(config.L):
        unknown = sorted(tensors.keys() - _names_up_to(config, len(tensors)))
        what = f" {quoted(unknown[0])} is none of a GPT-2." if unknown else ""
        raise CheckpointError(
            f"{folder}: {len(tensors):,} tensors, but a GPT-2 of {config.L:,} layers has "
            f"{num_tensors(config.L):,}.{what}"
        )
    for name, shape in _expected_shapes(config):
        tensor = tensors.get(name)
        if tensor is None:
            unknown = sorted(tensors.keys() - dict(_expected_shapes(config)).keys())
            raise CheckpointError(
                f"{folder}: the tensor {name} is missing, and {quoted(unknown[0])} is none of a "
                f"GPT-2 of this shape. Only plain GPT-2 models can be read."
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: {name} has the shape {quoted(tensor.shape)}, but {CONFIG_FILE} "
                f"asks for {shape}. The two files do not belong together."
            )
        if not tensor.can_be_weights():
            raise CheckpointError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}; F32, F16 and BF16 can be "
                f"read. Save the model in one of them."
            )
    return HuggingFaceModel(folder, config, tensors)


def load_hugging_face(folder: Path) -> ModelFile:
    """The weights of a folder, as if from a model file: float32 (P,), in llm.c's order.

    The precision is "bf16" if every tensor is bfloat16. Raises CheckpointError.
    """
    model = find_model(folder)
    config = model.config
    specs = parameter_specs(config)
    flat = np.zeros(sum(spec.size for spec in specs), np.float32)
    params = dict(cut_packed(flat, specs).items())
    for names in TENSOR_NAMES:
        for layer in layers_of(names, config):
            values = model.tensors[names.hugging_face_of(layer)].read()
            place = part_of(params[names.ours], names, layer, config)
            place[...] = values.T if names.transposed else values
    if not math.isfinite(float(np.sum(flat, dtype=np.float64))):
        raise CheckpointError(f"{folder}: the weights hold NaN or infinity; use other weights.")
    kinds = {tensor.dtype for tensor in model.tensors.values()}
    return ModelFile(config, "bf16" if kinds == {"BF16"} else "fp32", flat, ())


def _expected_shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor in a Hugging Face file."""
    specs = {spec.name: spec.shape for spec in parameter_specs(config)}
    for names in TENSOR_NAMES:
        for layer in layers_of(names, config):
            yield names.hugging_face_of(layer), _stored_shape(names, specs[names.ours], config)


def _stored_shape(names: TensorNames, shape: tuple[int, ...], config: GPTConfig) -> tuple[int, ...]:
    if names.ours == "wte":
        return (config.V, *shape[1:])
    shape = shape[1:] if names.of_layers else shape
    return shape[::-1] if names.transposed else shape


def _names_up_to(config: GPTConfig, most: int) -> set[str]:
    """The names of a GPT-2 of this shape, but not of more layers than `most` tensors can make."""
    layers = range(min(config.L, most))
    return {names.hugging_face_of(layer) for names in TENSOR_NAMES for layer in layers}


# ---- the files ------------------------------------------------------------------------


def _read_tables(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the folder by their full names."""
    if (folder / WEIGHTS_FILE).exists():
        return read_tensor_table(folder / WEIGHTS_FILE)
    if (folder / INDEX_FILE).exists():
        return _read_shards(folder)
    if any((folder / name).exists() for name in PICKLES):
        raise CheckpointError(
            f"{folder}: the weights are a pickle ({PICKLES[0]}), which can run any program when it "
            f"is read, so it is not. {how_to_save_again(folder)}"
        )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder}: an adapter, not a whole model. Merge it with peft (merge_and_unload), then "
            f"save_pretrained."
        )
    raise CheckpointError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there.")


def how_to_save_again(folder: Path) -> str:
    """What to do with a pickle, in words."""
    return (
        f"If you trust it, save it again with transformers: GPT2LMHeadModel.from_pretrained("
        f"{str(folder)!r}).save_pretrained('NEW', safe_serialization=True), and name NEW."
    )


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX_FILE
    weight_map = read_object(index, _MOST_INDEX_BYTES).get("weight_map")
    if type(weight_map) is not dict or not all(type(x) is str for x in weight_map.values()):
        raise CheckpointError(f"{index}: damaged; its weight_map should give a file for each name.")
    files = sorted(set(weight_map.values()))
    if len(files) > _MOST_FILES:
        raise CheckpointError(f"{index}: names {len(files):,} files; at most {_MOST_FILES:,}.")
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        if not _is_plain(name):
            raise CheckpointError(
                f"{index}: names the file {quoted(name)}, but only .safetensors files in the same "
                f"folder are read."
            )
        for tensor, stored in read_tensor_table(folder / name).items():
            if weight_map.get(tensor) != name:
                raise CheckpointError(
                    f"{folder / name}: holds the tensor {quoted(tensor)}, which {INDEX_FILE} does "
                    f"not place there. The files do not belong together; copy them again."
                )
            tensors[tensor] = stored
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{folder / weight_map[missing[0]]}: the tensor {quoted(missing[0])} is missing, "
            f"though {INDEX_FILE} places it there. The files do not belong together; copy them "
            f"again."
        )
    return tensors


def _is_plain(name: str) -> bool:
    """Whether this is the name of a safetensors file, and not a path to somewhere else."""
    return name.endswith(".safetensors") and not set(name) & set("/\\:\0") and ".." not in name


def _without_extras(
    folder: Path, tensors: dict[str, StoredTensor], *, is_tied: bool
) -> dict[str, StoredTensor]:
    """Names without prefix; without masks, and without the head, which must be wte once more."""
    plain: dict[str, StoredTensor] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(PREFIX)
        if name in plain:
            raise CheckpointError(f"{folder}: the tensor {quoted(name)} is there twice.")
        if not (name.startswith("h.") and name.endswith(_MASKS)):
            plain[name] = tensor
    head = plain.pop(_HEAD, None)
    if head is None and not is_tied:
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE} says that the head is a tensor of its own "
            f"(tie_word_embeddings is not true), but {_HEAD} is missing."
        )
    if head is not None and not _equal(head, plain.get("wte.weight")):
        raise CheckpointError(
            f"{folder}: {_HEAD} differs from wte.weight, but here the two are one matrix: a model "
            f"with untied embeddings cannot be read."
        )
    return plain


def _equal(head: StoredTensor, wte: StoredTensor | None) -> bool:
    """Whether two tensors hold the same bytes; compared in blocks."""
    if wte is None or (head.dtype, head.shape) != (wte.dtype, wte.shape):
        return False
    return head.can_be_weights() and all(
        np.array_equal(mine, other)
        for mine, other in zip(head.blocks(_BLOCK), wte.blocks(_BLOCK), strict=True)
    )


# ---- out ------------------------------------------------------------------------------


def write_weights(path: Path, model: ModelFile, precision: str) -> None:
    """Write model.safetensors: the padding rows of wte left out, in "fp32" or "bf16".

    Raises RunError if the disk refuses.
    """
    specs = {spec.name: spec.shape for spec in parameter_specs(model.config)}
    params = dict(cut_packed(model.parameters, parameter_specs(model.config)).items())

    def values(names: TensorNames, layer: int) -> np.ndarray:
        array = part_of(params[names.ours], names, layer, model.config)
        array = np.ascontiguousarray(array.T if names.transposed else array)
        return to_bfloat16(array) if precision == "bf16" else array

    tensors = [
        TensorToWrite(
            PREFIX + names.hugging_face_of(layer),
            "BF16" if precision == "bf16" else "F32",
            _stored_shape(names, specs[names.ours], model.config),
            lambda names=names, layer=layer: values(names, layer),  # type: ignore[misc]
        )
        for names in TENSOR_NAMES
        for layer in layers_of(names, model.config)
    ]
    write_safetensors(path, tensors)
