"""The course and the README's screen say what the lab says."""

import json
import re
import shlex
from pathlib import Path

import make_lab_table
import pytest

from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.lab import ladder_table
from cupygpt.lab.__main__ import main
from cupygpt.lab.exercises.course.all import COURSE, EXERCISES
from cupygpt.lab.ladders import LADDERS
from cupygpt.lab.rung_counts import rung_counts
from cupygpt.performance import report
from cupygpt.performance.gpus import DEFAULT_GPU

ROOT = Path(__file__).parents[2]
TEXT = make_lab_table.COURSE.read_text()
README = (ROOT / "README.md").read_text()
needs_emulator = pytest.mark.skipif(bool(missing_toolchain()), reason=str(missing_toolchain()))


def figures(ladder: str) -> list[dict]:
    return json.loads((make_lab_table.FIGURES / f"{ladder}.json").read_text())["rungs"]


def test_the_table_is_made_of_the_kept_figures() -> None:
    assert make_lab_table.with_table(TEXT) == TEXT


@pytest.mark.parametrize("name", LADDERS)
def test_the_kept_figures_are_of_the_rungs_of_today(name: str) -> None:
    counted = [rung for rung in LADDERS[name] if not rung.is_only_read]
    assert [(f["rung"], f["idea"]) for f in figures(name)] == [(r.number, r.idea) for r in counted]


@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("name", LADDERS)
def test_the_kept_figures_are_those_that_the_lab_counts(name: str) -> None:
    ladder = LADDERS[name]
    for kept, now in zip(figures(name), ladder_table.rows(ladder, ladder.dtype), strict=True):
        estimates = [row["estimates"]["H100"] for row in (kept, now)]
        assert estimates[0] == [pytest.approx(estimates[1][0]), estimates[1][1]]
        assert kept["moved_bytes"] == now["moved_bytes"]


def test_the_readme_shows_the_ladder_as_it_is() -> None:
    ladder = LADDERS["layernorm"]
    lines = ladder_table.head(ladder, ladder.dtype, DEFAULT_GPU, measure=False)
    for row in figures("layernorm"):
        row.pop("measured_us", None)  # the README's reader has no GPU
        lines.append(ladder_table.line(row, DEFAULT_GPU))
    assert "\n".join(lines) in README
    assert f"On them stand {len(EXERCISES)} exercises" in README
    assert f"; {len(EXERCISES)} exercises" in (ROOT / "CHANGELOG.md").read_text()


@needs_emulator
def test_the_report_of_the_course_is_what_show_prints() -> None:
    rung = LADDERS["column_sum"].rungs[0]
    (counts,) = rung_counts(rung, "float32")
    title = f"{ladder_table.named_sizes(rung.contract)}, float"
    assert report.text(counts, title=title, with_registers=False) in TEXT


def test_the_course_has_the_ladders_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", TEXT, re.MULTILINE)
    assert rows == [(name, ladder.lesson) for name, ladder in LADDERS.items()]
    assert list(COURSE)[1:] == list(LADDERS)


@pytest.mark.parametrize("text", [TEXT, README], ids=["course", "README"])
def test_every_command_of_the_lab_is_one(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(r"^(?:\$ )?python -m cupygpt\.lab(.*)$", text, re.MULTILINE)
    assert found
    for line in found:
        words = shlex.split(line, comments=True)
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
        if words[:1] == ["start"]:
            assert words[1] in {*EXERCISES, *COURSE}
    capsys.readouterr()
