"""Files of questions for tests: 20 examples, as a study ran them through llm.c's own loader."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Example = tuple[list[int], list[list[int]], int]


def _examples() -> list[Example]:
    r = np.random.RandomState(2)
    found = []
    for _ in range(20):
        context = r.randint(0, 256, r.randint(1, 20)).tolist()
        choices = [r.randint(0, 256, r.randint(1, 9)).tolist() for _ in range(4)]
        found.append((context, choices, int(r.randint(0, 4))))
    return found


EXAMPLES = _examples()


def numbers_of(examples: Sequence[Example]) -> np.ndarray:
    """What follows the header of llm.c's file."""
    numbers: list[int] = []
    for index, (context, choices, label) in enumerate(examples):
        body = [index, label, len(choices), len(context), *context]
        for choice in choices:
            body += [len(choice), *choice]
        numbers += [65535, 2 * (len(body) + 2), *body]
    return np.array(numbers, "<u2")


def header(count: int, longest: int, version: int = 1) -> bytes:
    head = np.zeros(256, "<i4")
    head[:4] = 20240522, version, count, longest
    return head.tobytes()


def llmc_file(path: Path, examples: Sequence[Example] = EXAMPLES) -> Path:
    sizes = [2 * len(numbers_of([example])) for example in examples]
    path.write_bytes(header(len(examples), max(sizes)) + numbers_of(examples).tobytes())
    return path


def write_jsonl(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path
