"""The verdict on an exercise, in one line, and then the place."""

from collections.abc import Mapping, Sequence

from cupygpt.emulator.counted import Counts
from cupygpt.errors import LabError
from cupygpt.lab.contracts.case import Case
from cupygpt.lab.exercises.exercise import Exercise, empty_hole, predicted
from cupygpt.lab.exercises.goals import in_words, measured, sentence
from cupygpt.lab.judge import Verdict, judge
from cupygpt.lab.kernel_file import KernelFile

ALMOST = 0.02
"""A predicted number may be so far off: some counters are averages."""


def check(exercise: Exercise, file: KernelFile) -> Verdict:
    """Whether the learner's file solves the exercise.

    Raises LabError where it cannot be judged: no launch line, no answer line.
    """
    if empty := empty_hole(file.source):
        return Verdict("holes", empty)
    if exercise.kind == "predict":
        return _check_prediction(exercise, file)
    verdict = judge(file, exercise.rung.contract)
    if not verdict.is_right or not exercise.goals:
        return verdict if not verdict.is_right else Verdict("", f"solved: {verdict.message}")
    launches, num_bytes = _count(exercise, file)
    reached = []
    for goal in exercise.goals:
        value = measured(goal.counter, launches, num_bytes)
        if value > goal.at_most * 1.001:
            limit = in_words(goal.at_most)
            return Verdict(
                "goal", f"right, but {sentence(goal.counter, value)}; the goal is at most {limit}"
            )
        reached.append(sentence(goal.counter, value))
    return Verdict("", f"solved: {verdict.message}; {', '.join(reached)}")


def _check_prediction(exercise: Exercise, file: KernelFile) -> Verdict:
    answer = predicted(file.source)
    if answer is None:
        return Verdict("answer", "the answer is still ?: write a number into the line `// answer:`")
    original = KernelFile.read(exercise.rung.path)
    value = measured(exercise.goals[0].counter, *_count(exercise, original))
    if abs(answer - value) > ALMOST * abs(value):
        return Verdict("answer", f"not {in_words(answer)}; think again, or ask for a --hint")
    return Verdict("", f"solved: {exercise.goals[0].counter} = {in_words(value)}")


def _count(exercise: Exercise, file: KernelFile) -> tuple[Sequence[Counts], Mapping[str, int]]:
    contract = exercise.rung.contract
    case = Case.make(contract, exercise.sizes or contract.awkward[-1], contract.dtypes[0])
    launches = file.count(case.arguments())
    if not launches:
        raise LabError(f"{file.path}: no kernel was launched.")
    return launches, {name: array.nbytes for name, array in case.arrays.items()}
