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

import cupygpt.model
import cupygpt.step
from cupygpt.cli import run_cli
from cupygpt.config import GPT2_VOCAB, GPTConfig, config_from_descriptor, small_config
from cupygpt.device import check_precision, choose_device, default_precision
from cupygpt.errors import ConfigError
from cupygpt.feed import pack
from cupygpt.gemm_choice import measuring
from cupygpt.init import initial_parameters
from cupygpt.kernels import collect
from cupygpt.memory import RunShape
from cupygpt.step import OptimizerSettings, Trainer
from cupygpt.tensors import GPU_HEAD_ROWS

OPS, CALLS_OPS = "cupygpt.ops.", "cupygpt.ops.parts"
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
    if device.name != "cuda":
        raise ConfigError("profile_step times CUDA kernels; for the CPU use tools/bench.py.")
    precision = default_precision(device)[0] if args.precision == "auto" else args.precision
    check_precision(device, precision)
    config = (
        small_config(GPT2_VOCAB) if args.config == "small" else config_from_descriptor(args.config)
    )
    shape = RunShape(
        config,
        args.batch_size,
        args.seq_len,
        recompute=args.recompute,
        precision="bfloat16" if precision == "bf16" else "float32",
        master=precision == "bf16",
        head_limit=GPU_HEAD_ROWS,
    )
    graph_ms = captured_step_ms(device, shape, args.steps, precision)
    trainer = make_trainer(device, shape, precision, graph=False)
    batch = random_batch(config, shape.B, shape.T)
    trainer.step(batch, 0, 1e-4).result()
    clock = Clock(device)
    with timed_calls(clock):
        for step in range(args.steps):
            clock.keep_busy()
            trainer.step(batch, step, 1e-4)
        device.synchronize()
    print(f"{device.describe()}; {precision}\n{config.describe()}; B {shape.B}, T {shape.T}")
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
    for module in (cupygpt.model, cupygpt.step):
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


def make_trainer(device: Any, shape: RunShape, precision: str, *, graph: bool) -> Trainer:
    """A trainer with new weights."""
    trainer = Trainer(device, shape, OptimizerSettings(), tf32=precision == "tf32", graph=graph)
    with measuring(None):
        collect(trainer.rehearse)
    trainer.load_parameters(initial_parameters(shape.config, seed=42))
    return trainer


def captured_step_ms(device: Any, shape: RunShape, steps: int, precision: str) -> float:
    """Milliseconds of the whole step, as a run takes it."""
    trainer = make_trainer(device, shape, precision, graph=True)
    batch = random_batch(shape.config, shape.B, shape.T)
    for step in range(4):
        trainer.step(batch, step, 1e-4).result()
    start = device.record()
    for step in range(steps):
        trainer.step(batch, step, 1e-4)
    return float(device.elapsed_ms(start, device.record())) / steps


def random_batch(config: GPTConfig, B: int, T: int) -> np.ndarray:
    """One packed batch of random ids."""
    row = np.random.default_rng(0).integers(0, config.V, (B, T + 1), dtype=np.int32)
    return pack([(row[:, :-1], row[:, 1:])])


if __name__ == "__main__":
    sys.exit(main())
