"""Matrix product: how often a number is fetched."""

from cupygpt.lab.exercises.exercise import Exercise, Goal, Hole, WrongAnswer
from cupygpt.lab.ladders import LADDERS

_ONE, _TWO, _THREE, _FOUR = LADDERS["matmul"].rungs[:4]
_SQUARE = {"M": 64, "N": 64, "K": 64}
_BANK_HINTS = ("Word w of shared memory lies in bank w mod 32.", "Lane x reads row x of the tile.")

EXERCISES = (
    Exercise(
        "matmul_2_turns",
        "predict",
        _TWO,
        "In the loop over k, how many turns does a warp's read of b_tile take?",
        _BANK_HINTS,
        goals=(Goal("turns per shared read of b_tile", 32),),
        sizes=_SQUARE,
        wrong=(WrongAnswer({1: "1"}, "not 1"),),
    ),
    Exercise(
        "matmul_3_turns",
        "predict",
        _THREE,
        "And with rows of 33 words?",
        (*_BANK_HINTS, "What is (33 x + k) mod 32 for x = 0 to 31?"),
        goals=(Goal("turns per shared read of b_tile", 1),),
        sizes=_SQUARE,
        wrong=(WrongAnswer({1: "32"}, "not 32"),),
    ),
    Exercise(
        "matmul_3",
        "fill",
        _THREE,
        "How long must a row of b_tile be so that the 32 words of a column lie in 32 banks?",
        (*_BANK_HINTS, "It must hold at least 32 words."),
        holes=(Hole("b_tile[32][33];", "33"),),
        goals=(Goal("turns per shared read of b_tile", 1.1),),
        sizes=_SQUARE,
        wrong=(
            WrongAnswer({1: "32"}, "right, but turns per shared read of b_tile: 32; the goal is"),
            WrongAnswer({1: "34"}, "right, but turns per shared read of b_tile: 2; the goal is"),
            WrongAnswer({1: "31"}, "out of bounds in line "),
        ),
    ),
    Exercise(
        "matmul_2_barrier",
        "repair",
        _TWO,
        "Fast warps copy the next tile while slow ones still use this one. Repair the kernel.",
        ("One barrier is there. Where is the other one needed?",),
        faults=(
            (
                "sum += a_tile[y][k] * b_tile[x][k];\n        __syncthreads();",
                "sum += a_tile[y][k] * b_tile[x][k];",
            ),
        ),
        wrong=(WrongAnswer({}, "race in line "),),
    ),
    Exercise(
        "matmul_2_edge",
        "repair",
        _TWO,
        "This is right where K is a multiple of 32. Repair it for the others.",
        (
            "The last tile is not full: what stands in its last columns?",
            "What is multiplied by 0 on one side must still be a number on the other.",
        ),
        faults=(("b_row < N && k0 + x < K ?", "b_row < N ?"),),
        wrong=(WrongAnswer({}, "out of bounds in line "),),
    ),
    Exercise(
        "matmul_4",
        "fill",
        _FOUR,
        "Thread (x, y) has 4 rows of the tile. Which row of the tile is the thread's i-th row "
        "(i = 0 to 3)? Hole 1 reads it, hole 2 writes it.",
        (
            "16 threads y share 64 rows.",
            "The copying loop above shows an order with neighbours side by side.",
        ),
        holes=(
            Hole("row[i] = a_tile[k][y + 16 * i]", "y + 16 * i"),
            Hole("const int m = m0 + y + 16 * i, n", "y + 16 * i"),
        ),
        wrong=(
            WrongAnswer({1: "4 * y + i", 2: "y + 16 * i"}, "wrong: float32, M 37, N 72, K 40"),
            WrongAnswer({1: "y + 16 * i", 2: "y + i"}, "race in line "),
        ),
    ),
    Exercise(
        "matmul_less",
        "improve",
        _ONE,
        "This is rung 1. Change it so that it moves at most 2.5 times what it must read, for "
        "64 x 64 x 64.",
        (
            "A block that makes 32 x 32 elements needs 32 rows of a and 32 rows of b.",
            "Copy tiles of 32 x 32 to shared memory, meet, use them, meet.",
        ),
        goals=(Goal("times the bytes it must read", 2.5),),
        sizes=_SQUARE,
        wrong=(WrongAnswer({}, "right, but it moves "),),
    ),
)
