"""Cross-entropy: how threads join their results."""

from cupygpt.lab.exercises.exercise import Exercise, Goal, Hole, WrongAnswer
from cupygpt.lab.ladders import LADDERS

_, _TWO, _THREE, _FOUR, _ = LADDERS["cross_entropy"].rungs
_TREE = "threadIdx.x < half", "shared[threadIdx.x + half]"

EXERCISES = (
    Exercise(
        "cross_entropy_2",
        "fill",
        _TWO,
        "The tree: in each level the lower half of the threads takes the upper half's values. "
        "Which threads work, and whose value does a thread take?",
        (
            "With 256 values and half = 128, thread 0 takes value 128.",
            "A value that is read in a level must not be written in the same level.",
        ),
        holes=(
            Hole("if (threadIdx.x < half)", "threadIdx.x < half"),
            Hole("other = shared[threadIdx.x + half]", "threadIdx.x + half"),
        ),
        wrong=(
            WrongAnswer({1: _TREE[0], 2: "threadIdx.x + 1"}, "race in line "),
            WrongAnswer({1: "threadIdx.x <= half", 2: "threadIdx.x + half"}, "out of bounds"),
        ),
    ),
    Exercise(
        "cross_entropy_2_barriers",
        "predict",
        _TWO,
        "How many barriers does a block of 256 threads pass in this kernel?",
        (
            "Two calls of join, and one barrier behind them.",
            "In join: one after the values are written, one for each level, one at the end.",
            "256, 128, 64, ...: how many levels?",
        ),
        goals=(Goal("barriers per block", 21),),
        sizes={"N": 3, "V": 65, "Vp": 128},
        wrong=(WrongAnswer({1: "8"}, "not 8"),),
    ),
    Exercise(
        "cross_entropy_2_reuse",
        "repair",
        _TWO,
        "join is called twice, and both calls use the same array. Sometimes a thread gets a "
        "value of the wrong call. Repair it.",
        (
            "What may a fast thread do while a slow one still reads shared[0]?",
            "One barrier is missing.",
        ),
        faults=(("    __syncthreads();  // all have read it before the next call writes\n", ""),),
        wrong=(WrongAnswer({}, "race in line "),),
    ),
    Exercise(
        "cross_entropy_2_levels",
        "repair",
        _TWO,
        "The levels of the tree run into each other. Repair the kernel.",
        ("A level reads what the level before has written.", "Where must all threads meet?"),
        faults=(
            (
                "        }\n        __syncthreads();\n    }\n    const float result",
                "        }\n    }\n    const float result",
            ),
        ),
        wrong=(WrongAnswer({}, "race in line "),),
    ),
    Exercise(
        "cross_entropy_3_target",
        "repair",
        _THREE,
        "One line reads a logit that other threads are already overwriting. Repair it.",
        (
            "The gradient replaces the logits in place.",
            "Read the target's logit early, before a barrier that is there anyway.",
        ),
        faults=(("(target_logit - largest)", "(to_float(row[target]) - largest)"),),
        wrong=(WrongAnswer({}, "race in line "),),
    ),
    Exercise(
        "cross_entropy_4",
        "fill",
        _FOUR,
        "A thread sums exp(x - largest so far). By what is the sum multiplied when a larger x "
        "comes, and how does it enter the sum of the row?",
        (
            "Each term is exp(x - old) and should be exp(x - new).",
            "At the end all threads must use the same largest logit.",
        ),
        holes=(
            Hole("own_sum *= __expf(own_largest - x)", "__expf(own_largest - x)"),
            Hole(
                "block_sum(own_sum * __expf(own_largest - largest))",
                "own_sum * __expf(own_largest - largest)",
            ),
        ),
        wrong=(
            WrongAnswer(
                {1: "__expf(x - own_largest)", 2: "own_sum * __expf(own_largest - largest)"},
                "wrong: float32, ",
            ),
            WrongAnswer({1: "__expf(own_largest - x)", 2: "own_sum"}, "wrong: float32, "),
        ),
    ),
)
