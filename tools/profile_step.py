"""Where the time of one training step goes: a table by operation, measured inside real steps.

    python tools/profile_step.py                                 # 7.3M parameters, B 32, T 256
    python tools/profile_step.py --config d12 -b 64 -t 1024 --precision tf32

Every call that model.py and step.py make is put between two CUDA events. The GPU is kept busy while
a step is being queued, so the times are those of the GPU; an event costs it about a microsecond.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from bench import Ours

from cupygpt.cli import run_cli
from cupygpt.config import config_from_descriptor
from cupygpt.device.choose import choose_device
from cupygpt.device.precision import chosen_precision
from cupygpt.errors import ConfigError
from cupygpt.model import gpt
from cupygpt.model.memory_plan import shape_of_run
from cupygpt.training import trainer

OPS, CALLS_OPS = "cupygpt.ops.", "cupygpt.device.batch_split"
BUSY_BYTES = 256 << 20
BUSY_FILLS = 400
"""Filling so much memory so often takes longer than queueing a step."""


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="small", help="small, or a descriptor such as d12")
    parser.add_argument("-b", "--batch-size", type=int, default=32)
    parser.add_argument("-t", "--seq-len", type=int, default=256)
    parser.add_argument("-r", "--recompute", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--precision", choices=["auto", "fp32", "tf32", "bf16"], default="auto")
    parser.add_argument("--steps", type=int, default=5, help="the mean of so many is shown")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: profile(args), debug=args.debug)


def profile(args: argparse.Namespace) -> None:
    """Run a few steps op by op, and print the table beside the time of the captured step."""
    device: Any = choose_device(args.device).device
    if not device.is_gpu:
        raise ConfigError("profile_step times CUDA kernels; for the CPU use tools/bench.py.")
    precision = chosen_precision(args.precision, device)
    config = config_from_descriptor(args.config)
    shape = shape_of_run(
        config, args.batch_size, args.seq_len, precision, on_gpu=True, recompute=args.recompute
    )
    captured = Ours(device, shape, graph=True)
    captured.warm_up()
    graph_ms = captured.window_ms(args.steps)
    del captured  # its buffers make room for the next one's
    ours = Ours(device, shape, graph=False)
    ours.warm_up()
    clock = Clock(device)
    with timed_calls(clock):
        for _ in range(args.steps):
            clock.keep_busy()
            ours.step()
        device.synchronize()
    print(f"{device.describe()}; {precision.name}\n{config.describe()}; B {shape.B}, T {shape.T}")
    print(f"{'operation':52}{'calls':>6}{'µs a call':>11}{'µs a step':>11}{'share':>8}")
    times = clock.times()
    total = sum(sum(values) for values in times.values()) / args.steps
    for name, values in sorted(times.items(), key=lambda item: -sum(item[1])):
        calls, each = len(values) // args.steps, 1e3 * sum(values) / len(values)
        share = 100 * each * calls / (1e3 * total)
        print(f"{name:52}{calls:6}{each:11.1f}{each * calls:11.1f}{share:7.1f}%")
    print(f"{'sum':52}{'':17}{1e3 * total:11.1f}")
    print(f"{'the step as one CUDA graph':52}{'':17}{1e3 * graph_ms:11.1f}")


class Clock:
    """Events around calls on the device's stream."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._busy = device.zeros(BUSY_BYTES, np.uint8)
        self._events: list[tuple[str, Any, Any]] = []

    def keep_busy(self) -> None:
        """Give the GPU something to do until the calls that follow are queued."""
        for _ in range(BUSY_FILLS):
            self._busy.fill(0)

    def timed(self, name: str, call: Callable[[], None]) -> None:
        """Make a call between two events."""
        start = self._device.record()
        call()
        self._events.append((name, start, self._device.record()))

    def times(self) -> dict[str, list[float]]:
        """Milliseconds of every call, by name."""
        out: dict[str, list[float]] = defaultdict(list)
        for name, start, stop in self._events:
            out[name].append(self._device.elapsed_ms(start, stop))
        return out


@contextmanager
def timed_calls(clock: Clock) -> Iterator[None]:
    """Every op that model.py and step.py import goes through the clock."""
    replaced: list[tuple[Any, str, Any]] = []
    for module in (gpt, trainer):
        for name, function in vars(module).items():
            home = getattr(function, "__module__", "")
            if callable(function) and home.startswith(OPS) and home != CALLS_OPS:
                replaced.append((module, name, function))
    try:
        for module, name, function in replaced:
            setattr(module, name, _through(clock, name, function))
        yield
    finally:
        for module, name, function in replaced:
            setattr(module, name, function)


def _through(clock: Clock, name: str, function: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any, **named: Any) -> None:
        label = name
        if "linear" in name:
            weight = next(x for x in args[1:] if getattr(x, "ndim", 0) == 2)
            label = f"{name}, {args[0].size // args[0].shape[-1]} rows, {weight.shape}"
        clock.timed(label, lambda: function(*args, **named))

    return call


if __name__ == "__main__":
    sys.exit(main())
