"""What may be asked of a text that a model writes."""

from cupygpt.flags.field import AT_LEAST_1, NOT_NEGATIVE, SEED, Range

RANGES = {
    "tokens": AT_LEAST_1,
    "num": AT_LEAST_1,
    "window": AT_LEAST_1,
    "temperature": Range(NOT_NEGATIVE.holds, "0 or more, and finite"),
    "top_k": NOT_NEGATIVE,
    "top_p": Range(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "seed": SEED,
}
"""The numbers of `sample` and of `Model.generate`."""
