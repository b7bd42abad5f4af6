"""Before the ladders: eight kernels of three lines, and a number to predict for each."""

import numpy as np

from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.exercises.exercise import Exercise, Goal, WrongAnswer
from cupygpt.lab.ladders import Rung

_COPY = Contract(
    "copy",
    "out is made of inp, N numbers",
    "out:f32* inp:f32* N:i32",
    awkward=({"N": 4096},),
    large={"N": 4096},
    inputs=lambda s, rng: {"inp": rng.standard_normal(s["N"])},
    want=lambda s, v: {"out": np.copy(v["inp"])},
    terms=lambda s: 1,
    written=("out",),
    dtypes=("float32",),
)

_SECTORS = (
    "Memory moves sectors of 32 bytes, each of which begins at a multiple of 32.",
    "Write down which bytes lane 0 asks for, lane 1, lane 2, ..., lane 31.",
    "How many different sectors do these bytes lie in?",
)


def _predict(
    file: str, question: str, counter: str, value: float, hints: tuple[str, ...], wrong: str
) -> Exercise:
    return Exercise(
        f"warm_up_{file}",
        "predict",
        Rung(0, question, f"lab/warm_up/{file}.cu", _COPY),
        question,
        hints,
        goals=(Goal(counter, value),),
        wrong=(WrongAnswer({1: wrong}, "not "), WrongAnswer({}, "the answer is still ?")),
    )


EXERCISES = (
    _predict(
        "copy",
        "32 neighbouring lanes read 32 neighbouring floats: how many sectors of 32 bytes does one "
        "load of a warp ask for?",
        "sectors per load",
        4,
        _SECTORS,
        "32",
    ),
    _predict(
        "packs",
        "Now each lane reads 16 bytes. How many sectors does one load of a warp ask for?",
        "sectors per load",
        16,
        _SECTORS,
        "4",
    ),
    _predict(
        "shifted",
        "The same copy, but it begins 4 bytes after a multiple of 32. How many sectors does a "
        "load of a warp ask for? (The last lane of the last warp reads from the beginning: the "
        "counter is the average, and may differ from a whole number by one in a hundred.)",
        "sectors per load",
        5,
        _SECTORS,
        "4",
    ),
    _predict(
        "stride",
        "Neighbouring lanes read floats that lie 16 bytes apart. How many sectors does a load of "
        "a warp ask for, to use 128 bytes?",
        "sectors per load",
        16,
        _SECTORS,
        "4",
    ),
    _predict(
        "broadcast",
        "All lanes read the same float. How many sectors does a load of a warp ask for?",
        "sectors per load",
        1,
        _SECTORS,
        "32",
    ),
    _predict(
        "transpose",
        "Reads are side by side. How many sectors does one store of a warp ask for?",
        "sectors per store",
        32,
        (
            "Two neighbouring lanes write to places that lie `rows` floats apart.",
            "`rows` is 128 here: 512 bytes. Do two lanes ever share a sector?",
        ),
        "4",
    ),
    _predict(
        "turns",
        "Shared memory has 32 banks; word w lies in bank w mod 32. A bank gives one word in a "
        "turn. How many turns does the read of a column by a warp take?",
        "turns per shared read",
        32,
        (
            "Lane x reads tile[x][y]: word 32 x + y.",
            "What is (32 x + y) mod 32 for the lanes x = 0 to 31?",
        ),
        "1",
    ),
    _predict(
        "divergence",
        "A warp goes both ways of the `if`, one after the other. How many percent of its lanes "
        "are busy while it computes the logarithm?",
        "percent of lanes busy in special functions",
        25,
        ("Which lanes of 32 have i % 4 == 0?",),
        "100",
    ),
)
