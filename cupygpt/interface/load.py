"""Models from disk: whatever `python -m cupygpt.sample` and `convert` read."""

from dataclasses import replace
from os import PathLike

from cupygpt.device.callers import Turns, keeping_current
from cupygpt.device.choose import choose_device
from cupygpt.device.precision import PRECISIONS, check_precision, precision_of_file
from cupygpt.errors import ConfigError
from cupygpt.exchange.source import find_weights, load_weights
from cupygpt.interface import arguments
from cupygpt.interface.model import Model, Weights
from cupygpt.interface.words import speaking_python
from cupygpt.model.memory_plan import check_decoding_fits
from cupygpt.model.parameters import parameters_on


@speaking_python
def load(
    path: str | PathLike[str] | None = None,
    device: str = "auto",
    precision: str | None = None,
    *,
    tokenizer: str | None = None,
) -> Model:
    """The model that `path` names, on a device.

    `path` is a run folder (its best weights; "RUN@newest" and "RUN@500" choose others), a model
    file (.bin) or a Hugging Face folder; None is the newest run below runs/. `device` is "auto",
    "cpu", "cuda" or "cuda:N". `precision` is "fp32", "tf32" or "bf16"; None is that of the file, or
    fp32 on a device that has not got it. `tokenizer` is "gpt2", "bytes" or a file, if the model's
    own is not known.

    Raises CheckpointError for what is no model, DeviceError for a device that is not there or too
    small, TokenizerError for a tokenizer that does not fit, ConfigError for other arguments.
    """
    name = None if path is None else arguments.path_text(path, what="the path of a model")
    _check(device, precision, tokenizer)
    source = find_weights(name)
    if tokenizer is not None:
        source = replace(source, tokenizer=tokenizer, vocabulary=None)
    file = load_weights(source)
    with keeping_current():
        choice = choose_device(device)
        if precision is None:
            chosen = precision_of_file(file.precision, choice.device)
        else:
            chosen = PRECISIONS[precision]
            check_precision(choice.device, chosen)
        check_decoding_fits(file.config, chosen, choice.device.free_bytes())
        params = parameters_on(choice.device, file.config, file.parameters, chosen)
    notes = [*source.notes, *file.warnings, *([choice.warning] if choice.warning else [])]
    model = Model(
        Weights(source, Turns(choice.device), file.config, params, chosen, lambda: file), notes
    )
    if tokenizer is not None:
        _ = model.tokenizer  # one that does not fit is refused here
    return model


def _check(device: str, precision: str | None, tokenizer: str | None) -> None:
    for what, value in (("device", device), ("precision", precision), ("tokenizer", tokenizer)):
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{what} must be text (str), not {type(value).__name__}.")
    if precision is not None and precision not in PRECISIONS:
        names = ", ".join(PRECISIONS)
        raise ConfigError(f"precision is {precision!r}, but must be one of {names}, or None.")
