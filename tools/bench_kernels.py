"""Time each operation of a training step alone, with a cold L2 cache, next to the card's limits.

    python tools/bench_kernels.py                        # 7.3M parameters, B 32, T 256
    python tools/bench_kernels.py --config d12 -b 16 -t 1024 --precision bf16

The operations are those that a step of such a run executes, in the order of the step, with its
shapes and its data; an indented line is a call inside the operation above it. Bytes are the least
an operation must move: each input read once, each output written once. FLOPs are those of its
products. The limits are a large device-to-device copy and a large matrix product, measured in the
same run. Filling buffers with zeros is left out.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

from cupygpt.cli import run_cli  # isort: skip - before NumPy: see cupygpt/__init__.py
import numpy as np
from bench import Ours
from step_calls import Call, add_step_flags, intercepted, step_asked_for

from cupygpt.device.precision import Precision
from cupygpt.ops.global_norm import MAX_PARTIALS, global_norm
from cupygpt.ops.linear import linear_forward

FLUSH_BYTES = 256 << 20
"""Written between two timed calls: several times the largest L2 cache."""

BUSY_FLUSHES = 4
"""They keep the GPU busy for longer than the host needs to queue what is timed."""

COPY_BYTES = 1 << 30
PRODUCT_SIZE = 8192


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_step_flags(parser)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=20, help="the median is reported")
    args = parser.parse_args()
    return run_cli(lambda: bench(args), debug=args.debug)


def bench(args: argparse.Namespace) -> None:
    """Measure the limits, then every operation, and print a table."""
    device, precision, shape = step_asked_for(args)
    ours = Ours(device, shape, graph=False, dropout_p=args.dropout)
    timer = Timer(device, args.repeats)
    print(f"{device.describe()}\n{shape.config.describe()}; B {shape.B}, T {shape.T}")
    copy, product = limits(device, precision, timer)
    print(f"limits: copy {copy / 1e12:.2f} TB/s, ", end="")
    print(f"{precision.name} products {product / 1e12:.0f} TFLOP/s")
    report(calls_of_step(ours), timer, copy, product)


def calls_of_step(ours: Ours) -> list[tuple[Call, int]]:
    """Each kind of call in a step, in the order of the step, and how many calls there are of it."""
    kinds: dict[Any, list[Call]] = {}

    def note(call: Call) -> None:
        kinds.setdefault(call.kind, []).append(call)
        call.run()

    ours.step()  # the first one loads the kernels, and leaves data in all buffers
    with intercepted(note):
        ours.step()
    return [(calls[0], len(calls)) for calls in kinds.values()]


def report(calls: list[tuple[Call, int]], timer: "Timer", copy: float, product: float) -> None:
    """Time each call and print its line; `copy` in bytes and `product` in FLOPs per second."""
    print(
        f"{'operation':52}{'calls':>6}{'µs':>9}{'GB/s':>8}{'of copy':>9}"
        f"{'TFLOP/s':>9}{'of products':>13}"
    )
    for call, count in calls:
        seconds = timer.seconds(call.run, reads_only=call.reads_only)
        bandwidth, speed = call.num_bytes / seconds, call.flops / seconds
        line = f"{'  ' * call.depth + call.label:52}{count:6}{1e6 * seconds:9.1f}"
        line += f"{bandwidth / 1e9:8.0f}{100 * bandwidth / copy:8.0f}%"
        if call.flops:
            line += f"{speed / 1e12:9.1f}{100 * speed / product:12.0f}%"
        print(line)


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
        """Duration of one call, in a graph if `captured`.

        A call that finds the cache full of unwritten lines has to write them back. So a call that
        writes starts with such a cache and one that only reads with a clean cache: each pays for as
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


def limits(device: Any, precision: Precision, timer: Timer) -> tuple[float, float]:
    """The rates of a large copy and of a large product, per second: (bytes, FLOPs)."""
    return copy_rate(device, timer), product_rate(device, precision, timer)


def copy_rate(device: Any, timer: Timer) -> float:
    """Bytes per second of a copy, those read and those written."""
    source, target = (device.zeros(COPY_BYTES // 4, np.float32) for _ in range(2))

    def copy() -> None:
        target.data.copy_from_device_async(source.data, COPY_BYTES, device.stream)

    # In a graph a copy engine would do it, which is slower than the multiprocessors.
    return 2 * COPY_BYTES / timer.seconds(copy, captured=False)


def product_rate(device: Any, precision: Precision, timer: Timer) -> float:
    """FLOPs per second of a product; of random numbers, because zeros would be faster."""
    shape = (PRODUCT_SIZE, PRODUCT_SIZE)
    a, b, out = (device.zeros(PRODUCT_SIZE**2, precision.storage).reshape(shape) for _ in range(3))
    values = np.random.default_rng(0).standard_normal(1 << 16, np.float32)
    for array in (a, b):
        device.upload(array, np.resize(precision.encode(values), shape))
    seconds = timer.seconds(lambda: linear_forward(out, a, b, None, precision=precision))
    return 2 * PRODUCT_SIZE**3 / seconds


if __name__ == "__main__":
    sys.exit(main())
