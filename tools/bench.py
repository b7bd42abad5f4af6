"""Time training steps of a named configuration, beside PyTorch in the same run where asked.

python tools/bench.py --peer torch                  # 7.3M parameters, B 4, T 64
python tools/bench.py --config bytes --peer torch   # byte-level model, B 8, T 128
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cupygpt.cli import run_cli
from cupygpt.config import GPT2_VOCAB, GPTConfig, config_from_descriptor, small_config
from cupygpt.console import format_bytes
from cupygpt.device import Device, choose_device
from cupygpt.errors import ConfigError
from cupygpt.feed import pack
from cupygpt.generate import Generator, Sampling
from cupygpt.init import initial_parameters
from cupygpt.memory import RunShape, memory_plan
from cupygpt.step import OptimizerSettings, Trainer

WARMUP_STEPS = 3


@dataclass(frozen=True)
class Case:
    """A model and its batch shape."""

    config: GPTConfig
    B: int
    T: int


CASES = {
    "small": Case(small_config(GPT2_VOCAB), 4, 64),
    "bytes": Case(small_config(257), 8, 128),
    "experiment": Case(small_config(GPT2_VOCAB), 32, 256),
    "124M": Case(config_from_descriptor("d12"), 4, 1024),
}


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", choices=sorted(CASES), default="small")
    parser.add_argument("-b", "--batch-size", type=int, help="instead of the configuration's B")
    parser.add_argument("-t", "--seq-len", type=int, help="instead of the configuration's T")
    parser.add_argument("--steps", type=int, default=20, help="timed steps in each window")
    parser.add_argument("--windows", type=int, default=3, help="the median window is reported")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peer", choices=["torch"], help="time the same model there too")
    parser.add_argument("--sample", type=int, default=0, help="also time decoding so many tokens")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: bench(args), debug=args.debug)


def bench(args: argparse.Namespace) -> None:
    """Measure, alternating with the peer window by window, and print a table."""
    case = CASES[args.config]
    case = Case(case.config, args.batch_size or case.B, args.seq_len or case.T)
    if case.config.maxT < case.T:
        raise ConfigError(f"T {case.T} is over the model's {case.config.maxT} positions.")
    device = choose_device(args.device).device
    contestants: dict[str, Callable[[], None]] = {}
    trainer = make_trainer(device, case)
    contestants["cupygpt"] = our_step(trainer, case)
    if args.peer:
        contestants[args.peer] = torch_step(case)
    for step in contestants.values():
        for _ in range(WARMUP_STEPS):
            step()
    windows: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.windows):
        for name, step in contestants.items():
            windows[name].append(time_window(step, args.steps))
    results = {name: statistics.median(times) for name, times in windows.items()}
    report(args, case, device, results, windows)
    if args.sample:
        report_decoding(device, trainer, case, args.sample)


def make_trainer(device: Device, case: Case) -> Trainer:
    """Our trainer with new weights."""
    trainer = Trainer(device, RunShape(case.config, case.B, case.T), OptimizerSettings())
    device.upload(trainer.params.flat, initial_parameters(case.config, seed=42))
    return trainer


def our_step(trainer: Trainer, case: Case) -> Callable[[], None]:
    """One optimizer step on fresh random tokens."""
    batches = random_batches(case)
    count = 0

    def step() -> None:
        nonlocal count
        trainer.step(pack([next(batches)]), count, 1e-4).result()
        count += 1

    return step


def random_batches(case: Case):  # type: ignore[no-untyped-def]
    """Endless (tokens, targets) of random ids."""
    rng = np.random.default_rng(0)
    shape = (case.B, case.T + 1)
    while True:
        rows = rng.integers(0, case.config.V, shape, dtype=np.int32)
        yield np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def time_window(step: Callable[[], None], steps: int) -> float:
    """Milliseconds per step over one window."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return 1e3 * (time.perf_counter() - started) / steps


def report(
    args: argparse.Namespace,
    case: Case,
    device: Device,
    results: dict[str, float],
    windows: dict[str, list[float]],
) -> None:
    """Print ms per step, tokens per second and memory."""
    tokens = case.B * case.T
    planned = sum(memory_plan(RunShape(case.config, case.B, case.T)).values())
    if args.json:
        print(json.dumps({"config": args.config, "B": case.B, "T": case.T, "ms": results}))
        return
    print(f"{device.describe()}; {case.config.describe()}; B {case.B}, T {case.T}")
    for name, ms in results.items():
        spread = ", ".join(f"{x:.1f}" for x in windows[name])
        print(f"{name:8} {ms:9.2f} ms/step {1e3 * tokens / ms:10,.0f} tok/s   windows: {spread}")
    if len(results) > 1:
        ours, peer = results.values()
        print(f"ratio    {ours / peer:9.2f} of the peer's time")
    used = device.used_bytes()
    print(f"memory   {format_bytes(planned)} planned, process holds {format_bytes(used or 0)}")


def report_decoding(device: Device, trainer: Trainer, case: Case, count: int) -> None:
    """Time decoding over the cache of keys and values."""
    generator = Generator(device, case.config, trainer.params)
    list(generator.generate([0], 8, Sampling(), (0,)))
    started = time.perf_counter()
    list(generator.generate([0], count, Sampling(), (1,)))
    print(f"decoding {count / (time.perf_counter() - started):9.0f} tok/s over {count} tokens")


def torch_step(case: Case) -> Callable[[], None]:
    """The same model, batch and update in PyTorch."""
    try:
        from peer_torch import make_step
    except ImportError as error:
        raise ConfigError(f"--peer torch: PyTorch is not installed here ({error}).") from error
    return make_step(case.config, random_batches(case))


if __name__ == "__main__":
    sys.exit(main())
