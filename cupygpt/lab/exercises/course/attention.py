"""Attention: what need not be stored."""

from cupygpt.lab.exercises.exercise import Exercise, Goal, Hole, WrongAnswer
from cupygpt.lab.ladders import LADDERS

_, _TWO, _THREE = LADDERS["attention"].rungs[:3]

EXERCISES = (
    Exercise(
        "attention_2",
        "fill",
        _TWO,
        "A key with a larger score has come: both sums so far are too large. By which factor are "
        "they scaled down, and what is the weight of the key?",
        (
            "The terms are exp(score - old largest), and should be exp(score - new largest).",
            "The weight of a key is relative to the largest score so far.",
        ),
        holes=(
            Hole("scale = __expf(largest - score);", "__expf(largest - score)"),
            Hole("weight = __expf(score - largest);", "__expf(score - largest)"),
        ),
        wrong=(
            WrongAnswer(
                {1: "__expf(score - largest)", 2: "__expf(score - largest)"},
                "wrong: float32, B 1, T 1, NH 1, HS 16: ",
            ),
            WrongAnswer(
                {1: "__expf(largest - score)", 2: "__expf(score)"},
                "wrong: float32, B 1, T 1, NH 1, HS 16: ",
            ),
        ),
    ),
    Exercise(
        "attention_2_causal",
        "repair",
        _TWO,
        "A query must see itself and what is before it. Repair the loop.",
        ("What does the first query see?",),
        faults=(("for (int s = 0; s <= t; s++)", "for (int s = 0; s < t; s++)"),),
        wrong=(WrongAnswer({}, "wrong: float32, B 1, T 1, NH 1, HS 16: "),),
    ),
    Exercise(
        "attention_3",
        "fill",
        _THREE,
        "How far does a thread go in the present tile?",
        (
            "Not further than the tile, and not further than its own query.",
            "`s < ...`: the first key that does not count any more.",
        ),
        holes=(Hole("s < min(first + KEYS, t + 1)", "min(first + KEYS, t + 1)"),),
        wrong=(
            WrongAnswer({1: "min(first + KEYS, T)"}, "wrong: float32, B 2, T 37, NH 2, HS 32: "),
            WrongAnswer({1: "t + 1"}, "out of bounds in line "),
        ),
    ),
    Exercise(
        "attention_3_barrier",
        "repair",
        _THREE,
        "The next tile overwrites the present one too early. Repair the kernel.",
        ("When may the first thread begin to copy the next tile?",),
        faults=(("        __syncthreads();  // nobody uses the last tile any more\n", ""),),
        wrong=(WrongAnswer({}, "race in line "),),
    ),
    Exercise(
        "attention_3_turns",
        "predict",
        _THREE,
        "All lanes of a warp read the same number of a key. How many turns does such a read take?",
        ("A bank can give its word to all lanes that ask for it, in one turn.",),
        goals=(Goal("turns per shared read of keys", 1),),
        sizes={"B": 1, "T": 64, "NH": 1, "HS": 16},
        wrong=(WrongAnswer({1: "32"}, "not 32"),),
    ),
)
