"""Reference curves: what known runs reached on known data, to hold a run against.

reference_curves.json holds them, with the hashes of the token files that they belong to, and the
command that made each. `tools/make_reference.py` makes an entry from a run folder.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CURVES = Path(__file__).with_name("reference_curves.json")


@dataclass(frozen=True)
class ReferenceCurve:
    """The validation losses of a known run, in nats per token, by the tokens it had trained on."""

    name: str
    tokens: tuple[int, ...]
    losses: tuple[float, ...]

    def at(self, tokens: int) -> float | None:
        """The loss after so many tokens, between two known ones; None beyond the ends."""
        if not self.tokens[0] <= tokens <= self.tokens[-1]:
            return None
        return float(np.interp(tokens, self.tokens, self.losses))

    @property
    def best(self) -> float:
        """The lowest loss."""
        return min(self.losses)


def find_reference(
    data: Mapping[str, Any], num_parameters: int, curves: Path = CURVES
) -> ReferenceCurve | None:
    """The curve of the model nearest in size on the same data, as a run's record names them."""
    hashes = hashes_of(data)
    known = [
        entry
        for entry in json.loads(curves.read_text(encoding="utf-8"))
        if entry["data"] == hashes and entry["data"]["val"]
    ]
    if not known:
        return None
    nearest = min(known, key=lambda entry: abs(math.log(entry["parameters"] / num_parameters)))
    tokens, losses = zip(*nearest["curve"], strict=True)
    return ReferenceCurve(nearest["name"], tokens, losses)


def hashes_of(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """The hashes of the training and validation files in a run's record."""
    return {part: [shard["sha256"] for shard in data[part]] for part in ("train", "val")}
