"""How ops run on the CPU: on one thread per core, in blocks that fit the cache.

NumPy releases the GIL inside its loops, so that threads run at the same time.

Each op's file holds the size of its blocks (BLOCK_..., TILE_...), measured, and the least work that
it gives a thread (LEAST_...). They balance three costs:

- Each call of NumPy costs a microsecond or more, and between two calls threads wait for the GIL.
  This asks for large blocks.
- An op makes several passes over a block. If the block and its temporaries stay in the second-level
  cache, of 1 to 2 MB per core, only the first pass waits for memory. This asks for small blocks:
  2^16 to 2^18 float32 elements, fewer if there are many temporaries.
- Waking a thread takes about 20 microseconds. A thread with less work costs more than it saves.

Where an op adds up one sum per block (global_norm, layernorm), another size changes the last bits.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from queue import SimpleQueue

import numpy as np

from cupygpt.arrays import Array
from cupygpt.device.container import cpu_limit

Job = Callable[[], None]

_here = threading.local()
"""`is_busy` is true on a thread that runs one of several jobs: the other cores have work too."""


@cache
def num_cores() -> int:
    """Cores this process may use: those of its affinity, at most as many as a container's limit.

    A limit of one and a half cores gives two: they share the time of one and a half.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limit = cpu_limit()
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def idle_cores() -> int:
    """Cores that the caller may use, its own included: one inside a job, else all."""
    return 1 if getattr(_here, "is_busy", False) else num_cores()


def run_together(jobs: Sequence[Job]) -> None:
    """Run jobs at once, at most one per core, the first on this thread; return when all have ended.

    The first exception among them, in the order of the jobs, is raised then. No job may itself
    call this with several.
    """
    if len(jobs) == 1:
        jobs[0]()
        return
    failures: list[BaseException | None] = [None] * len(jobs)
    ended: SimpleQueue[None] = SimpleQueue()

    def run(number: int) -> None:
        _here.is_busy = True
        try:
            jobs[number]()
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread that waits
            failures[number] = error
        finally:
            _here.is_busy = False

    def run_elsewhere(number: int) -> None:
        run(number)
        ended.put(None)

    for number in range(1, len(jobs)):
        _inbox(number).put(lambda number=number: run_elsewhere(number))  # type: ignore[misc]
    run(0)
    for _ in jobs[1:]:
        ended.get()
    for failure in failures:
        if failure is not None:
            raise failure


@cache
def _inbox(number: int) -> "SimpleQueue[Job]":
    """The queue of jobs of thread `number`. A thread pool with futures takes twice the time."""
    inbox: SimpleQueue[Job] = SimpleQueue()

    def work() -> None:
        # Overflow to inf is meant (exp in GELU), and a NaN is reported once, by the run.
        np.seterr(all="ignore")
        while True:
            inbox.get()()

    threading.Thread(target=work, name=f"cupygpt-op-{number}", daemon=True).start()
    return inbox


def on_host(array: Array) -> bool:
    """True for plain NumPy arrays: they take the NumPy form of an op, all others its kernel."""
    return type(array) is np.ndarray


def for_blocks(work: Callable[[int, int], None], total: int, block: int) -> None:
    """Call work(start, stop) for [0, total) cut into blocks, on all idle cores.

    Each core takes one run of consecutive blocks, this thread the first: threads that trade single
    blocks spend their time waking each other. Blocks must write to disjoint memory; then the
    result does not depend on their order.
    """
    num_blocks = -(-total // block)
    num_runs = max(1, min(idle_cores(), num_blocks))

    def run(number: int) -> None:
        for i in range(number * num_blocks // num_runs, (number + 1) * num_blocks // num_runs):
            work(i * block, min((i + 1) * block, total))

    run_together([partial(run, number) for number in range(num_runs)])


def share(total: int, least: int) -> int:
    """Block size that gives every idle core one block; at least `least`."""
    return max(1, least, -(-total // idle_cores()))
