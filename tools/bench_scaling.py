"""Time training steps on 1, 2, ... GPUs of this machine, next to PyTorch's DistributedDataParallel.

python tools/bench_scaling.py --gpus 1 2 4                          # GPT-2 124M, B 32 on each
python tools/bench_scaling.py --gpus 1 2 --zero --peer torch-compile

The batch per GPU stays the same, so with perfect scaling a step takes the same time on any number
of GPUs. The last column shows how much of that is reached. The rows are measured one after the
other, each in its own processes. A window must last some seconds: after a pause, a GPU runs for a
short time above the clock that its power limit allows, so a short window would favor the row whose
GPU is cooler.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupygpt.cli import run_cli  # isort: skip - before NumPy: see cupygpt/__init__.py
from bench import CASES, PEERS, WARMUP_STEPS, Contestant, Ours, random_batches

from cupygpt.device.precision import chosen_precision
from cupygpt.distributed.collectives import make_collectives
from cupygpt.distributed.launcher import launch
from cupygpt.distributed.rank_device import choose_rank_device
from cupygpt.distributed.ranks import join_ranks, rank0_first
from cupygpt.errors import ConfigError, RunError
from cupygpt.model.memory_plan import shape_of_run

JOIN_S = 120.0
"""How long the ranks of a row wait for each other at startup."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    contestant: str
    gpus: int
    B: int
    T: int
    windows_ms: list[float]
    """Milliseconds per step in each window, of the slowest rank."""

    @property
    def ms(self) -> float:
        """Milliseconds per step in the median window."""
        return statistics.median(self.windows_ms)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all GPUs together."""
        return 1e3 * self.B * self.T * self.gpus / self.ms


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], help="numbers of GPUs")
    parser.add_argument("--config", choices=sorted(CASES), default="124M", help="the model")
    parser.add_argument("-b", "--batch-size", type=int, help="instead of the configuration's B")
    parser.add_argument("-t", "--seq-len", type=int, help="instead of the configuration's T")
    parser.add_argument("--precision", choices=["auto", "fp32", "tf32", "bf16"], default="auto")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the tool"
    )
    parser.add_argument("--no-graph", action="store_true", help="launch each kernel separately")
    parser.add_argument("--zero", action="store_true", help="also measure with ZeRO-1")
    parser.add_argument(
        "--peer",
        choices=list(PEERS),
        action="append",
        default=[],
        help="also measure PyTorch; may be repeated",
    )
    parser.add_argument("--steps", type=int, default=50, help="timed steps in each window")
    parser.add_argument("--windows", type=int, default=3, help="the median window is reported")
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)  # this process is a rank of it
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = compare if args.contestant is None else measure
    return run_cli(lambda: work(args), debug=args.debug)


def compare(args: argparse.Namespace) -> None:
    """Start the ranks of each row, and print each row when it is measured."""
    single: dict[str, Row] = {}
    contestants = ["cupygpt", *(["cupygpt-zero1"] if args.zero else []), *args.peer]
    if not args.json:
        print(f"{'':18}{'GPUs':>5}{'ms/step':>10}{'range':>18}{'tok/s':>14}{'of linear':>11}")
    for contestant in contestants:
        for gpus in args.gpus:
            if contestant == "cupygpt-zero1" and gpus == 1:
                continue
            row = run_row(contestant, gpus)
            base = single.setdefault(contestant.removesuffix("-zero1"), row)
            share = row.tokens_per_s / row.gpus / (base.tokens_per_s / base.gpus)
            if args.json:
                print(json.dumps({**vars(row), "tok_s": row.tokens_per_s, "linear": share}))
                continue
            spread = f"{min(row.windows_ms):.2f} to {max(row.windows_ms):.2f}"
            print(
                f"{contestant:18}{gpus:5}{row.ms:10.2f}{spread:>18}{row.tokens_per_s:14,.0f}"
                f"{100 * share:10.1f} %",
                flush=True,
            )


def run_row(contestant: str, gpus: int) -> Row:
    """One row: a contestant on `gpus` GPUs, in as many processes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "row.json"
        more = ["--contestant", contestant, "--report", str(report)]
        if launch([*sys.argv, *more], gpus):
            raise RunError(f"{contestant} on {gpus} GPUs failed; see above.")
        return Row(**json.loads(report.read_text()))


def measure(args: argparse.Namespace) -> None:
    """The work of one rank: time the windows with the other ranks; rank 0 writes the row."""
    case = CASES[args.config]
    with join_ranks(JOIN_S, debug=args.debug) as ranks:
        on_gpu = args.device == "cuda"
        B = args.batch_size or (case.gpu_B if on_gpu else case.B)
        T = args.seq_len or case.T
        contestant = make_contestant(args, ranks, B, T)
        for _ in range(WARMUP_STEPS):
            contestant.window_ms(1)
        windows = []
        for _ in range(args.windows):
            ranks.all_gather_object("ready")
            windows.append(max(ranks.all_gather_object(contestant.window_ms(args.steps))))
        if ranks.rank == 0:
            row = Row(args.contestant, ranks.world, B, T, windows)
            args.report.write_text(json.dumps(vars(row)))


def make_contestant(args: argparse.Namespace, ranks: Any, B: int, T: int) -> Contestant:
    """What this rank times, on its device."""
    config = CASES[args.config].config
    device = choose_rank_device(args.device, ranks).device
    precision = chosen_precision(args.precision, device)
    on_gpu = device.is_gpu
    if args.contestant in PEERS:
        return make_peer(args, ranks, B, T, precision.name)
    shards = ranks.world if args.contestant == "cupygpt-zero1" else 1
    shape = shape_of_run(config, B, T, precision, on_gpu=on_gpu, zero_shards=shards)
    collectives = make_collectives(device, ranks)
    # Rank 0 chooses the algorithms of the matmuls; the others find its choices in the cache.
    return rank0_first(
        ranks,
        lambda: Ours(
            device,
            shape,
            graph=on_gpu and not args.no_graph,
            collectives=collectives,
        ),
    )


def make_peer(args: argparse.Namespace, ranks: Any, B: int, T: int, precision: str) -> Contestant:
    """PyTorch on the same ranks; PyTorch connects them itself, on the next port."""
    try:
        import torch
        from peer_torch import Peer
    except ImportError as error:
        raise ConfigError(
            f"--peer {args.contestant}: PyTorch is not installed here ({error})."
        ) from error
    if args.device == "cuda":
        torch.cuda.set_device(ranks.local_rank)
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    config = CASES[args.config].config
    return Peer(
        config,
        random_batches(config, B, T),
        args.device,
        precision=precision,
        compiled=PEERS[args.contestant],
        ranks=ranks.world,
    )


if __name__ == "__main__":
    sys.exit(main())
