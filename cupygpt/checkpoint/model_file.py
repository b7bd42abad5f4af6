"""llm.c model files: version 3 (float32) and 5 (bfloat16), read and written byte for byte.

A header of 256 int32, then the 16 tensors of `parameter_specs` without gaps. Source: llm.c
train_gpt2.py (write_model) and train_gpt2.cu (gpt2_write_to_checkpoint).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.config import GPTConfig
from cupygpt.errors import CheckpointError, ConfigError
from cupygpt.files import HEADER_BYTES, HEADER_INTS, FileKind, check_kind, read_header, write_arrays

VERSIONS = {"fp32": 3, "bf16": 5}
_ELEMENT_BYTES = {3: 4, 5: 2}


@dataclass(frozen=True)
class ModelFile:
    """A loaded model: float32 parameters (P,) in file order, and what was repaired on loading."""

    config: GPTConfig
    precision: str
    parameters: np.ndarray
    warnings: tuple[str, ...]


def save_model(path: Path, config: GPTConfig, parameters: np.ndarray, precision: str) -> int:
    """Write `parameters` (P,) atomically as version 3 ("fp32") or 5 ("bf16").

    Version 5 takes float32, which it rounds, or bfloat16 (uint16). Returns the CRC-32 of the file.
    Raises RunError if the disk refuses.
    """
    is_bfloat16 = parameters.dtype == np.uint16
    assert precision == "bf16" or not is_bfloat16, "version 3 holds float32"
    body = to_bfloat16(parameters) if precision == "bf16" and not is_bfloat16 else parameters
    header = np.zeros(HEADER_INTS, np.int32)
    header[:2] = FileKind.MODEL.magic, VERSIONS[precision]
    header[2:8] = config.maxT, config.V, config.L, config.NH, config.C, config.Vp
    return write_arrays(path, [header, body])


def read_model(path: Path) -> ModelFile:
    """Read a model file, checking magic, version, shape, exact size and finite weights.

    The checksum of a model in a checkpoint is not compared: checkpoint.load_model does that too.

    Padding rows of wte that are not zero are set to zero, with a warning: llm.c's trainers use the
    logits of these rows as their gradients, which ruins a run. Raises CheckpointError.
    """
    header = read_header(path)
    check_kind(path, header, FileKind.MODEL)
    config, precision = _shape(path, header)
    element_bytes = _ELEMENT_BYTES[int(header[1])]
    expected = HEADER_BYTES + element_bytes * config.num_parameters
    actual = path.stat().st_size
    if actual != expected:
        raise CheckpointError(
            f"{path}: {actual:,} bytes, but its header announces {expected:,} "
            f"({config.num_parameters:,} parameters of {element_bytes} bytes). "
            f"The file is {'cut short' if actual < expected else 'too long'}; copy it again."
        )
    dtype = np.float32 if precision == "fp32" else np.uint16
    body = np.fromfile(path, dtype, offset=HEADER_BYTES)
    parameters = body if precision == "fp32" else from_bfloat16(body)
    # A sum is finite only if all its terms are: the cheapest way to find one that is not.
    if not math.isfinite(float(np.sum(parameters, dtype=np.float64))):
        raise CheckpointError(f"{path}: the weights hold NaN or infinity; use another checkpoint.")
    return ModelFile(config, precision, parameters, tuple(_zero_padding(path, config, parameters)))


def _shape(path: Path, header: np.ndarray) -> tuple[GPTConfig, str]:
    version = int(header[1])
    precision = {number: name for name, number in VERSIONS.items()}.get(version)
    if precision is None:
        raise CheckpointError(
            f"{path}: model file version {version}; versions 3 (float32) and 5 (bfloat16) are "
            f"supported. Export the model again with a current llm.c."
        )
    maxT, V, L, NH, C, Vp = (int(x) for x in header[2:8])
    try:
        config = GPTConfig(maxT=maxT, V=V, L=L, NH=NH, C=C)
    except ConfigError as error:
        raise CheckpointError(f"{path}: the header describes no usable model: {error}") from error
    if config.Vp != Vp:
        raise CheckpointError(
            f"{path}: padded vocabulary {Vp}, but {V} rounds up to {config.Vp}. "
            f"The header is damaged, or the file does not have llm.c's layout."
        )
    return config, precision


def _zero_padding(path: Path, config: GPTConfig, parameters: np.ndarray) -> Sequence[str]:
    padding = parameters[config.V * config.C : config.Vp * config.C]
    if not padding.any():
        return []
    padding[...] = 0
    return [
        f"{path}: the {config.Vp - config.V} padding rows of wte were not zero and have been "
        f"set to zero; llm.c's own trainers would not learn from this file."
    ]
