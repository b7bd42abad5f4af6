"""The 16 tensors of a GPT-2 by their three names: llm.c's, Hugging Face's and GGUF's."""

from dataclasses import dataclass

import numpy as np

from cupygpt.config import GPTConfig


@dataclass(frozen=True)
class TensorNames:
    """One parameter; with `of_layers` there is one tensor for each layer in the other formats.

    Hugging Face stores a matrix that is `transposed` as (in, out); llm.c and GGUF as (out, in).
    """

    ours: str
    hugging_face: str
    gguf: str
    of_layers: bool = True
    transposed: bool = False

    def hugging_face_of(self, layer: int) -> str:
        """The name in a Hugging Face file, without the prefix `transformer.`."""
        return f"h.{layer}.{self.hugging_face}" if self.of_layers else self.hugging_face

    def gguf_of(self, layer: int) -> str:
        """The name in a GGUF file."""
        return f"blk.{layer}.{self.gguf}" if self.of_layers else self.gguf


TENSOR_NAMES = (
    TensorNames("wte", "wte.weight", "token_embd.weight", of_layers=False),
    TensorNames("wpe", "wpe.weight", "position_embd.weight", of_layers=False),
    TensorNames("ln1w", "ln_1.weight", "attn_norm.weight"),
    TensorNames("ln1b", "ln_1.bias", "attn_norm.bias"),
    TensorNames("qkvw", "attn.c_attn.weight", "attn_qkv.weight", transposed=True),
    TensorNames("qkvb", "attn.c_attn.bias", "attn_qkv.bias"),
    TensorNames("attprojw", "attn.c_proj.weight", "attn_output.weight", transposed=True),
    TensorNames("attprojb", "attn.c_proj.bias", "attn_output.bias"),
    TensorNames("ln2w", "ln_2.weight", "ffn_norm.weight"),
    TensorNames("ln2b", "ln_2.bias", "ffn_norm.bias"),
    TensorNames("fcw", "mlp.c_fc.weight", "ffn_up.weight", transposed=True),
    TensorNames("fcb", "mlp.c_fc.bias", "ffn_up.bias"),
    TensorNames("fcprojw", "mlp.c_proj.weight", "ffn_down.weight", transposed=True),
    TensorNames("fcprojb", "mlp.c_proj.bias", "ffn_down.bias"),
    TensorNames("lnfw", "ln_f.weight", "output_norm.weight", of_layers=False),
    TensorNames("lnfb", "ln_f.bias", "output_norm.bias", of_layers=False),
)


def layers_of(names: TensorNames, config: GPTConfig) -> range:
    """The layers for which the other formats have a tensor of these names; 0 stands for none."""
    return range(config.L if names.of_layers else 1)


def part_of(array: np.ndarray, names: TensorNames, layer: int, config: GPTConfig) -> np.ndarray:
    """The view of one of our parameters that is one tensor there; padding rows are left out."""
    if names.ours == "wte":
        return array[: config.V]
    return array[layer] if names.of_layers else array


def num_tensors(L: int) -> int:
    """The tensors of a model with L layers in a Hugging Face or GGUF file."""
    return sum(L if names.of_layers else 1 for names in TENSOR_NAMES)
