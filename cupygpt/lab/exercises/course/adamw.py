"""AdamW: when memory is the limit from the start."""

from cupygpt.lab.exercises.exercise import Exercise, Goal, Hole, WrongAnswer
from cupygpt.lab.ladders import LADDERS

_ONE, _ = LADDERS["adamw"].rungs

EXERCISES = (
    Exercise(
        "adamw_1",
        "fill",
        _ONE,
        "m begins at 0 and is too small at first. controls[1] is 1 - beta1^t. What is the step "
        "divided by the denominator?",
        ("The unbiased mean is m / (1 - beta1^t).",),
        holes=(Hole("lr * (m[i] / controls[1] / denominator", "m[i] / controls[1]"),),
        wrong=(
            WrongAnswer({1: "m[i]"}, "wrong: float32, N 8: params["),
            WrongAnswer({1: "gradient / controls[1]"}, "wrong: float32, N 8: params["),
        ),
    ),
    Exercise(
        "adamw_1_moment",
        "repair",
        _ONE,
        "One of the moments is not what AdamW says. Repair it.",
        ("v is the mean of the squares.",),
        faults=(("(1.0f - beta2) * gradient * gradient", "(1.0f - beta2) * gradient"),),
        wrong=(WrongAnswer({}, "wrong: float32, N 8: "),),
    ),
    Exercise(
        "adamw_packs",
        "improve",
        _ONE,
        "This is rung 1. Change it so that 4096 parameters need at most 300 loads of warps.",
        (
            "Four arrays are read, by 128 warps: 512 loads, and the three numbers of controls "
            "and the norm for each warp.",
            "A store to one array may change another, for all that the compiler knows: read what "
            "all elements need before the first store.",
            "load<4>(params + i) reads four floats at once, store(params + i, pack) writes them.",
        ),
        goals=(Goal("loads of warps", 300),),
        sizes={"N": 4096},
        wrong=(WrongAnswer({}, "right, but loads of warps: "),),
    ),
)
