"""What goes with a model into another format: a note of its origin, or its tokenizer."""

from dataclasses import replace
from pathlib import Path

from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.data.tokenizer import default_tokenizer_spec
from cupygpt.errors import ConfigError
from cupygpt.exchange.note import ModelNote
from cupygpt.exchange.source import Kind, WeightSource
from cupygpt.exchange.target import Converted, Format, format_of, tokenizer_path
from cupygpt.exchange.tokenizer_of import is_guessed, noted_tokenizer, vocabulary_of


def with_company(
    source: WeightSource, model: ModelFile, tokenizer: str | None, target: Path
) -> tuple[Converted, list[str]]:
    """The model with what the target needs besides it, a note or a vocabulary; and what is to say.

    `tokenizer` names another one than the source's. Raises ConfigError and TokenizerError for one
    that cannot be written there.
    """
    V = model.config.V
    longest = source.trained_length or model.config.maxT
    name = {
        Kind.RUN: source.path.parent.name,
        Kind.HUGGING_FACE: source.path.name,
        Kind.MODEL_FILE: source.path.stem,
    }[source.kind]
    converted = Converted(model, name, longest)
    if format_of(target) is Format.MODEL_FILE:
        if not source.is_trained and source.trained_length is None:
            if tokenizer is not None:
                raise ConfigError(
                    f"--tokenizer has no effect: {source.path} has no note that could name one. "
                    f"Pass it to train or sample."
                )
            return converted, []
        noted = noted_tokenizer(source, tokenizer, V)
        doubts = []
        if noted.doubt is not None:
            doubts = [f"no tokenizer is noted beside {target}: {noted.doubt}"]
        file = None if noted.file is None else str(tokenizer_path(target))
        note = ModelNote(
            source.origin, noted.name or file, source.text_start, source.trained_length
        )
        return replace(
            converted, note=note, tokenizer_file=noted.file, split_file=noted.split
        ), doubts
    vocabulary = vocabulary_of(source, tokenizer, V)
    if vocabulary is None and format_of(target) is Format.GGUF:
        raise ConfigError(
            f"a GGUF file holds its tokenizer, but that of {source.path} is not known ({V:,} ids). "
            f"Name it with --tokenizer FILE."
        )
    notes = []
    if vocabulary is None:
        notes.append(f"no tokenizer is known for {V:,} ids, so none is written (--tokenizer FILE).")
    elif is_guessed(source, tokenizer):
        notes.append(f"the tokenizer {default_tokenizer_spec(V)} is assumed, by the number of ids.")
    if longest < model.config.maxT:
        notes.append(
            f"{longest} of the {model.config.maxT} positions were trained; longer texts turn to "
            f"noise."
        )
    return replace(converted, vocabulary=vocabulary), notes
