"""Each exercise is its rung with a change; typical wrong answers get the verdict they should."""

import re
from pathlib import Path

import pytest
from lab import solutions
from lab.planted import written

from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.errors import LabError
from cupygpt.lab.exercises.check import check
from cupygpt.lab.exercises.course.all import COURSE, EXERCISES
from cupygpt.lab.exercises.exercise import KINDS, Exercise, empty_hole, predicted
from cupygpt.lab.ladders import LADDERS

ALL = list(EXERCISES.values())
WRONG = [
    pytest.param(
        exercise, number, id=f"{exercise.name}-{number}", marks=[pytest.mark.slow][:number]
    )
    for exercise in ALL
    for number in range(len(exercise.wrong))
]
needs_emulator = pytest.mark.skipif(bool(missing_toolchain()), reason=str(missing_toolchain()))


def test_the_course_has_every_ladder_and_names_are_unique() -> None:
    assert list(COURSE) == ["warm_up", *LADDERS]
    assert len(EXERCISES) == sum(len(exercises) for exercises in COURSE.values()) >= 30


@pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.name)
def test_an_exercise_is_its_rung_with_a_change(exercise: Exercise) -> None:
    rung = exercise.rung.path.read_text()
    start = exercise.start()
    assert exercise.kind in KINDS
    assert exercise.hints
    assert exercise.wrong
    assert bool(exercise.holes) == (exercise.kind == "fill")
    assert bool(exercise.faults) == (exercise.kind == "repair")
    assert exercise.goals or exercise.kind in ("fill", "repair")
    assert start.startswith(f"// Exercise {exercise.name}: {exercise.kind}.\n")
    if exercise.kind == "predict":
        code = start.rpartition("\n//\n")[2]
        told = re.sub(r" *//(?! lab:).*", "", rung)  # the remarks give the answer away
        assert [x for x in code.splitlines() if x] == [x for x in told.splitlines() if x]
        assert code.count("//") == code.count("// lab: ") == rung.count("// lab: ")
    elif exercise.kind == "improve":
        assert start.endswith(rung)
    else:
        assert not start.endswith(rung)
        filled = exercise.answered({i: hole.text for i, hole in enumerate(exercise.holes, 1)})
        if exercise.kind == "fill":
            assert filled == exercise.solution()
    assert exercise.solution().endswith(rung)


@needs_emulator
@pytest.mark.parametrize(("exercise", "number"), WRONG)
def test_a_typical_wrong_answer_gets_its_verdict(exercise: Exercise, number: int) -> None:
    wrong = exercise.wrong[number]
    source = exercise.answered(wrong.answer) if wrong.answer else exercise.start()
    verdict = check(exercise, written(f"{exercise.name}_{number}", source))
    assert not verdict.is_right
    assert wrong.verdict in verdict.message


@needs_emulator
@pytest.mark.parametrize(
    "exercise", [e for e in ALL if e.goals and e.kind != "improve"], ids=lambda e: e.name
)
def test_the_rung_solves_an_exercise_with_a_number(exercise: Exercise) -> None:
    source = exercise.solution()
    if exercise.kind == "predict":
        source = exercise.answered({1: str(exercise.goals[0].at_most)})
    verdict = check(exercise, written(exercise.name, source))
    assert verdict.message.startswith("solved: ")


@needs_emulator
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("gelu_faster", LADDERS["gelu"].rungs[2].path),
        ("layernorm_once", LADDERS["layernorm"].rungs[2].path),
        ("matmul_less", LADDERS["matmul"].rungs[2].path),
        ("column_sum_side_by_side", solutions.COLUMN_SUM),
        ("adamw_packs", solutions.ADAMW),
    ],
)
def test_a_goal_can_be_reached(name: str, source: str | Path) -> None:
    text = source.read_text() if isinstance(source, Path) else source
    verdict = check(EXERCISES[name], written(name, text))
    assert verdict.message.startswith("solved: "), verdict


@needs_emulator
@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        # one warp of a block loads all rows; the others load nothing
        (
            "n = threadIdx.y; n < N; n += 8",
            "n = threadIdx.y * N; n < N; n++",
            "most: 257; the goal",
        ),
        ("dbias[column] += sum", "atomicAdd(&dbias[column], sum)", "right, but atomics: 2; the"),
    ],
)
def test_the_goals_of_a_column_sum_hold_every_warp(old: str, new: str, verdict: str) -> None:
    assert solutions.COLUMN_SUM.count(old) == 1
    name = f"column_sum_one_warp_{len(new)}"
    file = written(name, solutions.COLUMN_SUM.replace(old, new))
    assert verdict in check(EXERCISES["column_sum_side_by_side"], file).message


def test_a_hole_in_a_comment_does_not_count() -> None:
    assert not empty_hole("// put x into HOLE(1)\nint y = x;")
    assert empty_hole("// HOLE(1)\nint y = HOLE(2);") == "hole 2 in line 2 is still empty"


@pytest.mark.parametrize(
    ("line", "value"),
    [("// answer: sectors per load = ?", None), ("// answer: sectors per load = 4", 4.0)],
)
def test_an_answer_is_read(line: str, value: float | None) -> None:
    assert predicted(f"// a\n{line}\nvoid f();\n") == value


@pytest.mark.parametrize("line", ["// answer: sectors per load = four", "// no answer"])
def test_an_answer_that_cannot_be_read(line: str) -> None:
    with pytest.raises(LabError, match=r"no number|is gone"):
        predicted(line)
