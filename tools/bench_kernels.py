"""Time each operation of a model alone, with a cold L2 cache, beside the card's measured limits.

    python tools/bench_kernels.py                        # 7.3M parameters, B 32, T 256
    python tools/bench_kernels.py --config d12 -b 16 -t 1024

Bytes are the least an operation must move (each input read once, each output written once);
operations are those of its products. The limits are a large device-to-device copy and a large
matrix product, measured in the same run.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupygpt.cli import run_cli
from cupygpt.config import GPT2_VOCAB, GPTConfig, config_from_descriptor, small_config
from cupygpt.device import choose_device
from cupygpt.errors import ConfigError
from cupygpt.ops.adamw import adamw
from cupygpt.ops.attention import attention_backward, attention_forward
from cupygpt.ops.bias import bias_backward
from cupygpt.ops.classifier import classifier
from cupygpt.ops.dropout import dropout
from cupygpt.ops.encoder import encoder_backward, encoder_forward, token_order
from cupygpt.ops.gelu import gelu_backward, gelu_forward
from cupygpt.ops.global_norm import global_norm
from cupygpt.ops.layernorm import layernorm_backward, residual_layernorm_forward
from cupygpt.ops.linear import linear_backward, linear_forward
from cupygpt.tensors import Array, decay_segments, parameter_specs

FLUSH_BYTES = 256 << 20
"""Written between two timed calls: several times the largest L2 cache."""

COPY_BYTES = 1 << 30
PRODUCT_SIZE = 8192


@dataclass(frozen=True)
class Operation:
    """A call to time, the bytes it must move and the operations of its products."""

    name: str
    call: Callable[[], None]
    num_bytes: int
    flops: int = 0


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="small", help="small, or a descriptor such as d12")
    parser.add_argument("-b", "--batch-size", type=int, default=32)
    parser.add_argument("-t", "--seq-len", type=int, default=256)
    parser.add_argument("--precision", choices=["fp32", "tf32"], default="tf32")
    parser.add_argument("--repeats", type=int, default=20, help="the median is reported")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: bench(args), debug=args.debug)


def bench(args: argparse.Namespace) -> None:
    """Measure the limits, then every operation, and print a table."""
    device: Any = choose_device(args.device).device
    if device.name != "cuda":
        raise ConfigError("bench_kernels times CUDA kernels; for the CPU use tools/bench.py.")
    config = (
        small_config(GPT2_VOCAB) if args.config == "small" else config_from_descriptor(args.config)
    )
    tf32 = args.precision == "tf32"
    timer = Timer(device, args.repeats)
    print(f"{device.describe()}\n{config.describe()}; B {args.batch_size}, T {args.seq_len}")
    copy, product = limits(device, timer, tf32=tf32)
    print(
        f"limits: copy {copy / 1e12:.2f} TB/s, {args.precision} products {product / 1e12:.0f} TFLOP/s"
    )
    print(f"{'operation':28}{'µs':>9}{'GB/s':>8}{'of copy':>9}{'TFLOP/s':>9}{'of products':>13}")
    for operation in operations(device, config, args.batch_size, args.seq_len, tf32=tf32):
        seconds = timer.seconds(operation.call)
        rate, speed = operation.num_bytes / seconds, operation.flops / seconds
        flops = f"{speed / 1e12:9.1f}{100 * speed / product:12.0f}%" if operation.flops else ""
        print(
            f"{operation.name:28}{1e6 * seconds:9.1f}{rate / 1e9:8.0f}{100 * rate / copy:8.0f}%{flops}"
        )


class Timer:
    """Times single calls by CUDA events, each after the L2 cache was overwritten."""

    def __init__(self, device: Any, repeats: int) -> None:
        self._device, self._repeats = device, repeats
        self._flush = device.zeros(FLUSH_BYTES, np.uint8)

    def seconds(self, call: Callable[[], None]) -> float:
        """Median duration of one call."""
        for _ in range(3):
            call()
        times = []
        for _ in range(self._repeats):
            self._flush.fill(0)  # the GPU is busy with this while the call is being queued
            start = self._device.record()
            call()
            times.append(self._device.elapsed_ms(start, self._device.record()))
        return 1e-3 * float(statistics.median(times))


def limits(device: Any, timer: Timer, *, tf32: bool) -> tuple[float, float]:
    """Bytes per second of a copy (read and written), operations per second of a product."""
    source, target = (device.zeros(COPY_BYTES // 4, np.float32) for _ in range(2))

    def copy() -> None:
        target.data.copy_from_device_async(source.data, COPY_BYTES, device.stream)

    copy_rate = 2 * COPY_BYTES / timer.seconds(copy)
    a, b, out = (random_array(device, (PRODUCT_SIZE, PRODUCT_SIZE), seed) for seed in range(3))
    seconds = timer.seconds(lambda: linear_forward(out, a, b, None, tf32=tf32))
    return copy_rate, 2 * PRODUCT_SIZE**3 / seconds


def operations(
    device: Any, config: GPTConfig, B: int, T: int, *, tf32: bool
) -> Iterator[Operation]:
    """Every operation of a training step at these shapes, in the order of the step."""
    yield from _embedding(device, config, B, T)
    yield from _norms(device, config, B, T)
    yield from _products(device, config, B * T, tf32=tf32)
    yield from _attention(device, config, B, T, tf32=tf32)
    yield from _elementwise(device, config, B, T)
    yield from _head(device, config, B * T)
    yield from _update(device, config)


def random_array(device: Any, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Array:
    """Normal float32 numbers on the device: zeros would be faster than real data."""
    array = device.zeros(int(np.prod(shape)), np.float32).reshape(shape)
    block = np.random.default_rng(seed).standard_normal(1 << 16, np.float32) * np.float32(scale)
    device.upload(array, np.resize(block, shape))
    return array


def _embedding(device: Any, config: GPTConfig, B: int, T: int) -> Iterator[Operation]:
    C = config.C
    wte, wpe = random_array(device, (config.Vp, C), 0), random_array(device, (config.maxT, C), 1)
    out = random_array(device, (B, T, C), 2)
    tokens = device.zeros(B * T, np.int32).reshape(B, T)
    order = device.zeros(B * T, np.int32)
    ids = np.random.default_rng(0).integers(0, config.V, (B, T), dtype=np.int32)
    device.upload(tokens, ids)
    device.upload(order, token_order(ids))
    size = out.nbytes
    yield Operation("encoder_forward", lambda: encoder_forward(out, tokens, wte, wpe), 2 * size)
    yield Operation(
        "encoder_backward", lambda: encoder_backward(wte, wpe, out, tokens, order), 3 * size
    )


def _norms(device: Any, config: GPTConfig, B: int, T: int) -> Iterator[Operation]:
    C = config.C
    a, b, c, d = (random_array(device, (B, T, C), seed) for seed in range(4))
    mean, rstd = (random_array(device, (B, T), seed) for seed in (4, 5))
    weight, bias, dweight, dbias = (random_array(device, (C,), seed) for seed in range(4))
    partials = device.zeros(1024 * C, np.float32)
    yield Operation(
        "residual_layernorm_forward",
        lambda: residual_layernorm_forward(a, b, mean, rstd, c, d, weight, bias),
        4 * a.nbytes,
    )
    yield Operation(
        "layernorm_backward",
        lambda: layernorm_backward(a, dweight, dbias, b, c, weight, mean, rstd, partials),
        4 * a.nbytes,
    )


def _products(device: Any, config: GPTConfig, N: int, *, tf32: bool) -> Iterator[Operation]:
    C = config.C
    partials = device.zeros(1024 * C, np.float32)
    for name, OC, K in (
        ("qkv", 3 * C, C),
        ("attproj", C, C),
        ("fc", 4 * C, C),
        ("fcproj", C, 4 * C),
    ):
        x, y = random_array(device, (N, K), 0), random_array(device, (N, OC), 1)
        w, dw = random_array(device, (OC, K), 2), random_array(device, (OC, K), 3)
        b, dx = random_array(device, (OC,), 4), random_array(device, (N, K), 5)
        flops = 2 * N * OC * K
        yield Operation(
            f"linear_forward {name}",
            lambda x=x, y=y, w=w, b=b: linear_forward(y, x, w, b, tf32=tf32),  # type: ignore[misc]
            x.nbytes + y.nbytes + w.nbytes,
            flops,
        )
        yield Operation(
            f"linear_backward {name}",
            lambda x=x, y=y, w=w, dw=dw, b=b, dx=dx: linear_backward(  # type: ignore[misc]
                dx, dw, b, y, x, w, partials, tf32=tf32
            ),
            2 * x.nbytes + 2 * y.nbytes + 3 * w.nbytes,
            2 * flops,
        )
        if name == "fc":
            yield Operation(
                "bias_backward fc",
                lambda b=b, y=y: bias_backward(b, y, partials),  # type: ignore[misc]
                y.nbytes,
            )


def _attention(
    device: Any, config: GPTConfig, B: int, T: int, *, tf32: bool
) -> Iterator[Operation]:
    C, NH = config.C, config.NH
    out, dout = random_array(device, (B, T, C), 0), random_array(device, (B, T, C), 1)
    qkv, dqkv = (random_array(device, (B, T, 3 * C), seed, 0.5) for seed in (2, 3))
    lse = random_array(device, (B, NH, T), 4)
    causal_product = B * C * T * (T + 1)  # 2 · T²/2 · HS per head
    yield Operation(
        "attention_forward",
        lambda: attention_forward(out, lse, qkv, NH, tf32=tf32),
        out.nbytes + qkv.nbytes,
        2 * causal_product,
    )
    yield Operation(
        "attention_backward",
        lambda: attention_backward(dqkv, dout, qkv, out, lse, NH, tf32=tf32),
        2 * out.nbytes + 2 * qkv.nbytes,
        5 * causal_product,
    )


def _elementwise(device: Any, config: GPTConfig, B: int, T: int) -> Iterator[Operation]:
    a, b = (random_array(device, (B, T, 4 * config.C), seed) for seed in range(2))
    state = device.zeros(4, np.uint32)
    yield Operation("gelu_forward", lambda: gelu_forward(a, b), 2 * a.nbytes)
    yield Operation("gelu_backward", lambda: gelu_backward(a, b, b), 3 * a.nbytes)
    yield Operation("dropout", lambda: dropout(a, b, state, 0, 0.1), 2 * a.nbytes)


def _head(device: Any, config: GPTConfig, N: int) -> Iterator[Operation]:
    C, Vp = config.C, config.Vp
    N = min(N, 8192)
    x, dx = random_array(device, (N, C), 0), random_array(device, (N, C), 1)
    w, dw = random_array(device, (Vp, C), 2), random_array(device, (Vp, C), 3)
    logits = random_array(device, (N, Vp), 4)
    losses, targets = device.zeros(N, np.float32), device.zeros(N, np.int32)
    partials = device.zeros(1024 * C, np.float32)
    flops = 2 * N * Vp * C
    yield Operation(
        f"head forward, {N} rows",
        lambda: linear_forward(logits, x, w, None, tf32=True),
        logits.nbytes + w.nbytes + x.nbytes,
        flops,
    )
    yield Operation(
        "classifier",
        lambda: classifier(losses, logits, targets, config.V, 1.0),
        2 * logits.nbytes,
    )
    yield Operation(
        "head backward",
        lambda: linear_backward(dx, dw, None, logits, x, w, partials, tf32=True),
        2 * logits.nbytes + 3 * w.nbytes,
        2 * flops,
    )


def _update(device: Any, config: GPTConfig) -> Iterator[Operation]:
    P = config.num_parameters
    p, g, m, v = (random_array(device, (P,), seed, 0.01) for seed in range(4))
    v.fill(1)
    norm, controls = random_array(device, (1,), 0), random_array(device, (3,), 1)
    partials = device.zeros(1024, np.float32)
    segments = decay_segments(parameter_specs(config))
    yield Operation("global_norm", lambda: global_norm(norm, g, partials), g.nbytes)
    yield Operation(
        "adamw",
        lambda: adamw(
            p, m, v, g, norm, controls, segments,
            beta1=0.9, beta2=0.95, weight_decay=0.1, grad_clip=1.0,
        ),
        7 * p.nbytes,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
