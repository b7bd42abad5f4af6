"""Hugging Face folders put together from the format's description, for tests of the reader."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cupygpt.arrays import to_bfloat16
from cupygpt.config import GPTConfig

TINY = GPTConfig(maxT=8, V=257, L=2, NH=2, C=16)
CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": TINY.V,
    "n_positions": TINY.maxT,
    "n_embd": TINY.C,
    "n_layer": TINY.L,
    "n_head": TINY.NH,
}
_NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "uint8": "U8"}


def tensors_of(weights: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a model of TINY's shape; its parameters (P,) lie in llm.c's order."""
    C, L, V, Vp, T = TINY.C, TINY.L, TINY.V, TINY.Vp, TINY.maxT
    rest = weights

    def take(*shape: int) -> np.ndarray:
        nonlocal rest
        size = int(np.prod(shape))
        values, rest = rest[:size].reshape(shape), rest[size:]
        return values

    tensors = {"wte.weight": take(Vp, C)[:V], "wpe.weight": take(T, C)}
    for name, *shape in (
        ("ln_1.weight", C), ("ln_1.bias", C),
        ("attn.c_attn.weight", 3 * C, C), ("attn.c_attn.bias", 3 * C),
        ("attn.c_proj.weight", C, C), ("attn.c_proj.bias", C),
        ("ln_2.weight", C), ("ln_2.bias", C),
        ("mlp.c_fc.weight", 4 * C, C), ("mlp.c_fc.bias", 4 * C),
        ("mlp.c_proj.weight", C, 4 * C), ("mlp.c_proj.bias", C),
    ):  # fmt: skip
        stack = take(L, *shape)
        tensors |= {f"h.{layer}.{name}": stack[layer].T for layer in range(L)}
    tensors |= {"ln_f.weight": take(C), "ln_f.bias": take(C)}
    assert not rest.size
    return {f"transformer.{name}": np.ascontiguousarray(x) for name, x in tensors.items()}


def safetensors_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": _NAMES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    raw = json.dumps(header).encode()
    body = b"".join(values.tobytes() for values in tensors.values())
    return len(raw).to_bytes(8, "little") + raw + body


def write_folder(
    folder: Path,
    weights: np.ndarray,
    change: Callable[[dict[str, np.ndarray]], None] = lambda _: None,
    *,
    dtype: str = "F32",
    num_files: int = 1,
    index: bool = False,
) -> Path:
    """config.json and the weights, as one file or as shards with an index."""
    cast = {"F32": np.asarray, "F16": lambda x: x.astype(np.float16), "BF16": to_bfloat16}[dtype]
    tensors = {name: cast(values) for name, values in tensors_of(weights).items()}
    change(tensors)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if not index:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    weight_map = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        names = list(tensors)[number::num_files]
        (folder / file).write_bytes(safetensors_bytes({name: tensors[name] for name in names}))
        weight_map |= dict.fromkeys(names, file)
    values = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(values))
    return folder


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
