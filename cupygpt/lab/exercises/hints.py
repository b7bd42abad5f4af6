"""Which hints a learner has seen: counted in a small file beside the exercises."""

import contextlib
import json
from pathlib import Path

from cupygpt.errors import LabError
from cupygpt.lab.exercises.exercise import Exercise

FILE = ".hints.json"
"""In the learner's folder: the number of the last hint shown, by exercise."""


def hint(exercise: Exercise, folder: Path, number: int | None) -> list[str]:
    """The text of a hint, and how the next one is had.

    `number` None stands for the next one that was not shown yet; after the last one all are shown.
    Raises LabError for a number that there is not.
    """
    most = len(exercise.hints)
    if number is not None and not 1 <= number <= most:
        raise LabError(f"{exercise.name} has the hints 1 to {most}, not {number}.")
    seen = _seen(folder)
    last = seen.get(exercise.name, 0)
    if number is None and last >= most:
        return [_titled(exercise, i) for i in range(1, most + 1)] + ["There are no more."]
    shown = number or last + 1
    if shown > last:
        with contextlib.suppress(OSError):  # then the same hint comes again
            text = json.dumps({**seen, exercise.name: shown}, indent=1)
            (folder / FILE).write_text(text, encoding="utf-8")
    lines = [_titled(exercise, shown)]
    if shown < most:
        lines.append(f"The next one: python -m cupygpt.lab check {exercise.name} --hint")
    return lines


def _titled(exercise: Exercise, number: int) -> str:
    return f"hint {number} of {len(exercise.hints)}: {exercise.hints[number - 1]}"


def _seen(folder: Path) -> dict[str, int]:
    """What the file says; nothing where it is missing or spoilt."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {str(name): n for name, n in entries if type(n) is int}
