"""Which of cuBLASLt's algorithms computes a product: the fastest of those it proposes, by the clock.

Its own ranking misses the best by up to 15 % for some shapes. The choice also decides over the last
bits of a result, so it is made once and kept: in the user's cache, from which the next run on this
machine takes it, and in the folder of a run, which therefore resumes bit for bit.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupygpt.atomic_file import atomic_write
from cupygpt.errors import KernelError, RunError

FILE_NAME = "products.json"
ROUNDS = 5
LAUNCH_FLOPS = 2e10
"""Operations in one timed launch: smaller products are repeated in it, up to MAX_REPEATS times."""
MAX_REPEATS = 8

_choices: dict[str, int] = {}
_measures = False


@contextmanager
def measuring(run_folder: Path | None, *, keep: bool = True) -> Iterator[None]:
    """Inside, the algorithms of new kinds of products are chosen by the clock, and kept.

    Such a product is computed many times into its output: this is for buffers that hold nothing.
    Without `run_folder` the user's cache alone is read and written. Of the ranks of a run only one
    may `keep` what it knows: all would write the same file at once, whenever another run's choices
    come into the user's cache meanwhile.
    """
    global _measures
    _choices.update(_read(cache_file()))
    if run_folder is not None:
        _choices.update(_read(run_folder / FILE_NAME))  # the run's own choices count most
    known = len(_choices)
    _measures = True
    try:
        yield
    finally:
        _measures = False
    if not keep:
        return
    if run_folder is not None and _read(run_folder / FILE_NAME) != _choices:
        _write(run_folder / FILE_NAME, _choices)
    if len(_choices) > known:
        path = cache_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, {**_choices, **_read(path)})  # another run may have written meanwhile
        except (OSError, RunError):
            return  # the next run measures again; this one has its choices in its folder


def choose(identity: str, candidates: Sequence[Callable[[], None]], flops: int, stream: Any) -> int:
    """Number of the algorithm for the product `identity`; `candidates` queue it on `stream`.

    0, cuBLASLt's first, unless it was measured before or is being measured now.
    """
    if identity not in _choices and _measures and len(candidates) > 1:
        repeats = max(1, min(MAX_REPEATS, int(LAUNCH_FLOPS / flops)))
        _choices[identity] = _fastest(candidates, repeats, stream)
    return _choices.get(identity, 0)


def cache_file() -> Path:
    """Where choices outlive a run: below CUPYGPT_CACHE_DIR, XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("CUPYGPT_CACHE_DIR")
    if folder:
        return Path(folder) / FILE_NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cupygpt" / FILE_NAME


def _fastest(candidates: Sequence[Callable[[], None]], repeats: int, stream: Any) -> int:
    """Candidates take turns, each as a graph: the GPU does not wait for the host in between."""
    import cupy

    graphs: dict[int, Any] = {}
    for number, candidate in enumerate(candidates):
        try:
            candidate()  # loads its code
        except KernelError:
            continue  # proposed, and refused after all
        stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
        try:
            for _ in range(repeats):
                candidate()
        finally:
            graphs[number] = stream.end_capture()
    if not graphs:
        return 0  # the run's own call says what is wrong
    spans: dict[int, list[tuple[Any, Any]]] = {number: [] for number in graphs}
    for _ in range(ROUNDS):
        for number, graph in graphs.items():
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record(stream)
            graph.launch(stream)
            stop.record(stream)
            spans[number].append((start, stop))
    stream.synchronize()
    elapsed = cupy.cuda.get_elapsed_time
    times = {n: statistics.median(elapsed(*events) for events in spans[n]) for n in spans}
    return min(times, key=lambda number: times[number])


def _read(path: Path) -> dict[str, int]:
    """Kept choices; a missing or damaged file is none: it will be written anew."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): max(0, int(choice)) for name, choice in loaded.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, choices: dict[str, int]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(choices, indent=1, ensure_ascii=False).encode())
