"""The largest batch that fits cards of 24, 80 and 141 GB, by the plan of a run, without a GPU.

    python tools/plan_memory.py d24 d36 -t 1024
    python tools/plan_memory.py d12 --precision tf32 --gib 12 16

The figures are those that a run prints and checks before it allocates anything.
"""

import argparse
import sys
from dataclasses import replace

from cupygpt.cli import run_cli
from cupygpt.config import config_from_descriptor
from cupygpt.device.precision import PRECISIONS
from cupygpt.model.memory_plan import (
    MEMORY_MARGIN,
    RunShape,
    largest_batch,
    memory_plan,
    shape_of_run,
)

RUNTIME_BYTES = 600 << 20
"""Memory that CUDA itself and the loaded kernels take: about this much on an H200."""


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="descriptors such as d12 or gpt3:c768")
    parser.add_argument("-t", "--seq-len", type=int, default=1024)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="bf16")
    parser.add_argument("--gib", type=float, nargs="+", default=[24, 80, 141])
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: plan(args), debug=args.debug)


def plan(args: argparse.Namespace) -> None:
    """Print a line for each model and each -r."""
    print(f"largest -b at -t {args.seq_len} in {args.precision} (GiB that it plans)")
    print(f"{'':24}" + "".join(f"{f'{gib:g} GiB card':>20}" for gib in args.gib))
    for name in args.models:
        for recompute in (0, 1, 2):
            config = config_from_descriptor(name)
            shape = shape_of_run(
                config,
                1,
                args.seq_len,
                PRECISIONS[args.precision],
                on_gpu=True,
                recompute=recompute,
            )
            cells = [f"{_cell(shape, gib):>20}" for gib in args.gib]
            print(f"{name:16}-r {recompute:<5}" + "".join(cells))


def _cell(shape: RunShape, gib: float) -> str:
    def needed(B: int) -> int:
        return sum(memory_plan(replace(shape, B=B)).values())

    best = largest_batch(needed, int(MEMORY_MARGIN * (gib * 2**30 - RUNTIME_BYTES)))
    return f"{best} ({needed(best) / 2**30:.1f})" if best else "none"


if __name__ == "__main__":
    sys.exit(main())
