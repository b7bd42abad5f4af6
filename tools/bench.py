"""Time training steps of a named configuration; with --peer also those of PyTorch, in turn.

python tools/bench.py --peer torch                  # 7.3M parameters, B 4, T 64
python tools/bench.py --config bytes --peer torch   # byte-level model, B 8, T 128
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from cupygpt.cli import run_cli  # isort: skip - before NumPy: see cupygpt/__init__.py
import numpy as np

from cupygpt.config import GPT2_VOCAB, GPTConfig, config_from_descriptor, small_config
from cupygpt.console.figures import format_bytes
from cupygpt.data.loader import pack
from cupygpt.device.choose import choose_device
from cupygpt.device.device import Device
from cupygpt.device.precision import Precision, chosen_precision
from cupygpt.distributed.collectives import ONE_RANK_COLLECTIVES, Collectives
from cupygpt.errors import ConfigError
from cupygpt.kernels.load import record_kernels
from cupygpt.kernels.matmul import measuring
from cupygpt.model.generate import Generator, Sampling
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import RunShape, memory_plan, shape_of_run
from cupygpt.training.trainer import OptimizerSettings, Trainer

WARMUP_STEPS = 3


@dataclass(frozen=True)
class Case:
    """A model and its batch shape, on the CPU and on a GPU."""

    config: GPTConfig
    B: int
    T: int
    gpu_B: int


CASES = {
    "small": Case(small_config(GPT2_VOCAB), 4, 64, 4),
    "bytes": Case(small_config(257), 8, 128, 8),
    "experiment": Case(small_config(GPT2_VOCAB), 32, 256, 32),
    "124M": Case(config_from_descriptor("d12"), 1, 1024, 32),
}


PEERS = {"torch": None, "torch-compile": "default", "torch-graphs": "reduce-overhead"}
"""The mode of torch.compile of each peer; without one PyTorch runs op by op."""


class Contestant(Protocol):
    """Something that trains the model of a case."""

    def step(self) -> None:
        """Queue one optimizer step on fresh tokens."""

    def window_ms(self, steps: int) -> float:
        """Milliseconds per step over `steps` steps, from an idle device to an idle device."""

    def memory(self) -> str:
        """The memory that it holds, in words."""


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
    parser.add_argument("--precision", choices=["auto", "fp32", "tf32", "bf16"], default="auto")
    parser.add_argument("--no-graph", action="store_true", help="launch the kernels one by one")
    parser.add_argument(
        "--peer", choices=list(PEERS), action="append", default=[],
        help="also time the same model in PyTorch; may be repeated",
    )  # fmt: skip
    parser.add_argument("-r", "--recompute", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--sample", type=int, default=0, help="also time decoding this many tokens")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: bench(args), debug=args.debug)


def bench(args: argparse.Namespace) -> None:
    """Measure windows of the contestants in turn, and print a table."""
    case = CASES[args.config]
    device = choose_device(args.device).device
    on_gpu = device.is_gpu
    case = replace(
        case,
        B=args.batch_size or (case.gpu_B if on_gpu else case.B),
        T=args.seq_len or case.T,
    )
    if case.config.maxT < case.T:
        raise ConfigError(f"T {case.T} is over the model's {case.config.maxT} positions.")
    precision = chosen_precision(args.precision, device)
    shape = shape_of_run(
        case.config, case.B, case.T, precision, on_gpu=on_gpu, recompute=args.recompute
    )
    ours = Ours(device, shape, graph=on_gpu and not args.no_graph)
    ours.warm_up()
    contestants: dict[str, Contestant] = {"cupygpt": ours}
    for peer in args.peer:
        contestants[peer] = torch_peer(case, peer, device, precision.name)
        for _ in range(WARMUP_STEPS):
            contestants[peer].window_ms(1)
    windows: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.windows):
        for name, contestant in contestants.items():
            windows[name].append(contestant.window_ms(args.steps))
    if args.json:
        medians = {name: statistics.median(times) for name, times in windows.items()}
        print(json.dumps({"config": args.config, "B": case.B, "T": case.T, "ms": medians}))
        return
    report(ours, precision, windows)
    for name in args.peer:
        print(f"memory of {name}: {contestants[name].memory()}")
    if args.sample:
        report_decoding(device, ours.trainer, case, args.sample)


class Ours:
    """Our trainer with new weights."""

    def __init__(
        self,
        device: Device,
        shape: RunShape,
        *,
        graph: bool,
        dropout_p: float = 0.0,
        collectives: Collectives = ONE_RANK_COLLECTIVES,
    ) -> None:
        self.device, self.shape = device, shape
        self._used_before = device.used_bytes() or 0
        self.trainer = Trainer(
            device,
            shape,
            OptimizerSettings(),
            dropout_p=dropout_p,
            graph=graph,
            collectives=collectives,
        )
        if device.is_gpu:
            with measuring(None):
                record_kernels(self.trainer.dry_run)
        self.trainer.load_parameters(initial_parameters(shape.config, seed=42))
        self._batches = random_batches(shape.config, shape.B, shape.T)
        self._count = 0
        self._held = 0
        self.host_s = math.inf
        """Shortest time to queue a step on a GPU; the longer ones have waited for the GPU."""

    def step(self) -> None:
        """Queue a step; its loss is not waited for."""
        self.trainer.step(next(self._batches), self._count, 1e-4)
        self._count += 1

    def window_ms(self, steps: int) -> float:
        """Milliseconds per step: by CUDA events on a GPU, else by the clock."""
        if self.device.is_gpu:
            device = self.device
            start = device.record()
            for _ in range(steps):
                host_start = time.perf_counter()
                self.step()
                self.host_s = min(self.host_s, time.perf_counter() - host_start)
            return float(device.elapsed_ms(start, device.record())) / steps
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        return 1e3 * (time.perf_counter() - started) / steps

    def memory(self) -> str:
        """Bytes that were planned, and bytes that are held."""
        planned = sum(memory_plan(self.shape).values())
        return f"{format_bytes(planned)} planned for buffers, {format_bytes(self._held)} held"

    def warm_up(self) -> None:
        """Make the first steps and note the memory held after them, before a peer takes any."""
        for _ in range(WARMUP_STEPS):
            self.window_ms(1)
        self._held = (self.device.used_bytes() or 0) - self._used_before


def random_batches(config: GPTConfig, B: int, T: int) -> Iterator[np.ndarray]:
    """A few packed batches of random ids, again and again: no step waits for a batch to be made."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, config.V, (B, T + 1), dtype=np.int32) for _ in range(4)]
    packed = [pack([(row[:, :-1], row[:, 1:])]) for row in rows]
    return itertools.cycle(packed)


def report(ours: Ours, precision: Precision, windows: dict[str, list[float]]) -> None:
    """Print ms per step, tokens per second, the share of the peak, and memory."""
    shape, device = ours.shape, ours.device
    tokens = shape.B * shape.T
    print(f"{device.describe()}; {precision.name}")
    print(f"{shape.config.describe()}; B {shape.B}, T {shape.T}")
    peak = device.peak_flops(precision.name)
    medians = {name: statistics.median(times) for name, times in windows.items()}
    for name, ms in medians.items():
        spread = f"{min(windows[name]):.2f} to {max(windows[name]):.2f}"
        share = ""
        if peak:
            flops = tokens * shape.config.flops_per_token(shape.T)
            share = f"  MFU {100 * flops / (1e-3 * ms) / peak:.1f} %"
        rate = 1e3 * tokens / ms
        ratio = ms / medians["cupygpt"]
        print(
            f"{name:14}{ms:9.2f} ms/step ({spread}) {rate:12,.0f} tok/s{share}  "
            f"{ratio:.2f} × our time"
        )
    if ours.host_s < math.inf:
        print(f"host time {1e6 * ours.host_s:.0f} µs per step at least")
    print(f"memory: {ours.memory()}")


def report_decoding(device: Device, trainer: Trainer, case: Case, count: int) -> None:
    """Time decoding with the cache of keys and values."""
    generator = Generator(device, case.config, trainer.params, trainer.shape.precision)
    list(generator.generate([0], 8, Sampling(), (0,)))
    started = time.perf_counter()
    list(generator.generate([0], count, Sampling(), (1,)))
    print(f"decoding {count / (time.perf_counter() - started):9.0f} tok/s over {count} tokens")


def torch_peer(case: Case, name: str, device: Device, precision: str) -> Contestant:
    """The same model, batch and update in PyTorch, eager or compiled."""
    try:
        from peer_torch import Peer
    except ImportError as error:
        raise ConfigError(f"--peer {name}: PyTorch is not installed here ({error}).") from error
    batches = random_batches(case.config, case.B, case.T)
    where = "cuda" if device.is_gpu else "cpu"
    return Peer(case.config, batches, where, precision=precision, compiled=PEERS[name])


if __name__ == "__main__":
    sys.exit(main())
