"""python -m cupygpt.lab: ladders of kernels, exercises, and a judge for kernels of one's own."""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from cupygpt.cli import run_cli
from cupygpt.console.stream import set_up_streams
from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.errors import LabError
from cupygpt.kernels.load import find_cuda_dir
from cupygpt.lab import ladder_table
from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.contracts.table import CONTRACTS
from cupygpt.lab.exercises.course.all import COURSE, EXERCISES
from cupygpt.lab.exercises.exercise import Exercise
from cupygpt.lab.exercises.hints import hint
from cupygpt.lab.exercises.learner import (
    check_file,
    files_of_learner,
    find_exercise,
    is_solved,
    known_state,
    path_of,
    start,
)
from cupygpt.lab.judge import Verdict
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import LADDERS, Ladder, Rung
from cupygpt.lab.measure import name_of_gpu
from cupygpt.lab.rung_counts import rung_counts
from cupygpt.lab.train_with import Setting, losses_beside
from cupygpt.lab.try_kernel import Gate, gates
from cupygpt.performance import report
from cupygpt.performance.gpus import DEFAULT_GPU, gpu_by_name

TYPES = {"fp32": "float32", "bf16": "bfloat16"}
COMMANDS = """ladder NAME           all rungs of an operation, counted and estimated
show NAME NUMBER      one rung: its idea, its source, its report
start EXERCISE        write an exercise into ./lab/
check [EXERCISE]      the verdict on it, or on all in ./lab/; --hint helps
try FILE --as OP      judge a kernel of your own"""

_FOLD = textwrap.TextWrapper(
    66, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
)
_TIED = "\1"
"""A space at which no line is broken."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for an exercise or kernel that is not right, 2."""
    set_up_streams()
    args = _parser().parse_args(arguments)
    codes: list[int] = []
    code = run_cli(lambda: codes.append(_run(args)), debug=args.debug)
    return code or codes[0]


def _run(args: argparse.Namespace) -> int:
    if args.needs_compiler and (reason := missing_toolchain()):
        raise LabError(reason)
    return int(args.run(args))


def _write(lines: str | Iterable[str]) -> None:
    for line in [lines] if isinstance(lines, str) else lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


# ---- ladders ------------------------------------------------------------------------------------


def _ladder(args: argparse.Namespace) -> int:
    ladder, gpu = _find_ladder(args.name), gpu_by_name(args.gpu)
    dtype = TYPES[args.dtype] if args.dtype else ladder.dtype
    on = {"measured_on": name_of_gpu()} if args.measure else {}
    rows = ladder_table.rows(ladder, dtype, measure=args.measure)
    if args.json:
        _write(json.dumps({"ladder": ladder.name, **on, "rungs": list(rows)}, indent=1))
        return 0
    _write(ladder_table.head(ladder, dtype, gpu, measure=args.measure))
    for row in rows:
        _write(ladder_table.line(row, gpu))
        if words := ladder_table.difference(row, ladder, dtype):
            _write(words)
    _write(["", *(f"Measured on this {name}." for name in on.values())])
    _write(f"The lesson: {ladder.lesson}.")
    _write(f"Read a rung: python -m cupygpt.lab show {ladder.name} 1")
    _write(f"Climb:       python -m cupygpt.lab start {ladder.name}")
    return 0


def _show(args: argparse.Namespace) -> int:
    ladder, gpu = _find_ladder(args.name), gpu_by_name(args.gpu)
    rung = _find_rung(ladder, args.number)
    dtype = ladder_table.dtype_of(rung, TYPES[args.dtype] if args.dtype else ladder.dtype)
    if not args.json:
        _write([f"{ladder.title}, rung {rung.number}: {rung.idea}", f"{rung.path}", ""])
        _write(_text_of(rung))
        if args.dtype and dtype != TYPES[args.dtype]:
            _write(["", f"This rung takes {ladder_table.NAMES[dtype]} only."])
    if (reason := missing_toolchain()) and not rung.is_only_read:
        raise LabError(reason)
    launches = [] if rung.is_only_read else rung_counts(rung, dtype)
    if args.json:
        found = {"ladder": ladder.name, "rung": rung.number, "idea": rung.idea, "dtype": dtype}
        reports = [report.as_dict(counts, gpu) for counts in launches]
        _write(json.dumps({**found, "file": str(rung.path), "launches": reports}, indent=1))
        return 0
    title = f"{ladder_table.named_sizes(rung.contract)}, {ladder_table.NAMES[dtype]}"
    for counts in launches:
        _write(["", *report.text(counts, gpu, title=title).splitlines()])
    return 0


def _text_of(rung: Rung) -> list[str]:
    if not rung.is_own:
        return rung.path.read_text(encoding="utf-8").splitlines()
    why = ["It is here to be read: the lab does not run it."] if rung.is_only_read else []
    return ["This is the trainer's own file. Read it there.", *why]


def _find_ladder(name: str) -> Ladder:
    if name not in LADDERS:
        raise LabError(f"there is no ladder {name}. There are: {', '.join(LADDERS)}.")
    return LADDERS[name]


def _find_rung(ladder: Ladder, number: int) -> Rung:
    if not 1 <= number <= len(ladder.rungs):
        raise LabError(f"{ladder.name} has the rungs 1 to {len(ladder.rungs)}, not {number}.")
    return ladder.rungs[number - 1]


# ---- exercises ----------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    del args
    _write(["python -m cupygpt.lab COMMAND", "", textwrap.indent(COMMANDS, "  "), ""])
    following, unchecked = "", 0
    for name, exercises in COURSE.items():
        states = {exercise.name: known_state(exercise) for exercise in exercises}
        solved = sum(state == "solved" for state in states.values())
        unchecked += sum(state == "not checked" for state in states.values())
        lesson = LADDERS[name].lesson if name in LADDERS else "what a warp asks of memory"
        _write(f"{name:<14}{solved} of {len(exercises)} solved   {lesson}")
        marks = (n if s == "not started" else f"{n} ({s})" for n, s in states.items())
        text = ", ".join(mark.replace(" ", _TIED) for mark in marks)
        _write(textwrap.indent(textwrap.fill(text, 74).replace(_TIED, " "), "    "))
        if not following:
            following = next((n for n, state in states.items() if state != "solved"), "")
    if unchecked:
        _write(["", f"{unchecked} not checked since they, or the lab, changed:"])
        _write("  python -m cupygpt.lab check")
    elif following:
        begun = path_of(EXERCISES[following]).is_file()
        _write(["", f"Next: python -m cupygpt.lab {'check' if begun else 'start'} {following}"])
    _write(f"The course: {find_cuda_dir() / 'lab' / 'README.md'}")
    if reason := missing_toolchain():
        _write(textwrap.wrap(f"Nothing can be judged here: {reason}", 79))
    return 0


def _start(args: argparse.Namespace) -> int:
    ladder = COURSE.get("_".join(args.exercise), ())
    if ladder and not args.again and all(map(is_solved, ladder)):
        _write([f"All exercises of {args.exercise[0]} are solved.", _next_step(ladder[-1])])
        return 0
    exercise = find_exercise(args.exercise)
    path = start(exercise, again=args.again)
    _write([f"{path}: {exercise.kind}", *textwrap.wrap(exercise.question, 79)])
    _write(f"Edit it, then: python -m cupygpt.lab check {exercise.name}")
    return 0


def _check(args: argparse.Namespace) -> int:
    number = int(args.hint) if args.hint and args.hint.isdecimal() else None
    if args.hint and number is None:  # check --hint EXERCISE
        args.exercise.append(args.hint)
    if not args.exercise and args.hint is None:
        return _check_all()
    if not args.exercise:
        raise LabError("a hint for which exercise? Name it: check EXERCISE --hint")
    exercise = find_exercise(args.exercise)
    given = Path(args.exercise[0])
    path = given if len(args.exercise) == 1 and given.suffix == ".cu" else path_of(exercise)
    if not path.exists():
        return _nothing_to_check("_".join(args.exercise), exercise)
    if args.hint is not None:
        for line in hint(exercise, path.parent, number):
            _write(textwrap.wrap(line, 79))
        return 0
    if reason := missing_toolchain():
        raise LabError(reason)
    verdict = check_file(exercise, path)
    _write(verdict.message)
    if details := (args.debug and verdict.everything) or verdict.details:
        _write(textwrap.indent(details, "    "))
    if verdict.is_right:
        _write(_next_step(exercise))
        return 0
    _write(f"A hint: python -m cupygpt.lab check {exercise.name} --hint")
    return 1


def _nothing_to_check(name: str, exercise: Exercise) -> int:
    """Nothing is wrong where `name` is a ladder, and all of it that was started is solved."""
    ladder = COURSE.get(name, ())
    solved = sum(path_of(other).is_file() for other in ladder)
    start_it = f"python -m cupygpt.lab start {exercise.name}"
    if not solved:
        raise LabError(f"{path_of(exercise)} is not there: {start_it}")
    _write([f"{name}: {solved} of {len(ladder)} solved", f"Next: {start_it}"])
    return 0


def _next_step(solved: Exercise) -> str:
    """What to do after an exercise: the next one that is not known to be solved."""
    names = list(EXERCISES)
    for name in names[names.index(solved.name) + 1 :] + names:
        if name != solved.name and known_state(EXERCISES[name]) != "solved":
            return f"Next: python -m cupygpt.lab start {name}"
    return "That was the last one: all exercises are solved."


def _check_all() -> int:
    started, others = files_of_learner()
    if not started:
        raise LabError("no exercise has been started here: python -m cupygpt.lab start warm_up")
    if reason := missing_toolchain():
        raise LabError(reason)
    solved = 0
    for exercise in started:
        try:
            verdict = check_file(exercise, path_of(exercise))
        except LabError as error:
            verdict = Verdict("unusable", str(error))
        solved += verdict.is_right
        _write(f"{exercise.name}: {verdict.message}")
    _write([f"{path}: not the file of an exercise" for path in others])
    _write(f"{solved} of {len(started)} solved, of {len(EXERCISES)} exercises")
    return 0 if solved == len(started) else 1


# ---- a kernel of one's own ----------------------------------------------------------------------


def _try(args: argparse.Namespace) -> int:
    contract, gpu = _find_contract(args.op), gpu_by_name(args.gpu)
    if args.train is not None and args.train < 1:
        raise LabError(f"--train {args.train}: at least one step is needed.")
    file = KernelFile.read(Path(args.file))
    dtypes = [TYPES[args.dtype]] if args.dtype else list(contract.dtypes)
    if unknown := set(dtypes) - set(contract.dtypes):
        raise LabError(
            f"{contract.name} is judged in {', '.join(contract.dtypes)}, not in "
            f"{', '.join(unknown)}."
        )
    on = {"measured_on": name_of_gpu()} if args.measure else {}
    found = []
    for gate in gates(file, contract, dtypes, gpu, measure=args.measure, debug=args.debug):
        found.append(gate)
        if not args.json:
            _write(_gate_lines(len(found), gate))
    all_passed = all(gate.passed for gate in found)
    trained = losses_beside(file, contract, args.train) if args.train and all_passed else None
    if args.json:
        head = {"file": str(file.path), "op": contract.name, "dtypes": dtypes, **on}
        losses = {"losses": trained[1]} if trained else {}  # of each step: this kernel's, ours
        _write(json.dumps({**head, "gates": [g.as_dict() for g in found], **losses}, indent=1))
    elif trained:
        _write(_trained(*trained))
    return 0 if all_passed else 1


def _gate_lines(number: int, gate: Gate) -> list[str]:
    """80 columns wide; what the compiler says keeps its lines."""
    first, *more = gate.text.splitlines()
    lines = _FOLD.wrap(first)
    for line in more:
        lines += [line] if gate.name == "compiles" else _FOLD.wrap(line)
    return [
        f"{f'{number} {gate.name}' if i == 0 else '':<13}{line}" for i, line in enumerate(lines)
    ]


def _trained(setting: Setting, losses: list[tuple[float, float]]) -> list[str]:
    steps = len(losses)
    lines = [
        f"5 training   {setting.model}, B {setting.B}, T {setting.T}: loss with your kernel, ours"
    ]
    shown = sorted({0, steps // 2, steps - 1})
    lines += [f"{'':<13}step {i + 1:<5}{losses[i][0]:.4f}   {losses[i][1]:.4f}" for i in shown]
    most = max(abs(theirs - own) for theirs, own in losses)
    words = f"largest difference: {most:.1e}" if most else "no difference"
    return [*lines, f"{'':<13}{words}, in {steps} step{'s' if steps > 1 else ''}"]


def _find_contract(name: str | None) -> Contract:
    if name in CONTRACTS:
        return CONTRACTS[name]
    lines = []
    for contract in CONTRACTS.values():
        lines += textwrap.wrap(f"{contract.name}: {contract.summary}", 79, initial_indent="  ",
                               subsequent_indent="    ")  # fmt: skip
        words = re.sub(r"(?<!,) ", _TIED, f"({contract.declaration})")
        wrapped = textwrap.wrap(words, 75, initial_indent="    ", subsequent_indent="     ")
        lines += [line.replace(_TIED, " ") for line in wrapped]
    why = f"there is no op {name}" if name else "for which op is the kernel? Name it: --as OP"
    raise LabError("\n".join([f"{why}. There are, with their parameters:", *lines]))


# ---- the command line ---------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.lab",
        description="Learn, write and judge CUDA kernels, without a GPU.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=_list, needs_compiler=False)
    commands = parser.add_subparsers(metavar="COMMAND")

    ladder = commands.add_parser("ladder", help="all rungs of an operation in one table")
    ladder.add_argument("name", help=", ".join(LADDERS))
    ladder.add_argument("--json", action="store_true", help="all figures, for programs")
    ladder.add_argument("--measure", action="store_true", help="time the rungs on this GPU too")
    _add_target(ladder)
    ladder.set_defaults(run=_ladder, needs_compiler=True)

    show = commands.add_parser("show", help="one rung: its idea, its source, its report")
    show.add_argument("name", help=", ".join(LADDERS))
    show.add_argument("number", type=int)
    show.add_argument("--json", action="store_true", help="only the report, for programs")
    _add_target(show)
    show.set_defaults(run=_show, needs_compiler=False)

    begin = commands.add_parser("start", help="write an exercise into ./lab/")
    begin.add_argument("exercise", nargs="+", help="its name, or a ladder for the next of it")
    begin.add_argument("--again", action="store_true", help="overwrite the file that is there")
    begin.set_defaults(run=_start, needs_compiler=False)

    check = commands.add_parser("check", help="the verdict on an exercise")
    check.add_argument("exercise", nargs="*", help="its name, or the file; none: all in ./lab/")
    check.add_argument("--hint", nargs="?", const="", help="show the next hint, or number HINT")
    check.set_defaults(run=_check, needs_compiler=False)

    own = commands.add_parser("try", help="judge a kernel of your own")
    own.add_argument("file", help="a .cu file with a line `// lab: grid = ..., block = ...`")
    own.add_argument("--as", dest="op", help=", ".join(CONTRACTS))
    own.add_argument("--json", action="store_true", help="the gates for programs")
    own.add_argument("--measure", action="store_true", help="time it on this GPU too")
    own.add_argument(
        "--train", type=int, metavar="N", help="train N steps with it in place of ours"
    )
    _add_target(own)
    own.set_defaults(run=_try, needs_compiler=True)
    return parser


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", default=DEFAULT_GPU.name, help="for the estimate (%(default)s)")
    parser.add_argument("--dtype", choices=TYPES, help="the type of floatX")


if __name__ == "__main__":
    sys.exit(main())
