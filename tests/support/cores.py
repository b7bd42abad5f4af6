"""Which cores a worker of pytest-xdist computes on."""

from collections.abc import Sequence

FEWEST_CORES = 2
"""What runs on one core alone would leave out how ops share their work among threads."""


def cores_of_worker(cores: Sequence[int], number: int, workers: int) -> list[int]:
    """The cores of worker `number`, from 0, when `workers` share `cores`.

    If there are too few for all, workers share them, as evenly as the numbers allow. A worker that
    replaces one that has crashed has a number beyond `workers`.
    """
    count = min(len(cores), max(FEWEST_CORES, len(cores) // workers))
    return [cores[(number * count + i) % len(cores)] for i in range(count)]
