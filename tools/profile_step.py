"""Where the time of one training step goes: a table by operation, measured inside real steps.

    python tools/profile_step.py                                 # 7.3M parameters, B 32, T 256
    python tools/profile_step.py --config d12 -b 64 -t 1024 --precision tf32

Every call of an op that the model and the trainer make is put between two CUDA events. The GPU is
kept busy while a step is being queued, so the times are those of the GPU; an event costs it about a
microsecond.
"""

import argparse
import sys
from collections import defaultdict
from typing import Any

from cupygpt.cli import run_cli  # isort: skip - before NumPy: see cupygpt/__init__.py
import numpy as np
from bench import Ours
from step_calls import Call, add_step_flags, intercepted, step_asked_for

BUSY_BYTES = 256 << 20
BUSY_FILLS = 400
"""Filling that much memory that many times takes longer than queueing a step."""


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_step_flags(parser)
    parser.add_argument("--steps", type=int, default=5, help="the mean of this many steps is shown")
    args = parser.parse_args()
    return run_cli(lambda: profile(args), debug=args.debug)


def profile(args: argparse.Namespace) -> None:
    """Run a few steps op by op, and print the table and the time of the captured step."""
    device, precision, shape = step_asked_for(args)
    captured = Ours(device, shape, graph=True)
    captured.warm_up()
    graph_ms = captured.window_ms(args.steps)
    del captured  # to make room for the buffers of the next one
    ours = Ours(device, shape, graph=False)
    ours.warm_up()
    clock = Clock(device)
    with intercepted(clock.time):
        for _ in range(args.steps):
            clock.keep_busy()
            ours.step()
        device.synchronize()
    print(f"{device.describe()}; {precision.name}")
    print(f"{shape.config.describe()}; B {shape.B}, T {shape.T}")
    report(clock.times(), args.steps, graph_ms)


def report(times: dict[str, list[float]], steps: int, graph_ms: float) -> None:
    """Print a line for each operation, from the milliseconds of each call in so many steps."""
    print(f"{'operation':52}{'calls':>6}{'µs a call':>11}{'µs a step':>11}{'share':>8}")
    total = sum(sum(values) for values in times.values()) / steps
    for name, values in sorted(times.items(), key=lambda item: -sum(item[1])):
        calls, each = len(values) // steps, 1e3 * sum(values) / len(values)
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
        """Give the GPU work until the calls that follow are queued."""
        for _ in range(BUSY_FILLS):
            self._busy.fill(0)

    def time(self, call: Call) -> None:
        """Make a call of the model or the trainer between two events."""
        if call.depth:
            call.run()
            return
        start = self._device.record()
        call.run()
        self._events.append((call.label, start, self._device.record()))

    def times(self) -> dict[str, list[float]]:
        """Milliseconds of every call, by name."""
        out: dict[str, list[float]] = defaultdict(list)
        for name, start, stop in self._events:
            out[name].append(self._device.elapsed_ms(start, stop))
        return out


if __name__ == "__main__":
    sys.exit(main())
