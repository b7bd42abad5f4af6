"""python -m cupygpt.train: flags in, checkpoints and a log out."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from cupygpt.cli import INTERRUPTED, run_cli
from cupygpt.distributed.launcher import launch
from cupygpt.distributed.launcher_env import find_rank_info
from cupygpt.distributed.rank_device import check_launch
from cupygpt.errors import ConfigError
from cupygpt.flags.command_line import CommandLine, read_command_line
from cupygpt.flags.config import TrainConfig
from cupygpt.training.start import train

EXIT_CODES = {"SIGTERM": 143, "SIGPIPE": 141, "SIGHUP": 129}
"""What shells report for processes that these signals ended; SIGINT's stands in cli.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code.

    A run that was stopped and has saved gives 130 after Ctrl-C, 143 after SIGTERM, 129 after
    SIGHUP, and 141 if the reader of its output is gone.
    """
    words = sys.argv[1:] if arguments is None else arguments
    read: list[CommandLine] = []
    code = run_cli(lambda: read.append(read_command_line(words)), debug="--debug" in words)
    if code != 0:
        return code
    line = read[0]
    count = line.given.pop("gpus", None)
    if count is not None and not _is_rank(count):
        return _launch_ranks(words, line.given, count)
    signals: list[str] = []
    code = run_cli(lambda: train(line, signals), debug=line.given.get("debug", False))
    if code == 0 and signals:
        return EXIT_CODES.get(signals[0], INTERRUPTED)
    return code


def _is_rank(count: int) -> bool:
    """Whether a launcher, ours or another, has started this process as one of `count` already."""
    return os.environ.get("WORLD_SIZE") == str(count)


def _launch_ranks(arguments: Sequence[str], given: dict[str, Any], count: int) -> int:
    """Start `count` ranks of this command on this machine, after a look at the flags."""

    def check() -> None:
        config = TrainConfig(**given, gpus=count)
        if not config.resume:  # a run that is resumed has its own --device
            check_launch(config.device, count)
        place = find_rank_info(os.environ)
        if place is not None:
            raise ConfigError(
                f"--gpus {count} starts ranks, but {place.launcher} has already started "
                f"{place.world}: leave one of them out."
            )

    code = run_cli(check, debug=given.get("debug", False))
    return code or launch(["-m", "cupygpt.train", *arguments], count)


if __name__ == "__main__":
    sys.exit(main())
