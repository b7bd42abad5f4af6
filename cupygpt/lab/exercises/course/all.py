"""All exercises, in the order of the course."""

from cupygpt.lab.exercises.course import (
    adamw,
    attention,
    column_sum,
    cross_entropy,
    gelu,
    layernorm,
    matmul,
    warm_up,
)
from cupygpt.lab.exercises.exercise import Exercise

COURSE: dict[str, tuple[Exercise, ...]] = {
    "warm_up": warm_up.EXERCISES,
    "gelu": gelu.EXERCISES,
    "layernorm": layernorm.EXERCISES,
    "cross_entropy": cross_entropy.EXERCISES,
    "column_sum": column_sum.EXERCISES,
    "matmul": matmul.EXERCISES,
    "attention": attention.EXERCISES,
    "adamw": adamw.EXERCISES,
}
"""By ladder, and the warm-up first."""

EXERCISES = {exercise.name: exercise for ladder in COURSE.values() for exercise in ladder}
"""By name."""
