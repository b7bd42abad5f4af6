"""Column sum: threads enough, neighbours side by side, and a fixed order."""

from cupygpt.lab.exercises.exercise import Exercise, Goal, Hole, WrongAnswer
from cupygpt.lab.ladders import LADDERS

_ONE, _TWO, _THREE, _ = LADDERS["column_sum"].rungs
_MATRIX = {"N": 256, "OC": 64}

EXERCISES = (
    Exercise(
        "column_sum_1_sectors",
        "predict",
        _ONE,
        "The lanes of a warp stand in one column. How many sectors does a load ask for, in a "
        "matrix with 64 columns of floats?",
        ("Neighbouring lanes are one row apart: 256 bytes.",),
        goals=(Goal("sectors per load of dout", 32),),
        sizes=_MATRIX,
        wrong=(WrongAnswer({1: "4"}, "not 4"),),
    ),
    Exercise(
        "column_sum_2_sectors",
        "predict",
        _TWO,
        "Now neighbouring lanes have neighbouring columns. How many sectors does a load ask for?",
        ("32 floats side by side.",),
        goals=(Goal("sectors per load of dout", 4),),
        sizes=_MATRIX,
        wrong=(WrongAnswer({1: "32"}, "not 32"),),
    ),
    Exercise(
        "column_sum_2",
        "fill",
        _TWO,
        "dout (N, OC) lies row after row. Where is the number in row n of the thread's column?",
        (
            "Row 0 has the numbers 0 to OC - 1; row 1 begins at OC.",
            "N * OC may be larger than 2^31: one factor must be a long long.",
        ),
        holes=(Hole("dout[(long long)n * OC + column]", "(long long)n * OC + column"),),
        goals=(Goal("sectors per load of dout", 4.5),),
        sizes=_MATRIX,
        wrong=(
            WrongAnswer({1: "(long long)column * N + n"}, "wrong: float32, N 300, OC 40"),
            WrongAnswer({1: "(long long)(n + 1) * OC + column"}, "out of bounds in line "),
        ),
    ),
    Exercise(
        "column_sum_3",
        "fill",
        _THREE,
        "gridDim.y blocks share the rows. Which row is a block's first, and how far is its next "
        "one?",
        ("blockIdx.y is the block's number, 0 to gridDim.y - 1.",),
        holes=(
            Hole("n = blockIdx.y; n < N", "blockIdx.y"),
            Hole("n < N; n += gridDim.y", "gridDim.y"),
        ),
        wrong=(
            WrongAnswer({1: "0", 2: "gridDim.y"}, "wrong: float32, N 300, OC 40"),
            WrongAnswer({1: "blockIdx.y", 2: "1"}, "wrong: float32, N 300, OC 40"),
        ),
    ),
    Exercise(
        "column_sum_3_race",
        "repair",
        _THREE,
        "Blocks lose each other's sums. Repair the last line. (The order of the sum may differ "
        "from run to run; a kernel of the trainer must not do that, see rung 4.)",
        (
            "`x += y` is a read and a write; another block may write in between.",
            "atomicAdd(address, value) does both at once.",
        ),
        faults=(("atomicAdd(&dbias[column], sum);", "dbias[column] += sum;"),),
        wrong=(WrongAnswer({}, "race in line "),),
    ),
    Exercise(
        "column_sum_side_by_side",
        "improve",
        _ONE,
        "This is rung 1. Change it so that a load asks for at most 4.5 sectors and no warp "
        "loads more than 40 times, without atomics, for 256 rows of 64 columns. So the order of "
        "each sum stays the same in all runs.",
        (
            "Give each warp a group of 32 neighbouring columns, and each of the block's warps "
            "every 8th row.",
            "The 8 warps' sums meet in shared memory: 8 x 32 floats.",
        ),
        goals=(
            Goal("sectors per load of dout", 4.5),
            Goal("loads of the warp that loads most", 40),
            Goal("atomics", 0),
        ),
        sizes=_MATRIX,
        wrong=(
            WrongAnswer({}, "right, but sectors per load of dout: 32; the goal is at most 4.5"),
        ),
    ),
)
