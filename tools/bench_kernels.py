"""Time each operation of a model alone, with a cold L2 cache, beside the card's measured limits.

    python tools/bench_kernels.py                        # 7.3M parameters, B 32, T 256
    python tools/bench_kernels.py --config d12 -b 16 -t 1024 --precision bf16

Bytes are the least an operation must move (each input read once, each output written once);
operations are those of its products. The limits are a large device-to-device copy and a large
matrix product, measured in the same run. With --precision bf16 parameters and activations are
bfloat16, gradients of parameters float32, as in a run.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupygpt.arrays import Array
from cupygpt.cli import run_cli
from cupygpt.config import GPTConfig, config_from_descriptor
from cupygpt.data.step_loader import token_order
from cupygpt.device.choose import choose_device
from cupygpt.device.precision import PRECISIONS, Precision
from cupygpt.errors import ConfigError
from cupygpt.model.tensors import decay_segments, parameter_specs
from cupygpt.ops.adamw import adamw
from cupygpt.ops.attention import LEAST_SUMMED_ROWS, attention_backward, attention_forward
from cupygpt.ops.bias import bias_backward
from cupygpt.ops.classifier import classifier
from cupygpt.ops.dropout import dropout
from cupygpt.ops.encoder import encoder_backward, encoder_forward
from cupygpt.ops.gelu import gelu_backward, gelu_bias_backward, gelu_forward
from cupygpt.ops.global_norm import MAX_PARTIALS, global_norm
from cupygpt.ops.layernorm import layernorm_backward, layernorm_forward, residual_layernorm_forward
from cupygpt.ops.linear import linear_backward, linear_forward

FLUSH_BYTES = 256 << 20
"""Written between two timed calls: several times the largest L2 cache."""

BUSY_FLUSHES = 4
"""They take the GPU longer than the host needs to queue what is timed."""

COPY_BYTES = 1 << 30
PRODUCT_SIZE = 8192


@dataclass(frozen=True)
class Setting:
    """What all operations share: device, shapes and precision."""

    device: Any
    config: GPTConfig
    B: int
    T: int
    precision: Precision

    def numbers(self, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Array:
        """Normal numbers as parameters and activations are stored: zeros would be faster."""
        array = self._empty(shape, self.precision.storage)
        block = _random_block(seed, scale)
        self.device.upload(array, np.resize(self.precision.encode(block), shape))
        return array

    def numbers32(self, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Array:
        """Normal float32 numbers: statistics, gradients of parameters, moments."""
        array = self._empty(shape, np.float32)
        self.device.upload(array, np.resize(_random_block(seed, scale), shape))
        return array

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.device.zeros(int(np.prod(shape)), dtype).reshape(shape)


def _random_block(seed: int, scale: float) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(1 << 16, np.float32) * np.float32(scale)


@dataclass(frozen=True)
class Operation:
    """A call to time, the bytes it must move and the operations of its products."""

    name: str
    call: Callable[[], None]
    num_bytes: int
    flops: int = 0
    reads_only: bool = False
    """Next to nothing is written: sums."""


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="small", help="small, or a descriptor such as d12")
    parser.add_argument("-b", "--batch-size", type=int, default=32)
    parser.add_argument("-t", "--seq-len", type=int, default=256)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="tf32")
    parser.add_argument("--repeats", type=int, default=20, help="the median is reported")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: bench(args), debug=args.debug)


def bench(args: argparse.Namespace) -> None:
    """Measure the limits, then every operation, and print a table."""
    device: Any = choose_device(args.device).device
    if not device.is_gpu:
        raise ConfigError("bench_kernels times CUDA kernels; for the CPU use tools/bench.py.")
    config = config_from_descriptor(args.config)
    setting = Setting(device, config, args.batch_size, args.seq_len, PRECISIONS[args.precision])
    timer = Timer(device, args.repeats)
    print(f"{device.describe()}\n{config.describe()}; B {setting.B}, T {setting.T}")
    copy, product = limits(setting, timer)
    print(f"limits: copy {copy / 1e12:.2f} TB/s, ", end="")
    print(f"{args.precision} products {product / 1e12:.0f} TFLOP/s")
    print(f"{'operation':28}{'µs':>9}{'GB/s':>8}{'of copy':>9}{'TFLOP/s':>9}{'of products':>13}")
    for operation in operations(setting):
        seconds = timer.seconds(operation.call, reads_only=operation.reads_only)
        rate, speed = operation.num_bytes / seconds, operation.flops / seconds
        flops = f"{speed / 1e12:9.1f}{100 * speed / product:12.0f}%" if operation.flops else ""
        columns = f"{1e6 * seconds:9.1f}{rate / 1e9:8.0f}{100 * rate / copy:8.0f}%{flops}"
        print(f"{operation.name:28}{columns}")


class Timer:
    """Times single calls by CUDA events, each after the L2 cache was overwritten.

    The result is how much longer that takes with the call than without it. All work is queued as
    CUDA graphs while the GPU is busy, so that the host takes no part in the time.
    """

    def __init__(self, device: Any, repeats: int) -> None:
        self._device, self._repeats = device, repeats
        self._buffer = device.zeros(FLUSH_BYTES // 4, np.float32)
        self._sum, self._partials = (device.zeros(n, np.float32) for n in (1, MAX_PARTIALS))
        self._clean()  # loads its kernel
        self._alone = {flush: self._median(flush) for flush in (self._dirty, self._clean)}

    def seconds(
        self, call: Callable[[], None], *, reads_only: bool = False, captured: bool = True
    ) -> float:
        """Duration of one call; in a graph, unless it is not to be `captured`.

        What a call leaves in the cache unwritten, its successor writes back. So a call that writes
        finds the cache full of such lines, and one that only reads finds it clean: each pays for as
        many bytes as it moves.
        """
        call()  # loads its kernels, and chooses its algorithms
        flush = self._clean if reads_only else self._dirty

        def both() -> None:
            flush()
            call()

        return self._median(both, captured=captured) - self._alone[flush]

    def _dirty(self) -> None:
        self._buffer.fill(0)

    def _clean(self) -> None:
        self._buffer.fill(0)
        global_norm(self._sum, self._buffer, self._partials)

    def _median(self, work: Callable[[], None], *, captured: bool = True) -> float:
        run = self._device.capture(work).launch if captured else work
        run()
        times = []
        for _ in range(self._repeats):
            for _ in range(BUSY_FLUSHES):
                self._dirty()
            start = self._device.record()
            run()
            times.append(self._device.elapsed_ms(start, self._device.record()))
        return 1e-3 * float(statistics.median(times))


def limits(setting: Setting, timer: Timer) -> tuple[float, float]:
    """Bytes per second of a copy (read and written), operations per second of a product."""
    device = setting.device
    source, target = (device.zeros(COPY_BYTES // 4, np.float32) for _ in range(2))

    def copy() -> None:
        target.data.copy_from_device_async(source.data, COPY_BYTES, device.stream)

    # In a graph it would be left to a copy engine, which is slower than the multiprocessors.
    copy_rate = 2 * COPY_BYTES / timer.seconds(copy, captured=False)
    a, b, out = (setting.numbers((PRODUCT_SIZE, PRODUCT_SIZE), seed) for seed in range(3))
    seconds = timer.seconds(lambda: linear_forward(out, a, b, None, precision=setting.precision))
    return copy_rate, 2 * PRODUCT_SIZE**3 / seconds


def operations(setting: Setting) -> Iterator[Operation]:
    """Every operation of a training step at these shapes, in the order of the step."""
    yield from _embedding(setting)
    yield from _norms(setting)
    yield from _products(setting)
    yield from _attention(setting)
    yield from _elementwise(setting)
    yield from _head(setting)
    yield from _update(setting)


def _embedding(s: Setting) -> Iterator[Operation]:
    config, B, T, C = s.config, s.B, s.T, s.config.C
    wte, wpe = s.numbers((config.Vp, C), 0), s.numbers((config.maxT, C), 1)
    dwte, dwpe = s.numbers32((config.Vp, C), 0), s.numbers32((config.maxT, C), 1)
    out = s.numbers((B, T, C), 2)
    tokens = s.device.zeros(B * T, np.int32).reshape(B, T)
    order = s.device.zeros(B * T, np.int32)
    sums = s.device.zeros(B * -(-T // LEAST_SUMMED_ROWS) * C, np.float32)
    ids = np.random.default_rng(0).integers(0, config.V, (B, T), dtype=np.int32)
    s.device.upload(tokens, ids)
    s.device.upload(order, token_order(ids))
    num_used = len(np.unique(ids))
    yield Operation(
        "encoder_forward",
        lambda: encoder_forward(out, tokens, wte, wpe),
        out.nbytes + (num_used + T) * C * out.itemsize,
    )
    yield Operation(
        "encoder_backward",
        lambda: encoder_backward(dwte, dwpe, out, tokens, order, sums),
        out.nbytes + 2 * (num_used + T) * C * dwte.itemsize,
    )


def _norms(s: Setting) -> Iterator[Operation]:
    B, T, C = s.B, s.T, s.config.C
    a, b, c, d = (s.numbers((B, T, C), seed) for seed in range(4))
    mean, rstd = (s.numbers32((B, T), seed) for seed in (4, 5))
    weight, bias = (s.numbers((C,), seed) for seed in range(2))
    dweight, dbias, dsum = (s.numbers32((C,), seed) for seed in range(3))
    partials = s.device.zeros(1024 * C, np.float32)
    yield Operation(
        "layernorm_forward",
        lambda: layernorm_forward(a, mean, rstd, b, weight, bias),
        2 * a.nbytes,
    )
    yield Operation(
        "residual_layernorm_forward",
        lambda: residual_layernorm_forward(a, b, mean, rstd, c, d, weight, bias),
        4 * a.nbytes,
    )
    yield Operation(
        "layernorm_backward",
        lambda: layernorm_backward(a, dweight, dbias, b, c, weight, mean, rstd, partials, dsum),
        4 * a.nbytes,
    )


def _products(s: Setting) -> Iterator[Operation]:
    N, C = s.B * s.T, s.config.C
    partials = s.device.zeros(1024 * C, np.float32)
    for name, OC, K in (
        ("qkv", 3 * C, C),
        ("attproj", C, C),
        ("fc", 4 * C, C),
        ("fcproj", C, 4 * C),
    ):
        x, y, dx = s.numbers((N, K), 0), s.numbers((N, OC), 1), s.numbers((N, K), 5)
        w, b = s.numbers((OC, K), 2), s.numbers((OC,), 4)
        dw, db = s.numbers32((OC, K), 3), s.numbers32((OC,), 4)
        flops = 2 * N * OC * K
        yield Operation(
            f"linear_forward {name}",
            lambda x=x, y=y, w=w, b=b: linear_forward(y, x, w, b, precision=s.precision),  # type: ignore[misc]
            x.nbytes + y.nbytes + w.nbytes,
            flops,
        )
        yield Operation(
            f"linear_backward {name}",
            lambda x=x, y=y, w=w, dw=dw, db=db, dx=dx: linear_backward(  # type: ignore[misc]
                dx, dw, db, y, x, w, partials, precision=s.precision
            ),
            2 * x.nbytes + 2 * y.nbytes + w.nbytes + 2 * dw.nbytes,
            2 * flops,
        )
        if name == "qkv":
            yield Operation(
                "bias_backward qkv",
                lambda db=db, y=y: bias_backward(db, y, partials),  # type: ignore[misc]
                y.nbytes,
                reads_only=True,
            )


def _attention(s: Setting) -> Iterator[Operation]:
    B, T, C, NH = s.B, s.T, s.config.C, s.config.NH
    out, dout = s.numbers((B, T, C), 0), s.numbers((B, T, C), 1)
    qkv, dqkv = (s.numbers((B, T, 3 * C), seed, 0.5) for seed in (2, 3))
    lse, dbias = s.numbers32((B, NH, T), 4), s.numbers32((3 * C,), 5)
    lse_dot = s.numbers32((B, NH, T, 2), 6)
    sums = s.numbers32((B, -(-T // LEAST_SUMMED_ROWS), 3 * C), 7)
    causal_product = B * C * T * (T + 1)  # 2 · T²/2 · HS per head
    yield Operation(
        "attention_forward",
        lambda: attention_forward(out, lse, qkv, NH, precision=s.precision),
        out.nbytes + qkv.nbytes,
        2 * causal_product,
    )
    yield Operation(
        "attention_backward",
        lambda: attention_backward(
            dqkv, dbias, dout, qkv, out, lse, NH, lse_dot, sums, precision=s.precision
        ),
        2 * out.nbytes + 2 * qkv.nbytes,
        5 * causal_product,
    )


def _elementwise(s: Setting) -> Iterator[Operation]:
    a, b = (s.numbers((s.B, s.T, 4 * s.config.C), seed) for seed in range(2))
    dbias = s.numbers32((4 * s.config.C,), 2)
    partials = s.device.zeros(1024 * s.config.C, np.float32)
    state = s.device.zeros(4, np.uint32)
    yield Operation("gelu_forward", lambda: gelu_forward(a, b), 2 * a.nbytes)
    yield Operation("gelu_backward", lambda: gelu_backward(a, b, b), 3 * a.nbytes)
    yield Operation(
        "gelu_bias_backward",
        lambda: gelu_bias_backward(a, dbias, b, b, partials),
        3 * a.nbytes,
    )
    yield Operation("dropout", lambda: dropout(a, b, state, 0, 0.1), 2 * a.nbytes)


def _head(s: Setting) -> Iterator[Operation]:
    C, Vp = s.config.C, s.config.Vp
    N = min(s.B * s.T, 8192)
    x, dx = s.numbers((N, C), 0), s.numbers((N, C), 1)
    w, dw = s.numbers((Vp, C), 2), s.numbers32((Vp, C), 3)
    logits = s.numbers((N, Vp), 4)
    losses, targets = s.device.zeros(N, np.float32), s.device.zeros(N, np.int32)
    partials = s.device.zeros(1024 * C, np.float32)
    flops = 2 * N * Vp * C
    yield Operation(
        f"head forward, {N} rows",
        lambda: linear_forward(logits, x, w, None, precision=s.precision),
        logits.nbytes + w.nbytes + x.nbytes,
        flops,
    )
    yield Operation(
        "classifier",
        lambda: classifier(losses, logits, targets, s.config.V, 1.0),
        2 * logits.nbytes,
    )
    yield Operation(
        "head backward",
        lambda: linear_backward(dx, dw, None, logits, x, w, partials, precision=s.precision),
        2 * logits.nbytes + w.nbytes + 2 * dw.nbytes,
        2 * flops,
    )


def _update(s: Setting) -> Iterator[Operation]:
    P = s.config.num_parameters
    p, g = s.numbers((P,), 0, 0.01), s.numbers32((P,), 1, 0.01)
    m, v = s.device.zeros(P, np.float32), s.device.zeros(P, np.float32)
    v.fill(1)
    master = s.numbers32((P,), 0, 0.01) if s.precision.rounds_storage else None
    norm, controls = s.numbers32((1,), 0), s.numbers32((3,), 1)
    partials = s.device.zeros(MAX_PARTIALS, np.float32)
    segments = decay_segments(parameter_specs(s.config))
    yield Operation(
        "global_norm", lambda: global_norm(norm, g, partials), g.nbytes, reads_only=True
    )
    yield Operation(
        "adamw",
        lambda: adamw(
            p, m, v, g, norm, controls, segments,
            beta1=0.9, beta2=0.95, weight_decay=0.1, grad_clip=1.0, master=master,
        ),
        7 * g.nbytes + (p.nbytes if master is not None else 0),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
