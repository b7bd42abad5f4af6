"""python -m cupygpt.lab: ladders of kernels, exercises, and a judge for kernels of one's own."""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from cupygpt.cli import run_cli
from cupygpt.console.stream import set_up_streams
from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.errors import LabError
from cupygpt.lab import ladder_table
from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.contracts.table import CONTRACTS
from cupygpt.lab.exercises.course.all import COURSE
from cupygpt.lab.exercises.learner import check_file, find_exercise, is_solved, path_of, start
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import LADDERS, Ladder, Rung
from cupygpt.lab.rung_counts import rung_counts
from cupygpt.lab.train_with import losses_beside
from cupygpt.lab.try_kernel import gates
from cupygpt.performance import report
from cupygpt.performance.gpus import DEFAULT_GPU, gpu_by_name

TYPES = {"fp32": "float32", "bf16": "bfloat16"}
COMMANDS = """ladder NAME           all rungs of an operation, counted and estimated
show NAME NUMBER      one rung: its idea, its source, its report
start EXERCISE        write an exercise into ./lab/
check EXERCISE        the verdict on it; --hint shows the next hint
try FILE --as OP      judge a kernel of your own"""


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
    rows = ladder_table.rows(ladder, dtype, measure=args.measure)
    if args.json:
        _write(json.dumps({"ladder": ladder.name, "rungs": list(rows)}, indent=1))
        return 0
    _write(ladder_table.head(ladder, dtype, gpu, measure=args.measure))
    for row in rows:
        _write(ladder_table.line(row, gpu))
        if row["dtype"] != dtype:
            _write(f"      in {ladder_table.NAMES[row['dtype']]}")
    _write(["", f"The lesson: {ladder.lesson}."])
    _write(f"Read a rung: python -m cupygpt.lab show {ladder.name} 1")
    _write(f"Climb:       python -m cupygpt.lab start {ladder.name}")
    return 0


def _show(args: argparse.Namespace) -> int:
    ladder, gpu = _find_ladder(args.name), gpu_by_name(args.gpu)
    rung = _find_rung(ladder, args.number)
    dtype = ladder_table.dtype_of(rung, TYPES[args.dtype] if args.dtype else ladder.dtype)
    if args.json:
        if reason := missing_toolchain():
            raise LabError(reason)
        launches = [] if rung.is_only_read else rung_counts(rung, dtype)
        reports = [report.as_dict(counts, gpu) for counts in launches]
        _write(json.dumps({"rung": rung.file, "dtype": dtype, "launches": reports}, indent=1))
        return 0
    _write([f"{ladder.title}, rung {rung.number}: {rung.idea}", f"{rung.path}", ""])
    if rung.is_own:
        _write([f"The trainer's own file: cuda/{rung.file}. Read it there."])
    else:
        _write(rung.path.read_text(encoding="utf-8").splitlines())
    if rung.is_only_read:
        return 0
    if reason := missing_toolchain():
        raise LabError(reason)
    title = f"{ladder_table.named_sizes(rung.contract)}, {ladder_table.NAMES[dtype]}"
    for counts in rung_counts(rung, dtype):
        _write(["", *report.text(counts, gpu, title=title).splitlines()])
    return 0


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
    for name, exercises in COURSE.items():
        solved = [is_solved(exercise) for exercise in exercises]
        lesson = LADDERS[name].lesson if name in LADDERS else "what a warp asks of memory"
        _write(f"{name:<14}{sum(solved)} of {len(exercises)} solved   {lesson}")
        marks = (
            f"{exercise.name}{' (solved)' if done else ''}"
            for exercise, done in zip(exercises, solved, strict=True)
        )
        _write(textwrap.indent(textwrap.fill(", ".join(marks), 74), "    "))
    return 0


def _start(args: argparse.Namespace) -> int:
    exercise = find_exercise(args.exercise)
    path = start(exercise, again=args.again)
    _write([f"{path}: {exercise.kind}", *textwrap.wrap(exercise.question, 78)])
    _write(f"Edit it, then: python -m cupygpt.lab check {exercise.name}")
    return 0


def _check(args: argparse.Namespace) -> int:
    exercise = find_exercise(args.exercise)
    if args.hint is not None:
        number = min(max(1, args.hint), len(exercise.hints))
        hint = exercise.hints[number - 1]
        _write(textwrap.wrap(f"hint {number} of {len(exercise.hints)}: {hint}", 78))
        if number < len(exercise.hints):
            _write(f"The next one: python -m cupygpt.lab check {exercise.name} --hint {number + 1}")
        return 0
    given = Path(args.exercise[0])
    path = given if len(args.exercise) == 1 and given.suffix == ".cu" else path_of(exercise)
    if not path.exists():
        raise LabError(f"{path} is not there: python -m cupygpt.lab start {exercise.name}")
    verdict = check_file(exercise, path)
    _write(verdict.message)
    if verdict.details:
        _write(textwrap.indent(verdict.details, "    "))
    return 0 if verdict.is_right else 1


# ---- a kernel of one's own ----------------------------------------------------------------------


def _try(args: argparse.Namespace) -> int:
    contract, gpu = _find_contract(args.op), gpu_by_name(args.gpu)
    file = KernelFile.read(Path(args.file))
    dtypes = [TYPES[args.dtype]] if args.dtype else list(contract.dtypes)
    if unknown := set(dtypes) - set(contract.dtypes):
        raise LabError(f"{contract.name} is not judged in {', '.join(unknown)}.")
    all_passed = True
    found = gates(file, contract, dtypes, gpu, measure=args.measure)
    for number, (gate, passed, words) in enumerate(found, 1):
        first, *more = words.splitlines()
        _write([f"{number} {gate:<11}{first}", *(f"{'':<13}{line}" for line in more)])
        all_passed = passed
    if args.train and all_passed:
        _write(_trained(file, contract, args.train))
    return 0 if all_passed else 1


def _trained(file: KernelFile, contract: Contract, steps: int) -> list[str]:
    setting, losses = losses_beside(file, contract, steps)
    lines = [
        f"5 training   {setting.model}, B {setting.B}, T {setting.T}: loss with your kernel, ours"
    ]
    shown = sorted({0, steps // 2, steps - 1})
    lines += [f"{'':<13}step {i + 1:<5}{losses[i][0]:.4f}   {losses[i][1]:.4f}" for i in shown]
    most = max(abs(theirs - own) for theirs, own in losses)
    return [*lines, f"{'':<13}largest difference in {steps} steps: {most:.1e}"]


def _find_contract(name: str) -> Contract:
    if name not in CONTRACTS:
        ops = "\n".join(f"  {c.name}: {c.summary}\n    {c.parameters}" for c in CONTRACTS.values())
        raise LabError(f"there is no op {name}. There are:\n{ops}")
    return CONTRACTS[name]


# ---- the command line ---------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.lab",
        description="Learn, write and judge CUDA kernels, without a GPU.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=_list, needs_compiler=True)
    commands = parser.add_subparsers(metavar="COMMAND")

    ladder = commands.add_parser("ladder", help="all rungs of an operation in one table")
    ladder.add_argument("name", help=", ".join(LADDERS))
    ladder.add_argument("--json", action="store_true", help="all figures, for programs")
    ladder.add_argument("--measure", action="store_true", help="time the rungs on this GPU too")
    _add_target(ladder)
    ladder.set_defaults(run=_ladder)

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
    check.add_argument("exercise", nargs="+", help="its name, or the file")
    check.add_argument("--hint", type=int, nargs="?", const=1, help="show hint number HINT")
    check.set_defaults(run=_check)

    own = commands.add_parser("try", help="judge a kernel of your own")
    own.add_argument("file", help="a .cu file with a line `// lab: grid = ..., block = ...`")
    own.add_argument("--as", dest="op", required=True, help=", ".join(CONTRACTS))
    own.add_argument("--measure", action="store_true", help="time it on this GPU too")
    own.add_argument(
        "--train", type=int, metavar="N", help="train N steps with it in place of ours"
    )
    _add_target(own)
    own.set_defaults(run=_try)
    return parser


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", default=DEFAULT_GPU.name, help="for the estimate (%(default)s)")
    parser.add_argument("--dtype", choices=TYPES, help="the type of floatX")


if __name__ == "__main__":
    sys.exit(main())
