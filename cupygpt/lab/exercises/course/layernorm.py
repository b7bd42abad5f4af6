"""LayerNorm: who reads which column, and how often."""

from cupygpt.lab.exercises.exercise import Exercise, Goal, Hole, WrongAnswer
from cupygpt.lab.ladders import LADDERS

_ONE, _TWO, _THREE = LADDERS["layernorm"].rungs[:3]

EXERCISES = (
    Exercise(
        "layernorm_1_sectors",
        "predict",
        _ONE,
        "One thread walks along each row. How many sectors does one load of a warp from inp ask "
        "for, with 128 rows of 64 floats?",
        (
            "Neighbouring lanes stand at the same column of neighbouring rows.",
            "They are 64 floats apart: 256 bytes.",
        ),
        goals=(Goal("sectors per load of inp", 32),),
        sizes={"N": 128, "C": 64},
        wrong=(WrongAnswer({1: "4"}, "not 4"),),
    ),
    Exercise(
        "layernorm_2",
        "fill",
        _TWO,
        "A warp has a row. Where does a lane begin, how far is its next column, and how do the "
        "lanes get the sum of all?",
        (
            "Neighbouring lanes should read neighbouring columns.",
            "After the loop each lane has the sum of its own columns only.",
            "warp_sum(x) of lib/reduce.cuh gives every lane the sum of x over the warp.",
        ),
        holes=(
            Hole("for (int c = lane; c < C; c += WARP) sum", "lane"),
            Hole("c < C; c += WARP) sum", "WARP"),
            Hole("m = warp_sum(sum) / C", "warp_sum(sum)"),
        ),
        goals=(Goal("times the bytes of inp", 3.1),),
        sizes={"N": 8, "C": 256},
        wrong=(
            WrongAnswer({1: "0", 2: "1", 3: "sum"}, "right, but it moves "),
            WrongAnswer({1: "lane", 2: "WARP", 3: "sum"}, "wrong: float32, N 1, C 8"),
            WrongAnswer({1: "lane", 2: "1", 3: "warp_sum(sum)"}, "wrong: float32, N 1, C 8"),
        ),
    ),
    Exercise(
        "layernorm_3",
        "fill",
        _THREE,
        "The row stays in registers. Which column is number i of a lane, and which of these "
        "numbers count for the variance?",
        (
            "The loop that writes uses the same order.",
            "Behind column C stand zeros. Their distance from the mean is not zero.",
        ),
        holes=(
            Hole("const int c = i * WARP + lane;\n        x[i]", "i * WARP + lane"),
            Hole("if (i * WARP + lane < C) squares", "i * WARP + lane < C"),
        ),
        wrong=(
            WrongAnswer({1: "lane * COLUMNS + i", 2: "i * WARP + lane < C"}, "wrong: float32"),
            WrongAnswer({1: "i * WARP + lane", 2: "true"}, "wrong: float32, N 1, C 8"),
        ),
    ),
    Exercise(
        "layernorm_2_variance",
        "repair",
        _TWO,
        "The results are a little off, most of all in short rows. What is wrong?",
        (
            "The mean of the squares is meant, not the estimate of a statistician.",
            "Look at what the sum of the squares is divided by.",
        ),
        faults=(("warp_sum(squares) / C + epsilon", "warp_sum(squares) / (C - 1) + epsilon"),),
        wrong=(WrongAnswer({}, "wrong: float32, N 1, C 8: "),),
    ),
    Exercise(
        "layernorm_2_edge",
        "repair",
        _TWO,
        "The last block has more warps than there are rows left. Repair the kernel.",
        (
            "Each of the four warps takes its own row n; some of these rows do not exist.",
            "A warp without a row must return as a whole.",
        ),
        faults=(("    if (n >= N) return;  // the same in all lanes\n", ""),),
        wrong=(WrongAnswer({}, "out of bounds in line "),),
    ),
    Exercise(
        "layernorm_once",
        "improve",
        _TWO,
        "This is rung 2: it reads each row three times. Change it so that inp is read once: at "
        "most 1.1 times its bytes are moved.",
        (
            "Keep the lane's columns in an array of registers: its length must be a constant.",
            "`// lab: ..., COLUMNS = ceil_div(C, 32)` makes one of the sizes.",
            "All loops over the array need `#pragma unroll`.",
        ),
        goals=(Goal("times the bytes of inp", 1.1),),
        sizes={"N": 8, "C": 256},
        wrong=(WrongAnswer({}, "right, but it moves 3 times the bytes of inp"),),
    ),
)
