"""Write a model file with new weights: llm.c's format and initialisation, padding rows zero.

python tools/create_small_model.py                     # small_model.bin, 7.3M parameters
python tools/create_small_model.py --layers 6 --heads 6 --channels 384 -o six.bin
"""

import argparse
import sys
from pathlib import Path

from cupygpt.checkpoint.model_file import VERSIONS, save_model
from cupygpt.cli import run_cli
from cupygpt.config import GPT2_VOCAB, GPTConfig
from cupygpt.errors import ConfigError
from cupygpt.model.init_weights import initial_parameters


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("small_model.bin"))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256, help="longest sequence, maxT")
    parser.add_argument("--vocab", type=int, default=GPT2_VOCAB, help="50257 GPT-2, 257 bytes")
    parser.add_argument("--seed", type=int, default=42, help="42 gives llm.c's numbers")
    parser.add_argument("--precision", choices=sorted(VERSIONS), default="fp32")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: create(args), debug=args.debug)


def create(args: argparse.Namespace) -> None:
    """Write the file that the flags describe, and say what it is."""
    config = GPTConfig(
        maxT=args.seq_len, V=args.vocab, L=args.layers, NH=args.heads, C=args.channels
    )
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed is {args.seed}, but must be in [0, 2**32).")
    save_model(args.out, config, initial_parameters(config, args.seed), args.precision)
    print(f"{args.out}: {config.describe()}, {args.precision}, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
