"""Choose the algorithm of each matrix product: the fastest of those that cuBLASLt proposes.

cuBLASLt's own ranking is up to 15 % slower than the best for some shapes. The choice affects the
last bits of a result, so it is made once and saved: in the user's cache, for the next run on this
machine, and in the run folder, so that a resumed run repeats bit for bit.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupygpt.atomic_file import atomic_write
from cupygpt.cache_dir import cache_dir
from cupygpt.errors import KernelError, RunError

FILE_NAME = "products.json"
ROUNDS = 5
"""Timed launches of each algorithm; their median counts."""
LAUNCH_FLOPS = 2e10
"""FLOPs of one timed launch: smaller products are repeated in it, at most MAX_REPEATS times."""
MAX_REPEATS = 8

_choices: dict[str, int] = {}
_is_measuring = False


@contextmanager
def measuring(run_folder: Path | None, *, keep: bool = True) -> Iterator[None]:
    """Inside, the algorithms of each new kind of product are measured, and the choice is saved.

    A measured product is computed many times into its output, so use this while buffers hold
    nothing yet. Without `run_folder` only the user's cache is read and written. Only one rank of a
    run may `keep` its choices: otherwise all ranks would write the same files at once.
    """
    global _is_measuring
    _choices.update(_read(cache_file()))
    if run_folder is not None:
        _choices.update(_read(run_folder / FILE_NAME))  # the run's own choices win
    known = len(_choices)
    _is_measuring = True
    try:
        yield
    finally:
        _is_measuring = False
    if not keep:
        return
    if run_folder is not None and _read(run_folder / FILE_NAME) != _choices:
        _write(run_folder / FILE_NAME, _choices)
    path = cache_file()
    if len(_choices) > known and path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, {**_choices, **_read(path)})  # another run may have written
        except (OSError, RunError):
            return  # the next run measures again; this run has its choices in its own folder


def choose(identity: str, candidates: Sequence[Callable[[], None]], flops: int, stream: Any) -> int:
    """Index of the algorithm for the product `identity` among the `candidates`.

    A candidate is a function that queues the product on `stream`. The choice is 0, the first in
    cuBLASLt's ranking, unless the product has been measured or is measured now.
    """
    if identity not in _choices and _is_measuring and len(candidates) > 1:
        repeats = max(1, min(MAX_REPEATS, int(LAUNCH_FLOPS / flops)))
        _choices[identity] = _fastest(candidates, repeats, stream)
    return _choices.get(identity, 0)


def cache_file() -> Path | None:
    """The user's cache: a file in the cache folder; None if there is none."""
    folder = cache_dir()
    return None if folder is None else folder / FILE_NAME


def _fastest(candidates: Sequence[Callable[[], None]], repeats: int, stream: Any) -> int:
    """The index of the fastest candidate, timed as a graph: the GPU never waits for the host."""
    import cupy

    graphs: dict[int, Any] = {}
    for index, candidate in enumerate(candidates):
        try:
            candidate()  # loads its code
        except KernelError:
            continue  # cuBLASLt proposed it, but cannot run it
        stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
        try:
            for _ in range(repeats):
                candidate()
        finally:
            graphs[index] = stream.end_capture()
    if not graphs:
        return 0  # the real call raises the error
    spans: dict[int, list[tuple[Any, Any]]] = {index: [] for index in graphs}
    for _ in range(ROUNDS):
        for index, graph in graphs.items():
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record(stream)
            graph.launch(stream)
            stop.record(stream)
            spans[index].append((start, stop))
    stream.synchronize()
    elapsed = cupy.cuda.get_elapsed_time
    times = {i: statistics.median(elapsed(*events) for events in spans[i]) for i in spans}
    return min(times, key=lambda index: times[index])


def _read(path: Path | None) -> dict[str, int]:
    """The choices in a file; none if it is missing or damaged, and then it is written again."""
    if path is None:
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): max(0, int(choice)) for name, choice in loaded.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, choices: dict[str, int]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(choices, indent=1, ensure_ascii=False).encode())
