"""Training as a function: the flags of the command are its keywords."""

import inspect
import io
import os
import sys
import time
from contextlib import nullcontext
from typing import Any

from cupygpt.console.console import Console
from cupygpt.console.notebook import NotebookBar, in_notebook
from cupygpt.device.callers import keeping_current
from cupygpt.distributed.launcher_env import find_rank_info
from cupygpt.distributed.ranks import ONE_RANK, Ranks
from cupygpt.errors import ConfigError
from cupygpt.flags.config import TrainConfig
from cupygpt.flags.keywords import given_by_keywords, signature_parameters
from cupygpt.interface.events import Callback, Event, EventConsole, Stop
from cupygpt.interface.trained_run import TrainedRun
from cupygpt.interface.words import speaking_python
from cupygpt.training.start import Caller, train_rank


@speaking_python
def train_model(
    *, on_event: Callback | None = None, quiet: bool = False, **options: Any
) -> TrainedRun:
    """Train as `python -m cupygpt.train` does, and return the run with its history.

    The options are the command's long flags, with _ for -: `train_data="mytext_train.bin"`,
    `minutes=2`, `resume=True`. Without any the demo is trained. `on_event` is called with each
    `Event`: steps, validations, samples, checkpoints.

    A notebook shows a bar and lines, a terminal a live bar, a file lines; with `quiet` nothing is
    printed. Ctrl-C (the stop button of a notebook) ends the run after its step, with a checkpoint,
    and the run so far is returned; before the first step KeyboardInterrupt is raised, and nothing
    stays. So does a KeyboardInterrupt of `on_event`; any other error of it is raised when the run
    has been saved. The function also works on another thread than the main one, which gets no
    Ctrl-C.

    Raises ConfigError for options that do not exist or do not fit together, other CupyGPTErrors as
    the command reports them.
    """
    began = time.perf_counter()
    given = given_by_keywords(options)
    config = TrainConfig(**given)
    if on_event is not None and not callable(on_event):
        raise ConfigError(f"on_event must be a function, not {type(on_event).__name__}.")
    _refuse_several_ranks()
    stop = Stop()

    def tell(event: Event) -> None:
        if on_event is not None:
            stop.tell(on_event, event)

    def make_console(config: TrainConfig, _ranks: Ranks) -> Console:
        stop.console = _console(config, tell, quiet=quiet)
        return stop.console

    caller = Caller(make_console, nullcontext, lambda _console, _ranks: stop)
    with keeping_current():
        run = train_rank(config, given, ONE_RANK, began, caller)
    if stop.error is not None:
        raise stop.error
    return TrainedRun(run.folder, run.stopped_by)


def _console(config: TrainConfig, tell: Any, *, quiet: bool) -> EventConsole:
    silent = quiet or sys.stdout is None
    draws = not (silent or config.no_bar)
    return EventConsole(
        tell,
        stream=_Nowhere() if silent else sys.stdout,
        terminal=None if draws else False,
        notebook=NotebookBar() if draws and in_notebook() else None,
        log_every=config.log_every,
    )


class _Nowhere(io.TextIOBase):
    """A stream that forgets what is written."""

    def write(self, text: str) -> int:
        return len(text)


def _refuse_several_ranks() -> None:
    place = find_rank_info(os.environ)
    if place is not None:
        raise ConfigError(
            f"this process is rank {place.rank} of {place.world} ({place.launcher}), but a Python "
            f"program trains in one process. Several GPUs train with the command: python -m "
            f"cupygpt.train --gpus N"
        )


train_model.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(
            parameter
            for parameter in inspect.signature(train_model).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ),
        *signature_parameters(),
    ],
    return_annotation=TrainedRun,
)
