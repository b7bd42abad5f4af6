"""Hold the defaults for new models against a grid of other settings, on a text of your own.

    python tools/try_defaults.py mytext.txt --minutes-of-work 2 --jobs 12

Each run does the work that two CPU cores do in so many minutes: a larger model takes fewer steps.
The runs stand side by side on one GPU, or on the CPU, `--jobs` at a time, and read the text by
bytes. The table shows the lowest and the last validation loss of each, in nats per byte. Twelve
settings: three sizes, two learning rates, with and without dropout; then the defaults.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from cupygpt.config import BYTES_VOCAB, GPTConfig
from cupygpt.planning.defaults import CPU_SIZES

B, T = 16, 64
FLOPS_PER_S = 9e10
"""Of two cores of an AMD EPYC 9654, in training steps."""

CHANNELS, RATES, DROPOUTS = (64, 96, 128), (0.004, 0.008), (0.0, 0.1)


@dataclass(frozen=True)
class Setting:
    """One row of the table: its name, and the flags that make it."""

    name: str
    flags: list[str]


def settings(minutes: float) -> list[Setting]:
    """The grid and the defaults, all with the same work."""
    grid = [
        Setting(
            f"L4:H4:C{C} rate {rate} dropout {dropout}",
            [*_shape(C, minutes), "-l", str(rate), "--dropout", str(dropout)],
        )
        for C, rate, dropout in product(CHANNELS, RATES, DROPOUTS)
    ]
    default = next(size for most, size in CPU_SIZES if minutes <= most)
    return [*grid, Setting("defaults", _shape(default.C, minutes))]


def _shape(C: int, minutes: float) -> list[str]:
    model = GPTConfig(maxT=T, V=BYTES_VOCAB, L=4, NH=4, C=C)
    steps = int(60 * minutes * FLOPS_PER_S / (B * T * model.flops_per_token(T)))
    return ["-e", f"L4:H4:C{C}", "-n", str(max(1, steps))]


def losses(folder: Path) -> list[float]:
    """The validation losses of a run, from its log."""
    lines = (folder / "main.log").read_text(encoding="utf-8").splitlines()
    return [float(line.partition("tel:")[2]) for line in lines if "tel:" in line]


def main() -> None:
    """Prepare the text, run all settings, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path, help="text file")
    parser.add_argument("--minutes-of-work", type=float, default=2.0, help="work of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--device", default="auto", help="as for cupygpt.train")
    args = parser.parse_args()
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        prepare = ["cupygpt.prepare", str(args.text), "--tokenizer", "bytes", "--name", "text"]
        _command([*prepare, "-o", temporary, "--val-fraction", "0.1"])
        data = ["-i", str(place / "text_train.bin"), "-j", str(place / "text_val.bin")]

        def run(setting: Setting) -> str:
            folder, started = place / setting.name.replace(" ", "_"), time.perf_counter()
            common = ["-b", str(B), "-t", str(T), "-s", "0", "--device", args.device]
            _command(["cupygpt.train", *data, *common, *setting.flags, "-o", str(folder)])
            found, seconds = losses(folder), time.perf_counter() - started
            return f"{setting.name}\t{min(found):.4f}\t{found[-1]:.4f}\t{seconds:.0f} s"

        print("setting\tbest\tlast\ttime")
        with ThreadPoolExecutor(args.jobs) as pool:
            for line in pool.map(run, settings(args.minutes_of_work)):
                print(line, flush=True)


def _command(words: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{' '.join(words)}:\n{result.stderr}")


if __name__ == "__main__":
    main()
