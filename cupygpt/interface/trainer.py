"""Single optimizer steps, for a training loop of one's own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.checkpoint.state_file import Progress
from cupygpt.config import GPT2_VOCAB, GPTConfig, config_from_descriptor
from cupygpt.data.loader import pack
from cupygpt.data.token_files import Ids, check_ids
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.data.validation import IGNORED_TARGET, ValidationBatches, ValidationRows
from cupygpt.device.callers import Pause, Turns, keeping_current
from cupygpt.device.choose import choose_device
from cupygpt.device.device import Device
from cupygpt.device.precision import chosen_precision
from cupygpt.errors import ConfigError
from cupygpt.exchange.source import Kind, WeightSource, find_weights, load_weights, names_weights
from cupygpt.flags.config import TrainConfig
from cupygpt.flags.field import NOT_NEGATIVE
from cupygpt.flags.keywords import given_by_keywords
from cupygpt.interface import arguments
from cupygpt.interface.loader import Files, open_files
from cupygpt.interface.model import Model, Weights
from cupygpt.interface.words import speaking_python
from cupygpt.kernels.load import precompile, record_kernels
from cupygpt.kernels.matmul import measuring
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import check_fits, shape_of_run
from cupygpt.training import trainer as training


class Step:
    """The result of one step. On a GPU it may still be computing: asking waits for it."""

    def __init__(self, pending: training.PendingStep) -> None:
        self._pending = pending

    @cached_property
    def _result(self) -> training.StepResult:
        return self._pending.result()

    @property
    def loss(self) -> float:
        """Mean loss in nats per token, before the update. NaN or infinite: it has diverged."""
        return self._result.loss

    @property
    def grad_norm(self) -> float:
        """The norm of all gradients before clipping."""
        return self._result.grad_norm

    def __repr__(self) -> str:
        return f"<cupygpt.Step loss {self.loss:.4f}, grad_norm {self.grad_norm:.4f}>"


@dataclass(frozen=True)
class _Start:
    """The weights that a trainer begins with, float32 (P,), and where they come from."""

    config: GPTConfig
    weights: np.ndarray
    source: WeightSource


class Trainer:
    """A model in training. Each `step` takes a batch and a learning rate.

    `model` is a Model, whose weights are copied; the name of one, as `cupygpt.load` takes it; or a
    shape for new weights, such as "d12" or "L4:H4:C128": `seq_len` and `tokenizer` then give the
    positions and the vocabulary that it does not name. `seq_len` is the length of the rows, by
    default all positions. `accumulation` batches make one step. The optimizer is AdamW. `steps`
    counts the steps.

    Raises ConfigError for what cannot be, DeviceError where the memory does not suffice, and what
    `cupygpt.load` raises.
    """

    @speaking_python
    def __init__(
        self,
        model: Model | str | PathLike[str],
        batch_size: int,
        seq_len: int | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        accumulation: int = 1,
        beta1: float = 0.9,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
        grad_clip: float = 1.0,
        dropout: float = 0.0,
        recompute: int = 0,
        seed: int = 42,
        tokenizer: str | None = None,
    ) -> None:
        asked = TrainConfig(
            **given_by_keywords(
                {
                    "batch_size": batch_size, "seq_len": seq_len, "device": device,
                    "precision": precision, "beta1": beta1, "beta2": beta2,
                    "weight_decay": weight_decay, "grad_clip": grad_clip, "dropout": dropout,
                    "recompute": recompute, "seed": seed, "tokenizer": tokenizer,
                }
            )
        )  # fmt: skip
        self.steps = 0
        self._accumulation = arguments.whole_number("accumulation", accumulation, least=1)
        start = _start_of(model, asked)
        with keeping_current():
            place = choose_device(asked.device).device
            self._trainer = _make(asked, start.config, place, self._accumulation)
            self._trainer.load_new(start.weights)
        self._turns = Turns(place)
        shape = self._trainer.shape
        source = replace(start.source, is_trained=True)
        if source.trained_length is not None:
            source = replace(source, trained_length=max(shape.T, source.trained_length))
        self.model = Model(
            Weights(
                source, self._turns, shape.config, self._trainer.params, shape.precision,
                self._read, is_on_disk=False,
            )
        )  # fmt: skip
        """The model as it is now: it writes, reads and saves with the weights of the last step."""

    @speaking_python
    def step(self, batch: Any, lr: float) -> Step:
        """One update by AdamW at learning rate `lr`.

        `batch` holds inputs and targets (B, T), as a Loader gives them; a target of -1 does not
        count. An array (B, T + 1) is both. With `accumulation` above 1, pass a list of so many
        batches. The loss is the mean over B * T targets.
        """
        batches = self._batches_of_step(batch)
        arguments.number("lr", lr, NOT_NEGATIVE)
        with self._turns.taken():
            pending = self._trainer.step(pack(batches), self.steps, float(lr))
            self.steps += 1
        return Step(pending)

    @speaking_python
    def evaluate(self, data: Any, batches: int | None = None) -> float:
        """The mean loss in nats per token on token files, or on batches; without dropout.

        Of files, the first `batches` batches, by default all rows.
        """
        if isinstance(data, str | PathLike) or _is_list_of_files(data):
            pairs = self._pairs_of_files(data, batches)
        elif not isinstance(data, Iterable) or hasattr(data, "ndim"):
            raise ConfigError(
                f"data must be token files, or a list of batches, not {type(data).__name__}."
            )
        elif batches is not None:
            raise ConfigError("batches has no effect: the data are batches already.")
        else:
            pairs = [self._pair(batch) for batch in data]
            if not any((targets != IGNORED_TARGET).any() for _, targets in pairs):
                raise ConfigError("there is nothing to evaluate: no batch holds a target.")
        with self._turns.taken() as pause:
            return self._trainer.evaluate(_pausing(pairs, pause))

    def save(
        self, path: str | PathLike[str], *, precision: str | None = None, overwrite: bool = False
    ) -> list[Path]:
        """Write the weights and return the files, as `Model.save` does; the moments are lost."""
        return self.model.save(path, precision=precision, overwrite=overwrite)

    def _pairs_of_files(self, files: Files, batches: int | None) -> Iterable[tuple[Ids, Ids]]:
        shape, shards = self._trainer.shape, open_files(files)
        check_ids(shards, shape.config.V)
        count = None
        if batches is not None:
            count = shape.B * arguments.whole_number("batches", batches, least=1)
        rows = ValidationRows(shards, shape.T, count, evenly=False)
        return ((x, y) for x, y, _ in ValidationBatches(rows, shape.B, shape.config.V))

    def _read(self) -> ModelFile:
        precision = "bf16" if self._trainer.shape.precision.rounds_storage else "fp32"
        state = self._trainer.state(Progress(step=self.steps, seed=0))
        weights = np.array(state.float32_weights())
        return ModelFile(self._trainer.shape.config, precision, weights, ())

    def _batches_of_step(self, batch: Any) -> list[tuple[Ids, Ids]]:
        count = self._accumulation
        if count == 1:
            return [self._pair(batch)]
        if not isinstance(batch, list) or len(batch) != count:
            raise ConfigError(f"a step takes a list of {count} batches (accumulation={count}).")
        return [self._pair(one) for one in batch]

    def _pair(self, batch: Any) -> tuple[Ids, Ids]:
        """Inputs and targets (B, T) int32 on the host, checked."""
        B, T, config = self._trainer.shape.B, self._trainer.shape.T, self._trainer.shape.config
        if isinstance(batch, tuple | list) and len(batch) == 2:
            inputs, targets = batch
        elif getattr(batch, "ndim", 0) == 2:
            inputs, targets = batch[:, :-1], batch[:, 1:]
        else:
            raise ConfigError(
                f"a batch must be (inputs, targets), or an array of rows of {T + 1} ids, not "
                f"{type(batch).__name__}."
            )
        x = arguments.token_ids(inputs, config, axes=(2,))
        y = arguments.token_ids(targets, config, axes=(2,), ignored=IGNORED_TARGET)
        for name, array in (("inputs", x), ("targets", y)):
            if array.shape != (B, T):
                raise ConfigError(
                    f"{name} have the shape {array.shape}, but this trainer takes {(B, T)}: "
                    f"batch_size {B}, seq_len {T}."
                )
        return x, y


def _pausing(pairs: Iterable[tuple[Ids, Ids]], pause: Pause) -> Iterator[tuple[Ids, Ids]]:
    for pair in pairs:
        pause()
        yield pair


def _is_list_of_files(data: Any) -> bool:
    return isinstance(data, list | tuple) and all(isinstance(one, str | PathLike) for one in data)


def _start_of(model: Any, asked: TrainConfig) -> _Start:
    if isinstance(model, Model):
        weights = model.weights
        file = weights.read()
        return _Start(file.config, file.parameters, weights.source)
    name = arguments.path_text(model, what="model")
    if names_weights(name):
        source = find_weights(name)
        file = load_weights(source)
        if asked.tokenizer is not None:
            source = replace(source, tokenizer=asked.tokenizer, vocabulary=None)
        return _Start(file.config, file.parameters, source)
    V = load_tokenizer(asked.tokenizer).vocab_size if asked.tokenizer else GPT2_VOCAB
    config = config_from_descriptor(name, V=V, **({"maxT": asked.seq_len} if asked.seq_len else {}))
    source = WeightSource(
        Kind.MODEL_FILE, Path(name), f"{name}, new weights (seed {asked.seed}), trained in Python",
        is_trained=True, tokenizer=asked.tokenizer, trained_length=0,
    )  # fmt: skip
    return _Start(config, initial_parameters(config, asked.seed), source)


def _make(
    asked: TrainConfig, config: GPTConfig, device: Device, accumulation: int
) -> training.Trainer:
    """The trainer, with its memory; it holds no weights yet."""
    T = asked.seq_len or config.maxT
    if config.maxT < T:
        raise ConfigError(f"seq_len is {T}, but the model has {config.maxT} positions.")
    shape = shape_of_run(
        config,
        asked.batch_size,
        T,
        chosen_precision(asked.precision, device),
        on_gpu=device.is_gpu,
        recompute=asked.recompute,
    )
    check_fits(shape, device.free_bytes())
    made = training.Trainer(
        device,
        shape,
        training.OptimizerSettings(asked.beta1, asked.beta2, asked.weight_decay, asked.grad_clip),
        accumulation=accumulation,
        dropout_p=asked.dropout,
        seed=asked.seed,
        graph=device.is_gpu,
    )
    if device.is_gpu:

        def dry_run() -> None:
            with measuring(None):
                made.dry_run()

        precompile(record_kernels(dry_run), set_up_thread=device.activate)
    return made
