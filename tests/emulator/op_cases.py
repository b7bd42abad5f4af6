"""The op tests as checks of the kernels: what the mutation test runs on every mutant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from emulator.cases import case
from ops import (
    test_adamw,
    test_attention,
    test_attention_decode,
    test_bias,
    test_cast,
    test_classifier,
    test_dropout,
    test_encoder,
    test_gelu,
    test_global_norm,
    test_layernorm,
    test_linear,
    test_lm_head,
    test_loss_mean,
    test_sampling,
)
from support.devices import make_device


def check(
    file: str, test: Callable[..., None], *args: Any, floatX: str = "float32", **named: Any
) -> None:
    """Register a test function with these arguments as a check of a .cu file."""

    @case(file)
    def run() -> None:
        device = make_device("emulated", floatX)
        test(device, np.random.default_rng(7), *args, **named)
        device.check_inputs()


check("adamw.cu", test_adamw.test_one_segment, decay=True)
# More than two streamed tiles, so that each of the two stages is filled a second time.
check("attention/cuda_cores.cu", test_attention.test_attention, 1, 130, 1, 8)
check("attention/decode.cu", test_attention_decode.check_decoding_in_pieces, 1, 8)
check("attention/mma_forward.cu", test_attention.test_attention_in_tf32, 1, 130, 1, 16)
check("attention/mma_backward.cu", test_attention.test_attention_in_tf32, 1, 130, 1, 16)
for file in ("attention/wgmma_forward.cu", "attention/wgmma_backward.cu"):
    check(file, test_attention.test_attention_on_hopper, 1, 321, 1, 64, floatX="bfloat16")
check("bias.cu", test_bias.test_backward, (300, 40))
check("cast.cu", test_cast.test_cast_to_bfloat16, 2056)
check("classifier.cu", test_classifier.test_classifier, (3, 257, 384), train=True)
check("classifier.cu", test_classifier.test_classifier, (3, 257, 384), train=False)
check("dropout.cu", test_dropout.test_dropout, 24, 0.2)
check("encoder.cu", test_encoder.test_backward_of_heavy_tokens, [5, 91, 32, 60], 24)
check("encoder.cu", test_encoder.test_backward_of_heavy_tokens, [300, 5], 200)
check("lm_head.cu", test_lm_head.test_fused_lm_head, (70, 128, 700), floatX="bfloat16")
check("gelu.cu", test_gelu.test_backward_with_bias, (300, 40))
check("global_norm.cu", test_global_norm.test_small_size_under_the_checker)
check("layernorm.cu", test_layernorm.test_forward, (1, 5, 1600))
check("layernorm.cu", test_layernorm.test_residual_forward, (1, 5, 1600))
check("layernorm_backward.cu", test_layernorm.test_backward, (3, 67, 128), with_sum=True)
check("layernorm_backward.cu", test_layernorm.test_backward, (1, 33, 1600), with_sum=True)
check("linear.cu", test_linear.test_few_rows, 3, 1032, 6, "norm gelu")
check("linear.cu", test_linear.test_few_rows, 4, 40, 9, "accumulate")
check("loss_mean.cu", test_loss_mean.test_loss_mean, 3000)
BOTH = (1.3, 9, 0.8)  # top-k and top-p
check("sampling.cu", test_sampling.test_ends_of_the_interval, BOTH)
check("sampling.cu", test_sampling.test_draws_follow_the_distribution, 257, 1.3, 9, 0.8)
check("sampling.cu", test_sampling.test_top_k_reaches_tokens_without_weight, 3)
check("sampling.cu", test_sampling.test_a_bin_with_too_many_tokens_draws_the_same, 257, BOTH)
