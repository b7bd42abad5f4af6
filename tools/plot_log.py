"""Draw the loss curves of one or several runs into a PNG.

python tools/plot_log.py runs/20260101-120000 other_run -o losses.png
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from cupygpt.cli import run_cli
from cupygpt.console.figures import SmoothedMean
from cupygpt.errors import ConfigError, DataError


@dataclass
class Curves:
    """Steps and losses of one main.log, training (smoothed) and validation."""

    name: str
    train: list[tuple[int, float]]
    val: list[tuple[int, float]]


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or main.log files")
    parser.add_argument("-o", "--out", type=Path, default=Path("losses.png"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: plot([read_log(path) for path in args.runs], args.out), debug=args.debug)


def read_log(path: Path) -> Curves:
    """Parse a main.log of cupygpt or of llm.c. Raises DataError if it holds no losses."""
    log = path / "main.log" if path.is_dir() else path
    try:
        text = log.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{log}: cannot be read ({error}).") from error
    train = [(int(s), float(x)) for s, x in re.findall(r"^s:(\d+) trl:(\S+)", text, re.MULTILINE)]
    val = [(int(s), float(x)) for s, x in re.findall(r"^s:(\d+) tel:(\S+)", text, re.MULTILINE)]
    if not train and not val:
        raise DataError(f"{log}: no line like 's:10 trl:3.1416'; is it the log of a run?")
    return Curves(path.name if path.is_dir() else str(path), smoothed(train), val)


def smoothed(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The losses as an exponential mean."""
    mean = SmoothedMean()
    return [(step, mean.add(loss)) for step, loss in points]


def plot(runs: list[Curves], out: Path) -> None:
    """Write the PNG: a colour for each run, training as a line, validation as dots."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("matplotlib is missing: pip install 'cupygpt[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for number, run in enumerate(runs):
        color = f"C{number % 10}"
        if run.train:
            axes.plot(*zip(*run.train, strict=True), color=color, label=f"{run.name} training")
        if run.val:
            label = f"{run.name} validation"
            axes.plot(*zip(*run.val, strict=True), "o--", color=color, markersize=4, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    print(out)


if __name__ == "__main__":
    sys.exit(main())
