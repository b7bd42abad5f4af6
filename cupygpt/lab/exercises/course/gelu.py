"""GELU: what a function costs, and what a request is."""

from cupygpt.lab.exercises.exercise import Exercise, Goal, Hole, WrongAnswer
from cupygpt.lab.ladders import LADDERS

_ONE, _TWO, _THREE, _ = LADDERS["gelu"].rungs

EXERCISES = (
    Exercise(
        "gelu_2",
        "fill",
        _TWO,
        "gelu(x) is x times the logistic function of 2u. What is x divided by?",
        (
            "The logistic function of y is 1 / (1 + exp(-y)).",
            "For a large negative x the result must be 0, not x.",
        ),
        holes=(Hole("__fdividef(x, 1.0f + __expf(-twice_u))", "1.0f + __expf(-twice_u)"),),
        wrong=(
            WrongAnswer({1: "1.0f + __expf(twice_u)"}, "wrong: float32, N 8: out["),
            WrongAnswer({1: "1.0f - __expf(-twice_u)"}, "wrong: float32, N 8"),
            WrongAnswer({}, "hole 1 in line "),
        ),
    ),
    Exercise(
        "gelu_3",
        "fill",
        _THREE,
        "A thread takes a pack of PACK_SIZE numbers. Where does it begin, and how many numbers "
        "does the loop have?",
        (
            "Thread 0 has the numbers 0 to PACK_SIZE - 1; thread 1 begins at PACK_SIZE.",
            "A pack has 16 bytes: 4 floats, but 8 numbers in bfloat16.",
        ),
        holes=(
            Hole("i = global_thread() * PACK_SIZE;", "global_thread() * PACK_SIZE"),
            Hole("k < PACK_SIZE; k++", "PACK_SIZE"),
        ),
        wrong=(
            WrongAnswer({1: "global_thread()", 2: "PACK_SIZE"}, "misaligned access in line "),
            WrongAnswer({1: "global_thread() * PACK_SIZE", 2: "4"}, "wrong: bfloat16, N 8"),
            WrongAnswer({1: "global_thread() * PACK_SIZE"}, "hole 2 in line "),
        ),
    ),
    Exercise(
        "gelu_3_edge",
        "repair",
        _THREE,
        "This kernel is right where N fills whole blocks. Elsewhere it writes behind the array. "
        "Repair it.",
        (
            "256 threads of a block start, however few packs are left.",
            "A thread that has no pack must return before it reads.",
        ),
        faults=(("    if (i >= N) return;\n", ""),),
        wrong=(WrongAnswer({}, "out of bounds in line "),),
    ),
    Exercise(
        "gelu_faster",
        "improve",
        _ONE,
        "This is rung 1. Change it so that a warp asks memory for at least four times as much "
        "with each load: at most 64 loads of warps for 8192 floats.",
        (
            "A load of 16 bytes per lane is `load_pack`; a store is `store`.",
            "The launch needs fewer threads: `grid = ceil_div(N, 256 * PACK_SIZE)`.",
        ),
        goals=(Goal("loads of warps", 64),),
        sizes={"N": 8192},
        wrong=(WrongAnswer({}, "right, but loads of warps: 256; the goal is at most 64"),),
    ),
)
