"""Writes the table of the lab's course: measured times beside estimated ones.

The figures are those of tests/golden/ladders/*.json, one file for each ladder, made on a GPU by

    python -m cupygpt.lab ladder NAME --measure --json > tests/golden/ladders/NAME.json

Without --write the table is printed; with it, it replaces the one in cuda/lab/README.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from cupygpt.lab.ladders import LADDERS
from cupygpt.performance.amounts import bytes_words, two_figures, words_of_time
from cupygpt.performance.gpus import DEFAULT_GPU, GPUS

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "cuda" / "lab" / "README.md"
FIGURES = ROOT / "tests" / "golden" / "ladders"
BEGIN = "<!-- made by tools/make_lab_table.py -->\n"
END = "<!-- end of the table -->\n"


def table(folder: Path = FIGURES) -> str:
    """The whole table in Markdown, and one sentence on where it was measured."""
    found = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in LADDERS]
    gpus = sorted({ladder["measured_on"] for ladder in found if "measured_on" in ladder})
    lines = [
        f"Measured: {'; '.join(gpus) or 'nowhere yet'}. Estimated: {_estimated_for(gpus)}.",
        "",
        "| ladder | rung | idea | moved | estimated | limit | measured | estimated / measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ladder in found:
        gpu = _estimated_for([ladder.get("measured_on", "")])
        lines += [_line(ladder["ladder"], rung, gpu) for rung in ladder["rungs"]]
    return "\n".join(lines) + "\n"


def _estimated_for(gpus: list[str]) -> str:
    """The GPU of the estimates: the one that was measured, if its figures are known."""
    known = [name for name in GPUS if any(name in gpu for gpu in gpus)]
    return known[0] if known else DEFAULT_GPU.name


def _line(ladder: str, rung: dict[str, Any], gpu: str) -> str:
    microseconds, limit = rung["estimates"][gpu]
    took, ratio = "", ""
    if "measured_us" in rung:
        took = words_of_time(rung["measured_us"])
        ratio = two_figures(microseconds / rung["measured_us"])
    name = ladder if rung["rung"] == 1 else ""
    cells = [name, str(rung["rung"]), rung["idea"], bytes_words(rung["moved_bytes"])]
    return f"| {' | '.join([*cells, words_of_time(microseconds), limit, took, ratio])} |"


def with_table(course: str) -> str:
    """The text of the course with the table of today."""
    before, _, rest = course.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{COURSE} has no place for the table: {BEGIN.strip()} … {END.strip()}")
    return before + BEGIN + table() + end + after


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the table of the course")
    if parser.parse_args().write:
        COURSE.write_text(with_table(COURSE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
