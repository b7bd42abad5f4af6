"""A run that has ended: its history, and its models."""

from collections.abc import Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cupygpt.files import user_path
from cupygpt.interface import arguments
from cupygpt.interface.load import load
from cupygpt.interface.model import Model
from cupygpt.interface.words import speaking_python
from cupygpt.run_folder.log import read_metrics

Steps = npt.NDArray[np.int64]
Losses = npt.NDArray[np.float64]


class TrainedRun:
    """A run in its `folder`, with all that it has logged there, also before it was resumed.

    `stopped_by` says what ended it early, as "SIGINT" for Ctrl-C; None if nothing did.
    """

    def __init__(self, folder: str | PathLike[str], stopped_by: str | None = None) -> None:
        self.folder = user_path(arguments.path_text(folder, what="the folder"))
        self.stopped_by = stopped_by

    @cached_property
    def steps(self) -> Steps:
        """The steps (n,) of `losses`: how many updates the weights had had, from 0 on."""
        return np.array([event["step"] for event in self._events("train")], np.int64)

    @cached_property
    def losses(self) -> Losses:
        """The training loss (n,) of each step, in nats per token."""
        return np.array([event["loss"] for event in self._events("train")], np.float64)

    @cached_property
    def validation_steps(self) -> Steps:
        """The steps (m,) of `validation_losses`, counted as `steps`."""
        return np.array([event["step"] for event in self._events("val")], np.int64)

    @cached_property
    def validation_losses(self) -> Losses:
        """The validation losses (m,), in nats per token."""
        return np.array([event["loss"] for event in self._events("val")], np.float64)

    @cached_property
    def samples(self) -> list[tuple[int, str]]:
        """The samples: the step of each, and its text."""
        return [(event["step"], event["text"]) for event in self._events("sample")]

    @speaking_python
    def load(
        self, which: str | int = "best", device: str = "auto", precision: str | None = None
    ) -> Model:
        """The model of the run: its "best" weights, the "newest", or those of a step.

        The other arguments are those of `cupygpt.load`.
        """
        name = str(self.folder) if which == "best" else f"{self.folder}@{which}"
        return load(name, device, precision)

    def __repr__(self) -> str:
        ended = f", stopped by {self.stopped_by}" if self.stopped_by else ""
        losses = self.validation_losses
        best = f", best validation loss {np.nanmin(losses):.4f}" if len(losses) else ""
        return f"<cupygpt.TrainedRun {self.folder}: {len(self.steps):,} steps{best}{ended}>"

    def _events(self, kind: str) -> Iterator[dict[str, Any]]:
        return (event for event in self._all_events if event["kind"] == kind)

    @cached_property
    def _all_events(self) -> list[dict[str, Any]]:
        return list(read_metrics(Path(self.folder)))
