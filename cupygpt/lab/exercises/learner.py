"""The learner's folder: exercises are started there, checked, and found again by their files."""

from dataclasses import asdict
from pathlib import Path

from cupygpt.errors import CupyGPTError, LabError
from cupygpt.lab.exercises.check import check
from cupygpt.lab.exercises.course.all import COURSE, EXERCISES
from cupygpt.lab.exercises.exercise import Exercise
from cupygpt.lab.judge import Verdict
from cupygpt.lab.kept import kept, known
from cupygpt.lab.kernel_file import KernelFile

FOLDER = Path("lab")
"""Where the learner's files lie: below the folder that the command is called in."""


def find_exercise(words: list[str]) -> Exercise:
    """The exercise that `layernorm_2`, `layernorm 2`, lab/layernorm_2.cu or `layernorm` names.

    The name of a ladder stands for its first exercise that is not solved. Raises LabError for an
    unknown name, with the nearest ones.
    """
    name = "_".join(words)
    stem = Path(name).stem if name.endswith(".cu") else name
    if stem in EXERCISES:
        return EXERCISES[stem]
    if name in COURSE:
        return next((e for e in COURSE[name] if not is_solved(e)), COURSE[name][0])
    if name.endswith(".cu"):
        raise LabError(
            f"{name} is not the file of an exercise. A kernel of your own is judged by "
            f"python -m cupygpt.lab try {name} --as OP"
        )
    ladder = max((x for x in COURSE if name.startswith(x)), key=len, default="")
    if not ladder:
        raise LabError(
            f"there is no exercise {name}. `python -m cupygpt.lab` lists them; the next one of a "
            f"ladder is {', '.join(COURSE)}."
        )
    names = [exercise.name for exercise in COURSE[ladder]]
    raise LabError(f"there is no exercise {name}. There are: {', '.join(names)}.")


def path_of(exercise: Exercise) -> Path:
    """Where the learner's file of an exercise lies."""
    return FOLDER / exercise.file_name


def start(exercise: Exercise, *, again: bool) -> Path:
    """Write the learner's file. Raises LabError if it is there, unless `again`."""
    path = path_of(exercise)
    if path.exists() and not again:
        raise LabError(
            f"{path} is there already. Go on with it, or begin anew: "
            f"python -m cupygpt.lab start {exercise.name} --again"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(exercise.start(), encoding="utf-8")
    except OSError as error:
        raise LabError(f"{path} cannot be written ({error.strerror or error}).") from None
    return path


def check_file(exercise: Exercise, path: Path) -> Verdict:
    """The verdict on a file; what is known of the same text is not worked out again."""
    file = KernelFile.read(path)
    if file.includes_neighbours:
        return check(exercise, file)
    return Verdict(**kept(_parts(exercise, file), lambda: asdict(check(exercise, file))))


def _parts(exercise: Exercise, file: KernelFile) -> list[str]:
    return ["check", exercise.name, str(file.path.absolute()), file.source]


def is_solved(exercise: Exercise) -> bool:
    """Whether the learner's file solves the exercise; where it cannot be judged, it does not."""
    path = path_of(exercise)
    if not path.is_file():
        return False
    try:
        return check_file(exercise, path).is_right
    except CupyGPTError:
        return False


def known_state(exercise: Exercise) -> str:
    """What is known without running anything: solved, not solved, not checked; or not started."""
    path = path_of(exercise)
    if not path.is_file():
        return "not started"
    try:
        found = known(_parts(exercise, KernelFile.read(path)))
    except LabError:
        return "not solved"
    if found is None:
        return "not checked"
    return "solved" if Verdict(**found).is_right else "not solved"


def files_of_learner() -> tuple[list[Exercise], list[Path]]:
    """The exercises that were started, in the order of the course; and other .cu files."""
    started = [exercise for exercise in EXERCISES.values() if path_of(exercise).is_file()]
    names = {exercise.file_name for exercise in started}
    return started, sorted(path for path in FOLDER.glob("*.cu") if path.name not in names)
