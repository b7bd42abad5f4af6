"""A model in a Python program: what it writes, and what it computes of given ids."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from cupygpt.arrays import Array
from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.config import GPTConfig
from cupygpt.data.document_start import text_prompt
from cupygpt.data.tokenizer import Tokenizer, load_tokenizer_for
from cupygpt.device.callers import Pause, Turns, as_given, is_cupy
from cupygpt.device.device import Device
from cupygpt.device.precision import Precision
from cupygpt.errors import ConfigError, RunError
from cupygpt.evaluation.scorer import Scorer, scorer_of
from cupygpt.exchange.company import with_company
from cupygpt.exchange.source import WeightSource
from cupygpt.exchange.target import check_target, write_target
from cupygpt.files import user_path
from cupygpt.interface import arguments, reading
from cupygpt.interface.words import speaking_python
from cupygpt.interface.writing import Asked, Writers, pieces
from cupygpt.kernels.load import precompile, record_kernels
from cupygpt.model.generate import Sampling
from cupygpt.model.tensors import Tensors

Prompt = str | npt.NDArray[Any] | list[int]
Prompts = list[str] | list[npt.NDArray[Any]] | list[list[int]]


@dataclass(frozen=True)
class Weights:
    """Weights on a device, and where they come from: `turns` says who uses it now.

    `read` gives them as a file holds them: float32 on the host. `is_on_disk`: the file of `source`
    holds these weights.
    """

    source: WeightSource
    turns: Turns
    config: GPTConfig
    params: Tensors
    precision: Precision
    read: Callable[[], ModelFile]
    is_on_disk: bool = True

    @property
    def device(self) -> Device:
        """Where they are."""
        return self.turns.device


class Model:
    """A model on a device. `cupygpt.load` makes it.

    `config` is its shape, `notes` holds what there was to say when it was loaded and saved. Several
    threads may use it: one call waits for the other. Arrays of CuPy give arrays of CuPy, all others
    give arrays of NumPy. Every method raises ConfigError for arguments that cannot be.
    """

    def __init__(self, weights: Weights, notes: Sequence[str] = ()) -> None:
        self.config = weights.config
        self.notes = list(notes)
        self._weights: Weights | None = weights
        self._tokenizer: Tokenizer | None = None
        self._writers: Writers | None = None
        self._scorer: Scorer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back. Raises TokenizerError where none is known, or it cannot be read."""
        source = self._open().source
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer_for(self.config.V, source.tokenizer)
        return self._tokenizer

    @property
    def window(self) -> int:
        """The positions that text is written from and read in: those that were trained."""
        trained = self._open().source.trained_length
        return min(trained or self.config.maxT, self.config.maxT)

    @overload
    def generate(
        self, prompt: Prompt | None = None, *, tokens: int = ..., temperature: float = ...,
        top_k: int = ..., top_p: float = ..., seed: int = ..., stream: Literal[False] = False,
        ignore_eot: bool = ...,
    ) -> str: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompt | None = None, *, tokens: int = ..., temperature: float = ...,
        top_k: int = ..., top_p: float = ..., seed: int = ..., stream: Literal[True],
        ignore_eot: bool = ...,
    ) -> Iterator[str]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompts, *, tokens: int = ..., temperature: float = ...,
        top_k: int = ..., top_p: float = ..., seed: int = ..., stream: Literal[False] = False,
        ignore_eot: bool = ...,
    ) -> list[str]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompts, *, tokens: int = ..., temperature: float = ...,
        top_k: int = ..., top_p: float = ..., seed: int = ..., stream: Literal[True],
        ignore_eot: bool = ...,
    ) -> Iterator[list[str]]: ...  # fmt: skip

    @speaking_python
    def generate(
        self,
        prompt: Prompt | Prompts | None = None,
        *,
        tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 42,
        stream: bool = False,
        ignore_eot: bool = False,
    ) -> str | list[str] | Iterator[str] | Iterator[list[str]]:
        """The prompt and the text that continues it: what `python -m cupygpt.sample` prints.

        Without a prompt it begins as the documents of the training data do. Before the ids of a
        text stands end of text, unless the training data had too few of it; a prompt may also be
        ids, which are taken as they are (as transformers takes a text). A list of prompts gives
        a list of texts, which are written at once; text number i is drawn with (seed, i), and up to
        rounding it is what it would be alone. With `stream` the text comes in pieces of whole
        characters, the first of which is the prompt; for a list of prompts in lists of pieces, with
        "" where a text has nothing new.

        At most `tokens` tokens are written, fewer where the model ends the text (`ignore_eot` goes
        on). Temperature 0 takes the likeliest token; top_k 0 and top_p 1 draw from all. Of a prompt
        that is longer than the window, its last tokens are read. Raises TokenizerError where the
        tokenizer is not known, DeviceError where the memory does not suffice.
        """
        arguments.check_writing(
            {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
             "seed": seed}
        )  # fmt: skip
        prompts = self._prompts(prompt)
        stop = None if ignore_eot else self.tokenizer.eot
        asked = Asked(prompts, tokens, Sampling(temperature, top_k, top_p), seed, stop)
        parts = pieces(asked, self.tokenizer, self._text_writers(), self._using)
        if stream:
            return parts if _are_several(prompt) else (part[0] for part in parts if part[0])
        texts = ["".join(of_text) for of_text in zip(*parts, strict=True)]
        return texts if _are_several(prompt) else texts[0]

    @speaking_python
    def logits(self, ids: Any) -> Array:
        """The logits (T, V) of ids (T,), or (B, T, V) of ids (B, T), float32.

        Row t is the distribution of the id that follows ids[t], before softmax. They are those of
        training. Rows have at most `config.maxT` ids.
        """
        rows = self._rows(ids, "logits")
        with self._using() as pause:
            scorer = self._reader()
            kept = is_cupy(ids) and scorer.device.is_gpu
            found = reading.logits(scorer, np.atleast_2d(rows), pause, on_device=kept)
            scorer.device.synchronize()
        return as_given(found if rows.ndim == 2 else found[0], ids)

    @speaking_python
    def loss(self, text_or_ids: Any) -> Array:
        """-log p in nats of each id, given those before it: its mean is the model's loss.

        Of ids (n,) those of ids[1:], shape (n - 1,); of ids (B, n) of each row, (B, n - 1). A text
        is a document: it begins after an end of text, so each of its tokens has a loss. Longer
        texts than the window are read in windows that do not overlap, as `evaluate` does.
        """
        if isinstance(text_or_ids, str | bytes):
            text = arguments.text(text_or_ids, "the text")
            start = [self.tokenizer.eot]
            rows = np.array([*start, *self.tokenizer.encode(text).tolist()], np.int32)
        else:
            rows = arguments.token_ids(text_or_ids, self.config, axes=(1, 2))
        if rows.shape[-1] < 2:
            raise ConfigError("a loss needs two ids at least: one to read, and one to predict.")
        with self._using() as pause:
            found = reading.losses(self._reader(), list(np.atleast_2d(rows)), self.window, pause)
        return as_given(np.stack(found) if rows.ndim == 2 else found[0], text_or_ids)

    @speaking_python
    def attention(self, ids: Any, layer: int, head: int) -> Array:
        """The attention weights (T, T) float32 of ids (T,), in one head of one layer.

        Row t holds how much position t takes from each position: 0 from later ones, 1 in all.
        Layers and heads count from 0.
        """
        config = self.config
        for name, value, count in (("layer", layer, config.L), ("head", head, config.NH)):
            if arguments.whole_number(name, value, least=0) >= count:
                raise ConfigError(
                    f"{name} is {value}, but the model has {count} (0 to {count - 1})."
                )
        rows = self._rows(ids, "attention", axes=(1,))
        with self._using():
            found = reading.attention(self._reader(), rows, int(layer), int(head))
        return as_given(found, ids)

    @speaking_python
    def save(
        self,
        path: str | PathLike[str],
        *,
        precision: str | None = None,
        tokenizer: str | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the model, and return the files: as `python -m cupygpt.convert` does.

        The name says what it becomes: NAME.bin a model file, NAME.gguf a file for llama.cpp, any
        other name a Hugging Face folder. Weights keep the precision and the bits that they were
        loaded with; `precision` is "fp32", "bf16", or for GGUF "fp16". Raises ConfigError for what
        is there already, without `overwrite`; RunError if the disk refuses.
        """
        target = user_path(arguments.path_text(path, what="the path"))
        check_target(target, precision, overwrite=overwrite)
        weights = self._open()
        source = weights.source.path
        if weights.is_on_disk and target.exists() and source.exists() and target.samefile(source):
            raise ConfigError(f"{target}: the model comes from there. Choose another name.")
        with self._using():
            file = weights.read()
        converted, notes = with_company(weights.source, file, tokenizer, target)
        self.notes += notes
        return write_target(target, converted, precision or file.precision)

    def close(self) -> None:
        """Free the memory of the device; the model cannot be used any more."""
        if self._weights is not None:
            with self._weights.turns.taken():
                self._weights = self._writers = self._scorer = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._weights is None:
            return "<cupygpt.Model, closed>"
        weights = self._weights
        where = f"{weights.device.describe().split(',')[0]}, {weights.precision.name}"
        return f"<cupygpt.Model {weights.source.origin}: {self.config.describe()}; {where}>"

    @property
    def weights(self) -> Weights:
        """The weights on their device, and where they come from."""
        return self._open()

    def _open(self) -> Weights:
        if self._weights is None:
            raise RunError("this model is closed. Load it again: cupygpt.load(path).")
        return self._weights

    @contextmanager
    def _using(self) -> Iterator[Pause]:
        """Inside, this thread alone uses the model and its device."""
        with self._open().turns.taken() as pause:
            self._open()  # another thread may have closed it while this one waited
            yield pause

    def _reader(self) -> Scorer:
        """What computes losses and logits, with its buffers; made when it is first needed."""
        if self._scorer is None:
            weights = self._open()
            device, maxT = weights.device, self.config.maxT
            made = scorer_of(device, self.config, weights.params, weights.precision, maxT)
            if device.is_gpu:
                recorded = record_kernels(lambda: made.dry_run(maxT))
                precompile(recorded, set_up_thread=device.activate)
            self._scorer = made
        return self._scorer

    def _text_writers(self) -> Writers:
        with self._using():
            if self._writers is None:
                w = self._open()
                self._writers = Writers(w.device, w.config, w.params, w.precision, self.window)
            return self._writers

    def _prompts(self, prompt: Any) -> list[list[int]]:
        if prompt is None:
            return [self._text_ids("")]
        if isinstance(prompt, str) and not prompt:
            raise ConfigError(
                "the prompt is empty. Leave it out, and the text begins as the documents of the "
                "training data do."
            )
        if not _are_several(prompt):
            return [self._prompt_ids(prompt, "the prompt")]
        if not prompt:
            raise ConfigError("the list of prompts is empty.")
        return [self._prompt_ids(one, f"prompt {i} of the list") for i, one in enumerate(prompt)]

    def _prompt_ids(self, prompt: Any, what: str) -> list[int]:
        """The ids to go on from: those that are given, or those of the text."""
        if arguments.is_row_of_ids(prompt):
            ids: list[int] = arguments.token_ids(prompt, self.config, axes=(1,)).tolist()
            return ids
        return self._text_ids(arguments.text(prompt, what))

    def _text_ids(self, text: str) -> list[int]:
        return text_prompt(text, self.tokenizer, self._open().source.text_start)[0]

    def _rows(self, ids: Any, what: str, axes: tuple[int, ...] = (1, 2)) -> np.ndarray:
        self._open()
        rows = arguments.token_ids(ids, self.config, axes=axes)
        arguments.check_fits_positions(rows, self.config, what)
        return rows


def _are_several(prompt: Any) -> bool:
    """A list of prompts; a list of ids is one."""
    return isinstance(prompt, list) and not arguments.is_row_of_ids(prompt)
