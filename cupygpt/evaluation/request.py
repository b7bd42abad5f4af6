"""One evaluation, from what was asked for to its report."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.console.console import Console
from cupygpt.console.stream import say
from cupygpt.device.choose import choose_device
from cupygpt.device.device import Device
from cupygpt.device.precision import (
    PRECISIONS,
    Precision,
    check_precision,
    precision_of_file,
)
from cupygpt.errors import ConfigError
from cupygpt.evaluation.answers import Answers, answer
from cupygpt.evaluation.inputs import HELLASWAG, Inputs, find_files, open_inputs
from cupygpt.evaluation.report import Report, Setting
from cupygpt.evaluation.scorer import Scorer, make_scorer
from cupygpt.evaluation.text_loss import TextLosses, text_losses
from cupygpt.exchange.source import WeightSource, find_weights, load_weights
from cupygpt.kernels.compile_dry_run import compile_dry_run
from cupygpt.run_folder.record import RECORD, read_record

AUTO = "auto"


@dataclass(frozen=True)
class Request:
    """What is evaluated, and how; None is open. See `--help` of the command.

    `model` is a run folder or a model file, `files` what it is evaluated on, `source` the file of
    HellaSwag.
    """

    model: str | None = None
    files: Sequence[str] = ()
    source: Path | None = None
    tokenizer: str | None = None
    window: int | None = None
    stride: int | None = None
    by_position: bool = False
    by_document: bool = False
    split_at_endoftext: bool = False
    questions: int | None = None
    precision: str = AUTO
    device: str = AUTO


def evaluate(request: Request) -> Report:
    """Evaluate, with notes on stderr. Raises CupyGPTError with what is wrong."""
    _check(request)
    source = find_weights(request.model)
    for note in source.notes:
        say(f"note: {note}")
    model = load_weights(source)
    for warning in model.warnings:
        say(f"warning: {warning}")
    window, stride = _window(request, source, model)
    names = request.files or _validation_files(source)
    files = find_files(names, request.source)
    inputs = open_inputs(
        files,
        model.config.V,
        asked=request.tokenizer,
        of_model=source.tokenizer,
        split=request.split_at_endoftext,
        most_questions=request.questions,
    )
    if inputs.tokenizer is None:
        _say_what_is_missing(request, inputs)
    choice = choose_device(request.device)
    if choice.warning:
        say(f"warning: {choice.warning}")
    precision = _precision(request.precision, model.precision, choice.device)
    say(f"{source.path}: {model.config.describe()}")
    say(
        f"{choice.device.describe()}, {precision.name}; {_reading(window, stride, source, request)}"
    )
    scorer = make_scorer(choice.device, model.config, model.parameters, precision, window)
    if choice.device.is_gpu:
        compile_dry_run(choice.device, lambda: scorer.dry_run(window), Console(sys.stderr))
    return Report(
        Setting(str(source.path), precision.name, choice.device.describe(), window, stride),
        [str(text.path) for text in inputs.texts],
        _text_losses(request, inputs, scorer, window, stride),
        _answers(inputs, scorer, window),
        inputs.tokenizer,
        request.by_position,
    )


def _text_losses(
    request: Request, inputs: Inputs, scorer: Scorer, window: int, stride: int
) -> TextLosses | None:
    if not inputs.texts:
        return None
    started = time.perf_counter()
    with Console(sys.stderr).progress("texts") as show:
        found = text_losses(
            scorer,
            inputs.texts,
            inputs.tokenizer,
            window=window,
            stride=stride,
            by_document=request.by_document,
            progress=show,
        )
    seconds = time.perf_counter() - started
    say(f"{found.total.tokens:,} tokens, {found.total.tokens / seconds:,.0f} a second")
    return found


def _answers(inputs: Inputs, scorer: Scorer, window: int) -> list[tuple[Path, Answers]]:
    found = []
    for path, questions in inputs.questions:
        started = time.perf_counter()
        with Console(sys.stderr).progress(f"{path.name}, choices") as show:
            found.append((path, answer(scorer, questions, window, show)))
        seconds = time.perf_counter() - started
        say(f"{len(questions):,} questions, {len(questions) / seconds:,.0f} a second")
    return found


def _check(request: Request) -> None:
    if request.source is not None and HELLASWAG not in request.files:
        raise ConfigError(f"--source has no effect: it is the file of {HELLASWAG}. Leave it out.")
    if request.precision != AUTO and request.precision not in PRECISIONS:
        names = ", ".join([AUTO, *PRECISIONS])
        raise ConfigError(f"--precision is {request.precision}, but must be one of {names}.")
    for name in ("window", "stride", "questions"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}, but must be at least 1.")


def _window(request: Request, source: WeightSource, model: ModelFile) -> tuple[int, int]:
    """The tokens of a window, and how far the next one lies from it."""
    maxT = model.config.maxT
    if request.window and request.window > maxT:
        raise ConfigError(f"--window is {request.window}, but the model has {maxT} positions.")
    window = request.window or min(source.trained_length or maxT, maxT)
    stride = request.stride or window
    if stride > window:
        raise ConfigError(
            f"--stride is {stride}, but the window has {window} tokens: the tokens between two "
            f"windows would be left out. Use {window} or less."
        )
    return window, stride


def _reading(window: int, stride: int, source: WeightSource, request: Request) -> str:
    """How a text is read, in words."""
    trained = request.window is None and source.trained_length is not None
    length = f"windows of {window:,} tokens{' (as trained)' if trained else ''}"
    if stride == window:
        return f"{length} that do not overlap"
    return f"{length}, a new one every {stride:,} tokens"


def _validation_files(source: WeightSource) -> list[str]:
    """The validation files of the run that the weights belong to."""
    folder = source.path.parent
    if not (folder / RECORD).is_file():
        raise ConfigError(
            f"{source.path} belongs to no run, so it has no validation files. Name what to "
            f"evaluate it on: python -m cupygpt.evaluate MODEL FILE"
        )
    record = read_record(folder)
    named = record["config"].get("val_data")
    if record["config"].get("train_data") is None:
        named = str(folder / record["data"]["val"][0]["name"])
    if not named:
        raise ConfigError(
            f"the run in {folder} had no validation files. Name what to evaluate it on: "
            f"python -m cupygpt.evaluate RUN FILE"
        )
    say(f"on the validation files of the run: {named}")
    return [named]


def _precision(asked: str, of_file: str, device: Device) -> Precision:
    """The precision that was asked for, else that of the file where the device has it."""
    if asked != AUTO:
        check_precision(device, PRECISIONS[asked])
        return PRECISIONS[asked]
    return precision_of_file(of_file, device)


def _say_what_is_missing(request: Request, inputs: Inputs) -> None:
    if request.by_document:
        raise ConfigError(
            f"--by-document needs the tokenizer, which knows end of text: {inputs.note}"
        )
    say(f"note: no bits per byte, and no accuracy per character: {inputs.note}")
